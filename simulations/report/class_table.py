"""All classes in one table that is searched and sorted in the browser, where they are too many for tables of their own.

The page holds the rows as JSON and shows the first of them; without scripts, and on paper, these are the worst.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from simulations.report.comparison import Comparison
from simulations.report.tables import FEW
from simulations.report.words import duration, number, size, whole
from simulations.runs.arms import Arm

FIRST = 20
"""Rows that stand in the page itself."""


@dataclass(frozen=True)
class Column:
    """A head and {class: value}; `written` makes a cell of a value."""

    head: str
    values: dict[int, float]
    written: Callable[[float], str] = number


@dataclass(frozen=True)
class ClassTable:
    """head: the class's name, and a column each; first: the first rows' cells; by: what they are sorted by; data: all
    rows as JSON, {"cells": [[text]], "keys": [[number or null]]}, for a script of the page."""

    head: list[str]
    first: list[list[str]]
    by: str
    data: Markup
    count: int


def class_table(arms: Comparison) -> ClassTable | None:
    """The table, the worst classes first; None where classes are few."""
    if not arms.many:
        return None
    columns = _columns(arms)
    order = sorted(range(len(arms.classes)), key=lambda y: -columns[0].values.get(y, -math.inf)) if columns else []
    cells = [[arms.classes[y], *(_cell(column, y) for column in columns)] for y in order]
    keys = [[column.values.get(y) for column in columns] for y in order]
    text = json.dumps({"cells": cells, "keys": keys}, separators=(",", ":"))
    return ClassTable(
        head=["class", *(column.head for column in columns)],
        first=cells[:FIRST],
        by=columns[0].head if columns else "",
        data=Markup(text.replace("<", "\\u003c").replace("&", "\\u0026")),  # a name must not end the script
        count=len(order),
    )


def _cell(column: Column, y: int) -> str:
    return column.written(column.values[y]) if y in column.values else "–"


def _columns(arms: Comparison) -> list[Column]:
    """What the table is sorted by first; then samples, measures, leakage and costs, as far as there are any."""
    alone = len(arms.arms) == 1
    columns = [
        Column(_head(metric, arm, alone), _values(arms, arm, metric))
        for metric in (arms.metrics if alone else arms.metrics[:1])
        for arm in arms.arms
    ]
    for arm in arms.arms if len(arms.arms) <= FEW else []:
        leaks = {y: leak.mean for y in range(len(arms.classes)) if (leak := arms.leak(arm, y))}
        columns.append(Column(_head("AUC", arm, alone), leaks))
        columns.append(Column(_head("held-out loss", arm, alone), _held_out(arm)))
    if alone:
        columns += _costs(arms.arms[0])
    columns.append(Column("training samples", dict(arms.counts), whole))
    return [column for column in columns if column.values]


def _head(what: str, arm: Arm, alone: bool) -> str:
    return what if alone else f"{what}, {arm.label}"


def _values(arms: Comparison, arm: Arm, metric: str) -> dict[int, float]:
    found = {y: arms.value(arm, metric, y) for y in range(len(arms.classes))}
    return {y: value.mean for y, value in found.items() if value}


def _held_out(arm: Arm) -> dict[int, float]:
    """The last held-out loss of the arm's first run."""
    return {y: loss for y, loss in arm.runs[0].course.held_out.items() if math.isfinite(loss)}


def _costs(arm: Arm) -> list[Column]:
    """What each client received, sent and computed over all rounds of the first run."""
    kinds = {"received": ("bytes_down", size), "sent": ("bytes_up", size), "own compute": ("seconds", duration)}
    sums: dict[str, dict[int, float]] = {head: {} for head in kinds}
    for line in arm.runs[0].history:
        for head, (key, _) in kinds.items():
            if value := line[key]:
                sums[head][line.class_] = sums[head].get(line.class_, 0.0) + value
    return [Column(head, sums[head], written) for head, (_, written) in kinds.items()]
