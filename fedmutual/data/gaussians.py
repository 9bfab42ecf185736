"""Samples of Gaussian mixtures, drawn as they are asked for."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from fedmutual.config import Data
from fedmutual.data import long_tail
from fedmutual.data.fingerprint import Fingerprint, fingerprint
from fedmutual.data.mixtures import MIXTURES, Mixture
from fedmutual.data.source import ClassData, Source, existing
from fedmutual.errors import UserError
from fedmutual.seeds import generator


def family(data: Data) -> Sequence[Mixture]:
    """The mixtures of the setting `mixture`, one a class.

    Raises:
        UserError: there is no such family.
    """
    if data.mixture not in MIXTURES:
        raise UserError(f"mixture = {data.mixture} is unknown: choose one of {', '.join(MIXTURES)}")
    return MIXTURES[data.mixture]()


class Gaussians(Source):
    """Draws from the mixtures of one family, as many as the settings ask for."""

    def __init__(self, data: Data, seed: int):
        self.data, self.seed, self.mixtures = data, seed, family(data)
        self.names = [str(y) for y in range(len(self.mixtures))]
        self.shape = (self.mixtures[0].dimension,)

    @cached_property
    def counts(self) -> list[int]:
        if not self.data.head_count and self.data.imbalance != "counts":
            raise UserError("gaussians have no largest count of their own: set head-count, such as 1000")
        return long_tail.counts_of(self.data, [long_tail.UNLIMITED] * len(self.names))

    def load(self, y: int) -> ClassData:
        _, held_out, train = self._draw(y, self.counts[existing(y, len(self.names))])
        return ClassData(train, held_out)

    def test(self, y: int) -> Tensor:
        return self._draw(y, 0)[0]

    def unseen(self, y: int) -> Tensor:
        test, held_out, _ = self._draw(y, 0)
        return torch.cat([held_out, test])

    def look_through(self, y: int) -> Fingerprint:
        return fingerprint(self.train(y))

    def _draw(self, y: int, count: int) -> list[Tensor]:
        """Test, held-out and training part, drawn one after the other, so that a later never changes an earlier one."""
        mixture = self.mixtures[existing(y, len(self.names))]
        draw = generator(self.seed, y, 0, "data")
        sizes = (self.data.test, self.data.held_out, count)
        return [mixture.sample(size, draw).float() if size else torch.empty(0, mixture.dimension) for size in sizes]
