"""The samples that the settings of a run stand for."""

from torch import Tensor

from fedmutual.config import RunConfig
from fedmutual.data import ClassData, Source, open_source


def opened(config: RunConfig) -> Source:
    return open_source(config.data, config.seed)


def load_class(config: RunConfig, y: int) -> ClassData:
    return opened(config).load(y)


def load_test(config: RunConfig, y: int) -> Tensor:
    return opened(config).test(y)


def load_unseen(config: RunConfig, y: int) -> Tensor:
    return opened(config).unseen(y)


def training_counts(config: RunConfig) -> list[int]:
    return opened(config).counts
