"""What a reader of samples has opened: names, a shape, and the parts that the data come in."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedmutual.data.pixels import Seen
from fedmutual.errors import UserError

Rows = NDArray[np.int64]
"""Numbers of rows, [n], or the class of each row."""


BLOCK = 256
"""Samples that are in memory at once while many are looked through."""


class Part(ABC):
    """One part of the data: training, held-out or test."""

    @property
    @abstractmethod
    def labels(self) -> Rows:
        """The class of each row, [N]; -1 where it is none of the training part's."""

    @abstractmethod
    def read(self, rows: Rows) -> Tensor:
        """Those rows as float32 `[n, *shape]` in [-1, 1], in memory of their own."""

    def blocks(self, rows: Rows) -> Iterator[tuple[Rows, Tensor]]:
        """Those rows a block at a time, with their samples: no more than `BLOCK` of them are in memory at once."""
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            yield block, self.read(block)


@dataclass(frozen=True)
class Opened:
    """Data that were opened, and of which no sample is read yet.

    held_out, test: the parts that the data come with; where there is none it is cut from the training part.
    seen: which values were read so far. notices: what a user should know, a sentence each.
    """

    names: list[str]
    shape: tuple[int, ...]
    train: Part
    held_out: Part | None = None
    test: Part | None = None
    seen: Seen | None = None
    notices: tuple[str, ...] = ()


@contextmanager
def readable(what: str, remedy: str) -> Iterator[None]:
    """Whatever a missing or damaged file makes its reader raise, as one line for the user.

    Readers of zip archives, images and pickles raise almost anything on damage, so only `Exception` covers it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{what} ({reason}): {remedy}") from None
