"""How far a training is: the time that it will still take, and the class that fares worst, as each round tells."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

LAST = 10
"""The rounds whose median says how long the next ones take. The first, in which processes start, soon weighs nothing in
it, and it follows a machine that others make busy."""


class OnPhase(Protocol):
    """Is called when a phase of a longer work begins: its name, and how many of which units it has and has done."""

    def __call__(self, what: str, total: int = 0, unit: str = "", done: int = 0) -> None: ...


def seconds_left(durations: Sequence[float], left: int) -> float | None:
    """`left` times the median of the `LAST` durations, in seconds; None where there is none to go by."""
    return left * median(durations[-LAST:]) if durations else None


def roughly(seconds: float) -> str:
    """Seconds as an estimate deserves them: 8 s, 40 s, 3 min, 2 h 10 min, 3 days."""
    if seconds < 57.5:
        return f"{seconds:.0f} s" if seconds < 10 else f"{5 * round(seconds / 5)} s"
    if (minutes := round(seconds / 60)) < 60:
        return f"{minutes} min"
    if (tens := round(minutes / 10)) < 6 * 48:
        return f"{tens // 6} h {10 * (tens % 6)} min" if tens % 6 else f"{tens // 6} h"
    return f"{round(minutes / 1440)} days"


@dataclass
class Course:
    """A training as far as it has come; it takes the lines of the history, which know `round`, `class` and so on.

    rounds: how many there are to be; done: the last one that is over; durations: seconds of each; held_out: {class: the
    last loss on samples that are kept from training}.
    """

    rounds: int
    done: int = 0
    durations: list[float] = field(default_factory=list)
    held_out: dict[int, float] = field(default_factory=dict)

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Take in a round, or several in their order."""
        for line in lines:
            if line["round"] > self.done:
                self.done = line["round"]
                self.durations += [line["round_seconds"]] if line.get("round_seconds") is not None else []
            if line.get("held_out") is not None:
                self.held_out[line["class"]] = line["held_out"]

    @property
    def seconds_left(self) -> float | None:
        """Of training, an estimate; None before there is a round to go by."""
        return seconds_left(self.durations, max(0, self.rounds - self.done))

    @property
    def left_in_words(self) -> str:
        """about 3 min left; empty where nothing is left or known."""
        return f"about {roughly(seconds)} left" if (seconds := self.seconds_left) else ""

    def worst_in_words(self, names: Sequence[str] = ()) -> str:
        """worst held-out loss 0.312 (newt); empty where there is none. Without names a class is its number."""
        if not self.held_out:
            return ""
        y = max(self.held_out, key=lambda y: self.held_out[y])
        name = " ".join(names[y].split()) if y < len(names) else f"class {y}"
        return f"worst held-out loss {self.held_out[y]:.3g} ({name})"

    def in_words(self, names: Sequence[str] = ()) -> str:
        """about 3 min left, worst held-out loss 0.312 (newt)."""
        return ", ".join(filter(None, (self.left_in_words, self.worst_in_words(names))))
