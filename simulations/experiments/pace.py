"""How long the arms of a comparison that are left will take, by those that are done."""

from collections.abc import Mapping, Sequence
from statistics import median

from fedmutual.course import roughly
from simulations.experiments.methods import RECIPES

Name = tuple[str, int]
"""(method, seed) of an arm."""


class Pace:
    """The arms that are left, and how long those of this call took. Arms of one process run `at_once` at a time,
    federated ones one after the other."""

    def __init__(self, left: Sequence[Name], at_once: int):
        self.left, self.at_once = list(left), at_once
        self.seconds: dict[Name, float] = {}

    def finished(self, arm: Name, seconds: float) -> None:
        """`arm` is done, and took so long by itself."""
        self.left.remove(arm)
        self.seconds[arm] = seconds

    def in_words(self) -> str:
        """7 arms left, about 12 min; the federated ones apart as long as none of them is done. Empty at the end."""
        if not self.left:
            return ""
        ways = {federated: [arm for arm in self.left if RECIPES[arm[0]].federated == federated] for federated in (0, 1)}
        times = {federated: self._seconds(arms) for federated, arms in ways.items() if arms}
        known = [seconds for seconds in times.values() if seconds is not None]
        said = f"{len(self.left)} {'arm' if len(self.left) == 1 else 'arms'} left"
        if not known:
            return said
        without = "" if len(known) == len(times) else f" without the {len(ways[1])} federated"
        return f"{said}, about {roughly(sum(known))}{without}"

    def _seconds(self, arms: Sequence[Name]) -> float | None:
        """Of arms that are run in one way; None where none of that way is done."""
        federated = RECIPES[arms[0][0]].federated
        done = {arm: seconds for arm, seconds in self.seconds.items() if RECIPES[arm[0]].federated == federated}
        if not done:
            return None
        return sum(_typical(arm, done) for arm in arms) / (1 if federated else self.at_once)


def _typical(arm: Name, done: Mapping[Name, float]) -> float:
    """Seconds of arms of the same method, else of all: their median."""
    same = [seconds for (method, _), seconds in done.items() if method == arm[0]]
    return median(same or done.values())
