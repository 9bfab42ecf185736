"""What every source of samples offers: it is opened once; then each class's samples are read from it, and nothing else.

What a call returns has its own memory. A source holds what it takes to find a class's samples, such as labels or
names of files; samples only where the file allows nothing else (torchvision's), or with `keep`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from fedmutual.data.fingerprint import Fingerprint, fingerprint
from fedmutual.errors import UserError


@dataclass(frozen=True)
class ClassData:
    """One client's private samples, each part [n, *dims], float32 on the CPU, in memory of its own."""

    train: Tensor
    held_out: Tensor


class Source(ABC):
    """The samples of every class, cut into parts that the seed alone decides.

    names: of the classes, in order. shape: of one sample, channels first. A source of one class is a client's own
    data, whatever its number y is.
    """

    names: list[str]
    shape: tuple[int, ...]

    @property
    @abstractmethod
    def counts(self) -> list[int]:
        """Training samples of every class, the long tail applied.

        Raises:
            UserError: settings that ask for more than there is, or data of one client's class only.
        """

    @abstractmethod
    def load(self, y: int) -> ClassData:
        """Class y's training and held-out parts, read at once.

        Raises:
            UserError: no such class, or data that cannot be used; so do all that follow.
        """

    def train(self, y: int) -> Tensor:
        """What class y trains on, [n, *dims]."""
        return self.load(y).train

    def held_out(self, y: int) -> Tensor:
        """What settings are chosen by; empty where there is none."""
        return self.load(y).held_out

    @abstractmethod
    def test(self, y: int) -> Tensor:
        """What the report alone is measured by; empty where there is none."""

    @abstractmethod
    def unseen(self, y: int) -> Tensor:
        """All that no training saw: the held-out part, what the long tail left over, the test part."""

    @abstractmethod
    def look_through(self, y: int) -> Fingerprint:
        """Read all that there is of class y, in every part; the fingerprint of what it trains on.

        Raises:
            UserError: a sample that cannot be used.
        """

    def fingerprints(self) -> dict[int, Fingerprint]:
        """{class: fingerprint of what it trains on}; raises as `counts` does."""
        return {y: fingerprint(self.train(y)) for y in range(len(self.counts))}

    @property
    def notices(self) -> list[str]:
        """What a user should know of the data, a sentence each: what is left out, and values that look like a mistake
        among those that were read so far."""
        return []

    @property
    def whole(self) -> bool:
        """Whether this holds every class, and not one client's own."""
        return True

    @property
    def cuts_test(self) -> bool:
        """Whether the seed decides which samples are the test part; else the data come with one."""
        return True


def existing(y: int, classes: int) -> int:
    """`y`, which must be the number of one of so many classes.

    Raises:
        UserError: it is not.
    """
    if not 0 <= y < classes:
        raise UserError(f"class {y} does not exist: there are {classes}, numbered from 0; check classes")
    return y
