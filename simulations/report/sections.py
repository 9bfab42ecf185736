"""Tables that compare the quality of arms: an overview, each measure class by class, and paired differences."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fedmutual.evaluation import METRICS
from fedmutual.evaluation.intervals import Estimate
from simulations.report.comparison import QUANTILES, Comparison, Of, signed
from simulations.report.missing import measured
from simulations.report.tables import (
    FEW,
    Table,
    estimate_cell,
    grouped,
    head_of,
    one_worst,
    rarest_first,
    samples_behind,
    small,
)
from simulations.report.words import NOTHING, duration, percent, size, whole
from simulations.runs.arms import Arm


@dataclass(frozen=True)
class MetricTable:
    """One measure of every arm and class; `measured` says whether any has a value."""

    metric: str
    measured: bool
    table: Table


@dataclass(frozen=True)
class Differences:
    """One measure's paired differences to the arm `other`."""

    metric: str
    other: str
    table: Table


def overview(arms: Comparison) -> Table:
    """An arm a row: the headline metric and its paired differences, copies, what leaks, and what cannot be equal."""
    if arms.headline is None:
        return Table()
    cells = {arm.label: _overview_cells(arms, arm, arms.headline) for arm in arms.arms}
    rows = grouped(arms.arms, lambda arm: [arm.label, *cells[arm.label].values()])
    return Table(["arm", *cells[arms.arms[0].label]], rows)


def _overview_cells(arms: Comparison, arm: Arm, metric: str) -> dict[Markup, str]:
    """{head of a column: the arm's cell}."""
    tail = "rarest" if arms.ends else "worst"
    cells: dict[Markup, str] = {
        small(arms.title("worst"), metric): estimate_cell(
            arms.value(arm, metric, "worst"), one_worst(arms, arm, metric)
        )
    }
    for name in ("isolated", "pooled"):
        if other := arms.arm(name):
            difference = arms.versus(arm, other, metric, "worst")
            cells[small(f"against {name}", arms.title("worst"))] = _verdict(arms, difference, metric)
    for of in (of for of in arms.summaries[1:] if of not in QUANTILES):
        cells[small(arms.title(of), metric)] = estimate_cell(arms.value(arm, metric, of))
    if "memorisation" in arms.metrics:
        cells[small("near copies", arms.title(tail))] = _share(arms.value(arm, "memorisation", tail))
    if arms.audited:
        cells[small("membership AUC", arms.title(tail))] = estimate_cell(arms.leak(arm, tail))
        cells[small("regenerated", arms.title(tail))] = _share(arms.extracted(arm, tail))
    cells[small("parameters")] = whole(arms.cost(arm, "parameters"))
    cells[small("bytes", "both ways")] = size(arms.cost(arm, "bytes"))
    cells[small("training", "all clients")] = duration(arms.cost(arm, "seconds"))
    return cells


def _share(value: Estimate | None) -> str:
    return percent(value.mean if value else None)


def _verdict(arms: Comparison, difference: Estimate | None, metric: str) -> Markup:
    if difference is None:
        return small(NOTHING)
    kind, amount = arms.judge(difference, metric)
    if kind in ("better", "worse"):
        return small(amount, kind)
    return small("no difference", "beyond chance", f"({amount})") if amount else small("no difference")


def metric_tables(arms: Comparison) -> list[MetricTable]:
    """A table for each metric: a column for each of a few arms, or a row for each of many."""
    make = _arms_across if len(arms.arms) <= FEW else _arms_down
    return [
        MetricTable(metric, any(arm.summaries(metric) for arm in arms.arms), make(arms, metric))
        for metric in arms.metrics
    ]


