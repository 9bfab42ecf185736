"""Stored numbers become samples in [-1, 1], by their type alone: never by the values that happen to be there.

    bytes, and wider whole numbers from 0 to 255     x / 127.5 - 1
    16-bit whole numbers without a sign              x / 32767.5 - 1
    true and false                                   1 and -1
    floats                                           as they are, and only from -1 to 1

So every client scales its samples as the others do, whatever its own lowest and highest value may be. Values that
are allowed and yet look like a mistake are noted, for `Seen.notices`.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmutual.errors import UserError

RANGES = "bytes from 0 to 255, 16-bit numbers from 0 to 65535, or floats from -1 to 1"

_SLACK = 1e-3
"""By how much rounding may carry a float beyond 1."""


@dataclass
class Seen:
    """The lowest and the highest value that was read of each kind of number, and images with more than one page."""

    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    paged: set[str] = field(default_factory=set)

    def add(self, kind: str, low: float, high: float) -> None:
        lowest, highest = self.ranges.get(kind, (low, high))
        self.ranges[kind] = min(lowest, low), max(highest, high)

    def notices(self, where: str) -> list[str]:
        """What looks like a mistake in the values that were read from `where`, a sentence each."""
        sentences = []
        for kind, (low, high) in self.ranges.items():
            between = f"the values in {where} lie between {low:g} and {high:g}"
            if kind == "bytes" and high == 1:
                sentences.append(
                    f"{between}, and bytes reach 255, so that every image is nearly black: store them as true and "
                    "false, or multiply them by 255"
                )
            elif kind == "16-bit numbers" and 0 < high <= 4095:
                sentences.append(
                    f"{between}, and 16-bit numbers reach 65535, so that every image is nearly black: store bytes, "
                    "or multiply them"
                )
            elif kind == "floats" and low >= 0 < high:
                sentences.append(
                    f"{between}, and floats are taken as they are, so that black is grey (0) and not -1: store 2 x - 1"
                )
        if self.paged:
            first = min(self.paged)
            sentences.append(
                f"{len(self.paged)} images have several pages, of which the first is read, such as {first}"
            )
        return sentences


def scaled(stored: NDArray[Any], where: str, seen: Seen) -> Tensor:
    """Stored numbers of any shape as float32 in [-1, 1]; `where` names them in messages.

    Raises:
        UserError: a type or a range that is none of this module's.
    """
    if not stored.size:
        return torch.from_numpy(stored.astype(np.float32, order="C"))
    kind = stored.dtype.kind
    if kind == "f":
        return _floats(stored, where, seen)
    if kind not in "uib":
        raise UserError(f"images of {where} have type {stored.dtype}: store {RANGES}")
    low, high = int(stored.min()), int(stored.max())
    samples = torch.from_numpy(stored.astype(np.float32, order="C"))
    if kind == "b":
        return samples.mul_(2).sub_(1)
    if (kind, stored.dtype.itemsize) == ("u", 2):
        seen.add("16-bit numbers", low, high)
        return samples.div_(32767.5).sub_(1)
    if low < 0 or high > 255:
        raise UserError(f"images of {where} are {stored.dtype} from {low} to {high}: store {RANGES}")
    seen.add("bytes", low, high)
    return samples.div_(127.5).sub_(1)


def _floats(stored: NDArray[Any], where: str, seen: Seen) -> Tensor:
    with np.errstate(over="ignore"):  # reported below
        samples = torch.from_numpy(stored.astype(np.float32, order="C"))
    if not samples.isfinite().all():
        raise UserError(f"images of {where} hold values that are not finite float32 numbers: clean them")
    low, high = samples.min().item(), samples.max().item()
    if low < -1 - _SLACK or high > 1 + _SLACK:
        raise UserError(f"images of {where} are floats from {low:g} to {high:g}: store {RANGES}")
    seen.add("floats", low, high)
    return samples
