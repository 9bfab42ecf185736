"""`extractor = train`: the extractor that a run, a comparison or a measurement trains for itself, in its own folder."""

from pathlib import Path

from fedmutual.config import RunConfig
from fedmutual.data import open_source
from fedmutual.device import pick_device
from fedmutual.evaluation.features import Training, extractor_path

TRAIN = "train"
"""The value of the setting `extractor` that asks for one."""


def with_own_extractor(config: RunConfig, folder: Path) -> RunConfig:
    """`config` with the file in `folder` that `extractor = train` stands for; as it is where it asks for no training.

    Where the seed cuts the test part, each seed has an extractor of its own, which has seen none of its test part.
    """
    if config.measuring.extractor != TRAIN:
        return config
    seed = "-{seed}" if open_source(config.data, config.seed).cuts_test else ""
    return config.but(extractor=str(folder.expanduser().absolute() / f"extractor{seed}.safetensors"))


def extractor_to_train(config: RunConfig, folder: Path) -> Training | None:
    """The training of the extractor that belongs into `folder` and is not there; None where there is none to train.

    Raises:
        UserError: data that no extractor can be trained on; raised here, before it takes time.
    """
    path = extractor_path(config)
    if path.parent != folder.expanduser().absolute() or path.exists() or not path.stem.startswith("extractor"):
        return None
    return Training(config, path, pick_device(config.compute))
