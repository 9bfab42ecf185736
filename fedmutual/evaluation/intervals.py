"""Means over seeds with 95 % intervals (Student's t)."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and half its 95 % interval, None with one seed."""

    mean: float
    half: float | None
    seeds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Estimate":
        """mean ± t_{0.975, n-1} s / sqrt(n) of n values, at least one."""
        known = np.fromiter(values, float)
        count = len(known)
        if count < 2:
            return cls(float(known[0]), None, 1)
        half = stdtrit(count - 1, 0.975) * known.std(ddof=1) / np.sqrt(count)
        return cls(float(known.mean()), float(half), count)

    @classmethod
    def maybe(cls, values: Iterable[float]) -> "Estimate | None":
        """As `of`; None without a value."""
        known = list(values)
        return cls.of(known) if known else None

    @property
    def by_chance(self) -> bool:
        """Whether 0 lies within the interval."""
        return self.half is not None and abs(self.mean) <= self.half

    @property
    def sign(self) -> int:
        """-1 or 1 where the interval excludes 0, else 0; 0 too for one seed, which has no interval."""
        return 0 if self.half is None or self.by_chance else int(np.sign(self.mean))
