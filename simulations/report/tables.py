"""Tables of the page: cells, rows and headings, and how an arm and an estimate stand in them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from fedmutual.evaluation.intervals import Estimate
from fedmutual.methods import DATA
from simulations.report.comparison import Comparison, Of
from simulations.report.line_charts import swatch
from simulations.report.words import NOTHING, interval_parts, whole
from simulations.runs.arms import Arm

FEW = 4
"""So many arms stand side by side as columns; more of them are rows, and details are folded."""


@dataclass(frozen=True)
class Table:
    """The first cell of a row is its heading; a row of one cell begins a group."""

    head: list[Any] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)


def head_of(arm: Arm) -> Markup:
    """An arm's name behind a piece of its line."""
    return swatch(arm.style) + Markup(" {}").format(arm.label)


def small(main: str, *notes: str) -> Markup:
    """A cell's main words, and others small below them."""
    below = [Markup("<small>{}</small>").format(note) for note in notes if note]
    return Markup("{}").format(main) + Markup("").join(below)


def estimate_cell(value: Estimate | None, *notes: str, best: bool = False) -> Markup:
    """The mean, in bold and starred if it is the best of the arms, and ± half its interval small below it."""
    middle, half = interval_parts(value.mean, value.half) if value else (NOTHING, "")
    starred = Markup('<b>{}<span class="star" title="best of the arms"> ★</span></b>').format(middle)
    return small(starred if best else middle, half and f"±\N{NO-BREAK SPACE}{half}", *notes)


def grouped(arms: Sequence[Arm], row: Callable[[Arm], list[Any]]) -> list[list[Any]]:
    """`row(arm)` of every arm; where they differ in what is done with the data, under a heading for each."""
    rows: list[list[Any]] = []
    several, current = len({arm.data for arm in arms}) > 1, None
    for arm in arms:
        if several and arm.data != current:
            rows.append([DATA[arm.data]])
        current = arm.data
        rows.append(row(arm))
    return rows


def rarest_first(arms: Comparison) -> list[int]:
    """`Comparison.each_class`, the rarest first where their sizes are known."""
    return sorted(arms.each_class, key=lambda y: (arms.counts.get(y, 0), y))


def samples_behind(arms: Comparison, of: Of) -> list[str]:
    """4 train; 65 real; nothing for a summary."""
    if not isinstance(of, int):
        return []
    trained, real = arms.counts.get(of), arms.real.get(of)
    parts = [f"{trained} train" if trained is not None else "", f"{whole(real)} real" if real else ""]
    return list(filter(None, parts))


def one_worst(arms: Comparison, arm: Arm, metric: str) -> str:
    """The class that is worst with every seed, if there is one."""
    worst = arm.worst_classes(metric)
    return f"class {arms.classes[worst[0]]}" if len(worst) == 1 else ""