def _arms_across(arms: Comparison, metric: str) -> Table:
    """The worst class, the mean, then a row for each class; of many classes quantiles, the rarest and the largest."""
    names = [_short_names([arms.classes[y] for y in arm.worst_classes(metric)]) for arm in arms.arms]
    rows: list[list[Any]] = []
    shown: list[Of] = ["worst", "mean", *QUANTILES, *arms.ends] if arms.many else ["worst", "mean", *arms.each_class]
    for of in shown:
        behind = ["", ""] if isinstance(of, str) else [whole(arms.counts.get(of)), whole(arms.real.get(of))]
        rows.append([arms.title(of), *behind, *_compared(arms, metric, of, names)])
    return Table(["class", "train", "real", *(head_of(arm) for arm in arms.arms)], rows)


def _arms_down(arms: Comparison, metric: str) -> Table:
    """The worst class, the other summaries, then a column for each class, the rarest first, unless they are many."""
    shown: list[Of] = [*arms.summaries, *rarest_first(arms)]
    names = [one_worst(arms, arm, metric) for arm in arms.arms]
    columns = [_compared(arms, metric, of, names) for of in shown]
    return Table(_class_heads(arms, shown), _down(arms.arms, columns))


def together(arms: Comparison) -> Table:
    """Measures of the samples of all classes together: a column for each, an arm a row."""
    columns = [_compared(arms, metric, "all") for metric in arms.together]
    return Table(["arm", *arms.together], _down(arms.arms, columns) if columns else [])


def _compared(arms: Comparison, metric: str, of: Of, worst_names: Sequence[str] = ()) -> list[Markup]:
    """A cell for each arm: its value, the best of them in bold and starred; `worst_names` stand below a worst class."""
    values = [arms.value(arm, metric, of) for arm in arms.arms]
    notes = list(worst_names) if of == "worst" else [""] * len(values)
    notes = [
        note if value else _missing_note(arm, metric, of)
        for note, value, arm in zip(notes, values, arms.arms, strict=True)
    ]
    known = [value.mean for value in values if value]
    best = (min if metric in METRICS and METRICS[metric].larger_is_worse else max)(known) if len(known) > 1 else None
    if best is not None and known.count(best) > 1:
        best = None
    return [
        estimate_cell(value, note, best=value is not None and value.mean == best)
        for value, note in zip(values, notes, strict=True)
    ]


def _missing_note(arm: Arm, metric: str, of: Of) -> str:
    if isinstance(of, int):
        return "" if any(measured(run, of) for run in arm.runs) else "missing"
    return "a class is missing" if of in ("worst", "mean") and arm.summaries(metric) else ""


def _down(arms: Sequence[Arm], columns: Sequence[Sequence[Markup]]) -> list[list[Any]]:
    """Columns with a cell for each arm as rows, one for each arm."""
    cells = dict(zip((arm.label for arm in arms), zip(*columns, strict=True), strict=True))
    return grouped(arms, lambda arm: [arm.label, *cells[arm.label]])


def _class_heads(arms: Comparison, shown: Sequence[Of]) -> list[Any]:
    return ["arm", *(small(arms.title(of), *samples_behind(arms, of)) for of in shown)]


def differences(arms: Comparison) -> list[Differences]:
    """For each metric and each arm that the others are compared with, the paired differences: rows are arms."""
    shown: list[Of] = [*arms.summaries, *rarest_first(arms)]
    head = _class_heads(arms, shown)
    tables = []
    for metric in arms.metrics:
        for other in filter(None, map(arms.arm, ("isolated", "pooled"))):

            def row(arm: Arm, metric: str = metric, other: Arm = other) -> list[Any]:
                paired = [arms.versus(arm, other, metric, of) for of in shown]
                return [arm.label, *(signed(value.mean, value.half) if value else NOTHING for value in paired)]

            others = [arm for arm in arms.arms if arm is not other]
            tables.append(Differences(metric, other.label, Table(head, grouped(others, row))))
    return tables


def _short_names(names: Sequence[str]) -> str:
    """class 9; class 8, 9; class 5 and 3 more."""
    if not names:
        return ""
    return f"class {', '.join(names)}" if len(names) < 3 else f"class {names[0]} and {len(names) - 1} more"
