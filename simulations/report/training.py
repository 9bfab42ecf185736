"""The course of the training: curves of what the history recorded, a panel a class."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np
from markupsafe import Markup

from fedmutual.methods import DATA
from simulations.report.line_charts import Axis, Series, line_chart, rounds_axis, swatch, value_axis
from simulations.report.tables import FEW, head_of
from simulations.runs.arms import Arm
from simulations.runs.folder import CURVES

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class CurveGroup:
    """Arms that share a row of panels; `charts` are (class, figure)."""

    title: str
    arms: list[Markup]
    charts: list[tuple[str, Markup]]


@dataclass(frozen=True)
class Curves:
    """One quantity of the history, all panels on one scale; with `bands` a panel shows `BANDS` and not a class."""

    quantity: str
    log: bool
    groups: list[CurveGroup]
    bands: bool = False


BANDS = {"highest of any class": 1.0, "a quarter above": 0.75, "median": 0.5, "a quarter below": 0.25, "lowest": 0.0}
"""Lines that stand for many classes: {name: quantile over the classes of each round}."""


def sharing(arms: Sequence[Arm]) -> list[tuple[str, list[Arm]]]:
    """(title, arms) that share a drawing: all of a few arms, else those that do the same with the data."""
    if len(arms) <= FEW:
        return [("", list(arms))]
    groups = [(name, [arm for arm in arms if arm.data == data]) for data, name in DATA.items()]
    return [(name, group) for name, group in groups if group]


def curves(arms: Sequence[Arm]) -> list[Curves]:
    """For each quantity of the history a panel a class, all panels on one scale; many arms in a row of panels a group.

    A line for each run, or where arms are many one for each arm, the mean over its seeds. A mutual term that had no
    weight (beta = 0) is left out: nobody minimised it.
    """
    sections = []
    for quantity in CURVES:
        lines = {arm.label: _lines(arm, quantity, averaged=len(arms) > FEW) for arm in arms}
        every = [point for of_arm in lines.values() for _, points in of_arm for point in points]
        if not every:
            continue
        across, up = rounds_axis(x for x, _ in every), value_axis(y for _, y in every)
        groups = []
        for title, group in sharing(arms):
            shown = [arm for arm in group if lines[arm.label]]
            if shown:
                groups.append(_group(title, shown, lines, quantity, across, up))
        sections.append(Curves(quantity, up.log, groups))
    return sections


def quantile_curves(arms: Sequence[Arm]) -> list[Curves]:
    """For each quantity of the history a panel an arm, with `BANDS` over the classes of its first run."""
    sections = []
    for quantity in CURVES:
        lines = {arm.label: found for arm in arms if (found := _bands(arm, quantity))}
        every = [point for of_arm in lines.values() for points in of_arm for point in points]
        if not every:
            continue
        across, up = rounds_axis(x for x, _ in every), value_axis(y for _, y in every)
        charts = [
            (
                label,
                line_chart(
                    [Series(style, points) for style, points in enumerate(of_arm)],
                    across,
                    up,
                    f"{quantity} with {label} over rounds: {', '.join(BANDS)}",
                ),
            )
            for label, of_arm in lines.items()
        ]
        heads = [swatch(style) + Markup(" {}").format(name) for style, name in enumerate(BANDS)]
        sections.append(Curves(quantity, up.log, [CurveGroup("", heads, charts)], bands=True))
    return sections


def _bands(arm: Arm, quantity: str) -> list[Points]:
    """The points of each of `BANDS`; none where the quantity was not recorded."""
    by_round: dict[int, list[float]] = {}
    for points in arm.runs[0].curve(quantity).values():
        for round_, value in points:
            by_round.setdefault(round_, []).append(value)
    if not by_round:
        return []
    rounds = sorted(by_round)
    table = np.array([np.quantile(by_round[round_], list(BANDS.values())) for round_ in rounds])
    return [[(float(round_), float(value)) for round_, value in zip(rounds, column, strict=True)] for column in table.T]


def _group(
    title: str,
    arms: Sequence[Arm],
    lines: dict[str, list[tuple[int, Points]]],
    quantity: str,
    across: Axis,
    up: Axis,
) -> CurveGroup:
    charts = []
    for y, name in enumerate(arms[0].runs[0].classes):
        series = [Series(arm.style, points) for arm in arms for of, points in lines[arm.label] if of == y]
        charts.append((name, line_chart(series, across, up, f"{quantity} of class {name} over rounds")))
    return CurveGroup(title, list(map(head_of, arms)), charts)


def _lines(arm: Arm, quantity: str, averaged: bool) -> list[tuple[int, Points]]:
    """(class, points) for each run of the arm, or of their mean at the rounds that all of them have."""
    lines: list[tuple[int, Points]] = [
        (y, [(float(k), value) for k, value in points]) for run in arm.runs for y, points in run.curve(quantity).items()
    ]
    if not averaged or len(arm.runs) == 1:
        return lines
    means: list[tuple[int, Points]] = []
    for y in dict.fromkeys(y for y, _ in lines):
        seeds = [dict(points) for of, points in lines if of == y]
        rounds = sorted(set.intersection(*map(set, seeds)))
        if rounds:
            means.append((y, [(k, mean(points[k] for points in seeds)) for k in rounds]))
    return means
