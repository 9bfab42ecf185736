"""What an attack refutes: a lower bound on epsilon, from how often it tells which of two samples was used.

One run tells of many pairs at once (Steinke, Nasr and Jagielski, 2023): of each pair one sample was used, drawn by a
fair coin, and the other not. If what was released is (epsilon, delta)-differentially private where one sample is
replaced by another, the number of right guesses is no larger than that of coins that fall right with probability
e^epsilon / (1 + e^epsilon), but for delta. A claim of epsilon that makes what was seen improbable is refuted.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.stats import binom

CONFIDENCE = 0.95
LARGEST = 100.0
"""No larger epsilon is told: it would take e^100 guesses."""


class Guesses(NamedTuple):
    """How many pairs there are, of how many a guess was made, and how many guesses were right."""

    pairs: int
    made: int
    right: int

    def __add__(self, other: "Guesses") -> "Guesses":  # type: ignore[override]
        """Those of mechanisms that look at no sample of each other's, together."""
        return Guesses(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def guess(used: ArrayLike, others: ArrayLike, rng: np.random.Generator) -> Guesses:
    """Which sample of a pair was used is guessed from two scores, of which that of the used one should be larger.

    Pairs are drawn at random, as many as the smaller side allows; scores that are equal leave it to a coin.
    """
    pairs = min(np.size(used), np.size(others))
    one, other = (rng.permutation(np.asarray(side, dtype=np.float64))[:pairs] for side in (used, others))
    right = np.where(one == other, rng.random(pairs) < 0.5, one > other)
    return Guesses(pairs, pairs, int(right.sum()))


def p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """How probable at most so many right guesses are under a claim of epsilon at delta.

    Theorem 5.2 of Steinke, Nasr and Jagielski (2023), whose procedure of appendix D this is: P[B >= v] + 2 m delta
    max_i P[v > B >= v - i] / i for B binomial with r guesses, v right ones and m pairs.
    """
    made, right = guesses.made, guesses.right
    coins = binom(made, 1 / (1 + math.exp(-epsilon)))
    chance = float(coins.sf(right - 1))
    if delta and right:
        steps = np.arange(1, right + 1)
        chance += 2 * guesses.pairs * delta * float((np.cumsum(coins.pmf(right - steps)) / steps).max())
    return min(1.0, chance)


def epsilon_at_least(guesses: Guesses, delta: float, added: bool = False) -> float:
    """The largest epsilon that is refuted at `CONFIDENCE`: with this probability, no smaller one holds at `delta`.

    added: it is one of adding or removing a sample. To replace one is to do both, which is bounded by 2 epsilon at
    (1 + e^epsilon) delta.
    """
    level = 1 - CONFIDENCE

    def gap(epsilon: float) -> float:
        if added:
            return p_value(guesses, 2 * epsilon, (1 + math.exp(epsilon)) * delta) - level
        return p_value(guesses, epsilon, delta) - level

    if gap(0.0) >= 0:
        return 0.0
    return LARGEST if gap(LARGEST) < 0 else float(brentq(gap, 0.0, LARGEST, xtol=1e-6))
