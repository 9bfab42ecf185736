"""The sections of the page that hold arms against each other: numbers of a `Comparison` in, tables and figures out."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import mean
from typing import Any

from markupsafe import Markup

from fedmutual.evaluation import LARGER_IS_WORSE
from fedmutual.evaluation.intervals import Estimate
from simulations.report import comparison_figures, figures
from simulations.report.comparison import Comparison, Of, signed
from simulations.report.words import NOTHING, duration, estimated, interval, percent, size, whole
from simulations.runs.arms import Arm
from simulations.runs.folder import DATA

FEW = 4
"""So many arms stand side by side as columns; more of them are rows, and details are folded."""

Table = dict[str, list[Any]]
"""{"head": cells, "rows": lists of cells}; the first of a row is its heading, and a row of one cell begins a group."""


def head_of(arm: Arm) -> Markup:
    return figures.swatch(arm.style) + Markup(" {}").format(arm.label)


def small(main: str, *notes: str) -> Markup:
    """A cell's main words, and others small below them."""
    below = [Markup("<small>{}</small>").format(note) for note in notes if note]
    return Markup("{}").format(main) + Markup("").join(below)


def _estimate(value: Estimate | None, *notes: str) -> Markup:
    """The mean, and ± half its interval small below it."""
    if value is None:
        return Markup(NOTHING)
    middle, _, half = interval(value.mean, value.half).partition(" ± ")
    return small(middle, half and f"±\N{NO-BREAK SPACE}{half}", *notes)


def grouped(arms: Sequence[Arm], row: Callable[[Arm], list[Any]]) -> list[list[Any]]:
    """`row(arm)` of every arm; where they differ in what is done with the data, under a heading for each."""
    rows, several = [], len({arm.data for arm in arms}) > 1
    for before, arm in pairwise([None, *arms]):
        if several and (before is None or before.data != arm.data):
            rows.append([DATA[arm.data]])
        rows.append(row(arm))
    return rows


def overview(arms: Comparison) -> Table:
    """An arm a row: the headline metric and its paired differences, copies, what leaks, and what cannot be equal."""
    if arms.headline is None:
        return {"head": [], "rows": []}
    cells = {arm.label: _overview_cells(arms, arm, arms.headline) for arm in arms.arms}
    rows = grouped(arms.arms, lambda arm: [arm.label, *cells[arm.label].values()])
    return {"head": ["arm", *cells[arms.arms[0].label]], "rows": rows}


def _overview_cells(arms: Comparison, arm: Arm, metric: str) -> dict[Markup, Any]:
    """{head of a column: the arm's cell}."""
    tail = "rarest" if arms.ends else "worst"
    cells = {
        small(arms.title("worst"), metric): _estimate(arms.value(arm, metric, "worst"), _one_worst(arms, arm, metric))
    }
    for name in ("isolated", "pooled"):
        if other := arms.arm(name):
            difference = arms.versus(arm, other, metric, "worst")
            cells[small(f"against {name}", arms.title("worst"))] = _verdict(arms, difference, metric)
    for of in arms.summaries[1:]:
        cells[small(arms.title(of), metric)] = _estimate(arms.value(arm, metric, of))
    if "memorisation" in arms.metrics:
        copies = arms.value(arm, "memorisation", tail)
        cells[small("near copies", arms.title(tail))] = percent(copies and copies.mean)
    if arms.audited:
        regenerated = arms.extracted(arm, tail)
        cells[small("membership AUC", arms.title(tail))] = _estimate(arms.leak(arm, tail))
        cells[small("regenerated", arms.title(tail))] = percent(regenerated and regenerated.mean)
    cells[small("parameters")] = whole(arms.cost(arm, "parameters"))
    cells[small("bytes", "both ways")] = size(arms.cost(arm, "bytes"))
    cells[small("training", "all clients")] = duration(arms.cost(arm, "seconds"))
    return cells


def _verdict(arms: Comparison, difference: Estimate | None, metric: str) -> Markup:
    if difference is None:
        return small(NOTHING)
    kind, amount = arms.judge(difference, metric)
    if kind in ("better", "worse"):
        return small(amount, kind)
    return small("no difference", "beyond chance", f"({amount})") if amount else small("no difference")


def _one_worst(arms: Comparison, arm: Arm, metric: str) -> str:
    """The class that is worst with every seed, if there is one."""
    worst = arm.worst_classes(metric)
    return f"class {arms.classes[worst[0]]}" if len(worst) == 1 else ""


def tradeoff(arms: Comparison) -> dict[str, Any] | None:
    """The picture of quality, leakage and bytes, wide and narrow, and the arms that it lacks."""
    metric, tail = arms.headline, "rarest" if arms.ends else "worst"
    points, lacking = [], []
    for arm in arms.arms:
        value = metric and arms.value(arm, metric, "worst")
        leak, moved = arms.leak(arm, tail), arms.cost(arm, "bytes")
        if not value or not leak or moved is None:
            lacking.append(arm.label)
            continue
        told = f"{metric} {estimated(value)}, AUC {estimated(leak)}, {size(moved)}"
        where = (leak.mean, leak.half, value.mean, value.half, moved)
        points.append(comparison_figures.Bubble(arm.label, _group(arm), *where, told))
    if not points:
        return None
    words = (f"membership AUC, {arms.title(tail)}: left is better", f"{metric} of the worst class: low is better")
    told = "; ".join(f"{point.label}: {point.told}" for point in points)
    draw = [comparison_figures.bubbles(points, *words, told, *room) for room in ((720, 430), (350, 400))]
    sizes = [point.bytes for point in points]
    groups = [(k, name) for k, name in enumerate(DATA.values()) if any(point.group == k for point in points)]
    return {
        "wide": draw[0],
        "narrow": draw[1],
        "lacking": lacking,
        "metric": metric,
        "classes": arms.title(tail),
        "groups": groups,
        "bytes": (size(min(sizes)), size(max(sizes))),
    }


def _group(arm: Arm) -> int:
    return list(DATA).index(arm.data)


def dots(arms: Comparison) -> dict[str, Any] | None:
    """Every arm's headline metric with its interval: a panel for each summary, and for each class, rarest first."""
    metric = arms.headline
    if metric is None:
        return None
    summaries = ("worst", "rarest", "largest") if arms.ends else ("worst", "mean")
    panels = {of: [arms.value(arm, metric, of) for arm in arms.arms] for of in (*summaries, *_rarest_first(arms))}
    panels = {of: values for of, values in panels.items() if any(values)}
    every = [value for values in panels.values() for value in values if value]
    scale = comparison_figures.dots_axis(value.mean for value in every)
    room = max(len(estimated(value)) for value in every)
    marked = [arm for name in ("isolated", "pooled") if (arm := arms.arm(name))]

    def panel(of: Of) -> tuple[str, str, Markup]:
        rows = [
            comparison_figures.Dot(arm.label, _group(arm), value and value.mean, value and value.half, estimated(value))
            for arm, value in zip(arms.arms, panels[of], strict=True)
        ]
        marks = [row.value for row, arm in zip(rows, arms.arms, strict=True) if arm in marked and row.value is not None]
        told = f"{metric}, {arms.title(of)}: " + "; ".join(f"{row.label} {row.text}" for row in rows)
        return arms.title(of), _samples_behind(arms, of), comparison_figures.dots(rows, scale, marks, room, told)

    return {
        "metric": metric,
        "log": scale.log,
        "marked": [arm.label for arm in marked],
        "summaries": [panel(of) for of in panels if isinstance(of, str)],
        "classes": [panel(of) for of in panels if isinstance(of, int)],
    }


def _rarest_first(arms: Comparison) -> list[int]:
    """All classes, the rarest first where their sizes are known."""
    return sorted(range(len(arms.classes)), key=lambda y: (arms.counts.get(y, 0), y))


def _samples_behind(arms: Comparison, of: Of) -> str:
    if not isinstance(of, int):
        return ""
    trained, real = arms.counts.get(of), arms.real.get(of)
    told = [f"{trained} train" if trained is not None else "", f"{whole(real)} real" if real else ""]
    return ", ".join(filter(None, told))


def _cells(metric: str, values: Sequence[Estimate | None], notes: Sequence[str] = ()) -> list[Markup]:
    """Cells of arms that are held against each other: the best in bold and starred."""
    known = [value.mean for value in values if value]
    best = (min if metric in LARGER_IS_WORSE else max)(known, default=None)
    alone = known.count(best) == 1 and len(known) > 1
    cells = []
    for value, note in zip(values, notes or [""] * len(values), strict=True):
        middle, _, half = interval(value.mean, value.half).partition(" ± ") if value else (NOTHING, "", "")
        starred = Markup('<b>{}<span class="star" title="best of the arms"> ★</span></b>').format(middle)
        cells.append(
            small(
                starred if value and alone and value.mean == best else middle,
                half and f"±\N{NO-BREAK SPACE}{half}",
                note,
            )
        )
    return cells


def metric_tables(arms: Comparison) -> list[dict[str, Any]]:
    """A table for each metric: a column for each of a few arms, or a row for each of many."""
    make = _arms_across if len(arms.arms) <= FEW else _arms_down
    return [{"metric": metric, **make(arms, metric)} for metric in arms.metrics]


def _arms_across(arms: Comparison, metric: str) -> Table:
    """The worst class, the mean, then a row for each class."""
    names = [_short_names([arms.classes[y] for y in arm.worst_classes(metric)]) for arm in arms.arms]
    rows = []
    for of in ("worst", "mean", *range(len(arms.classes))):
        behind = ["", ""] if isinstance(of, str) else [whole(arms.counts.get(of)), whole(arms.real.get(of))]
        cells = _cells(metric, [arms.value(arm, metric, of) for arm in arms.arms], names if of == "worst" else ())
        rows.append([arms.title(of), *behind, *cells])
    return {"head": ["class", "train", "real", *(head_of(arm) for arm in arms.arms)], "rows": rows}


def _arms_down(arms: Comparison, metric: str) -> Table:
    """The worst class, the other summaries, then a column for each class, the rarest first."""
    shown = (*arms.summaries, *_rarest_first(arms))
    names = [_one_worst(arms, arm, metric) for arm in arms.arms]
    columns = [
        _cells(metric, [arms.value(arm, metric, of) for arm in arms.arms], names if of == "worst" else ())
        for of in shown
    ]
    cells = dict(zip((arm.label for arm in arms.arms), zip(*columns, strict=True), strict=True))
    head = ["arm", *(small(arms.title(of), _samples_behind(arms, of)) for of in shown)]
    return {"head": head, "rows": grouped(arms.arms, lambda arm: [arm.label, *cells[arm.label]])}


def together(arms: Comparison) -> Table:
    """Measures of the samples of all classes together: a column for each, an arm a row."""
    columns = [_cells(metric, [arms.value(arm, metric, "all") for arm in arms.arms]) for metric in arms.together]
    cells = dict(zip((arm.label for arm in arms.arms), zip(*columns, strict=True), strict=bool(columns)))
    rows = grouped(arms.arms, lambda arm: [arm.label, *cells[arm.label]]) if columns else []
    return {"head": ["arm", *arms.together], "rows": rows}


def differences(arms: Comparison) -> list[dict[str, Any]]:
    """For each metric and each arm that the others are held against, the paired differences: rows are arms."""
    shown = (*arms.summaries, *_rarest_first(arms))
    head = ["arm", *(small(arms.title(of), _samples_behind(arms, of)) for of in shown)]
    tables = []
    for metric in arms.metrics:
        for other in filter(None, map(arms.arm, ("isolated", "pooled"))):

            def row(arm: Arm, metric: str = metric, other: Arm = other) -> list[Any]:
                found = [arms.versus(arm, other, metric, of) for of in shown]
                return [arm.label, *(signed(value.mean, value.half) if value else NOTHING for value in found)]

            others = [arm for arm in arms.arms if arm is not other]
            tables.append({"metric": metric, "other": other.label, "head": head, "rows": grouped(others, row)})
    return tables


def _short_names(names: Sequence[str]) -> str:
    """class 9; class 8, 9; class 5 and 3 more."""
    if not names:
        return ""
    return f"class {', '.join(names)}" if len(names) < 3 else f"class {names[0]} and {len(names) - 1} more"


def leakage(arms: Comparison) -> dict[str, Any] | None:
    """What a peer learns of each class, an arm a row, the rarest class first: AUC, and share regenerated."""
    audited = [arm for arm in arms.arms if any(run.audit for run in arm.runs)]
    if not audited:
        return None
    rows = [row for arm in audited for run in arm.runs for row in run.audit]
    members = {row["class"]: (row.get("members"), row.get("non_members")) for row in rows if row["metric"] == "auc"}
    ends, classes = list(arms.ends), _rarest_first(arms)
    head = ["arm", *map(arms.title, ends)]
    for y in classes:
        ours, others = members.get(y, (None, None))
        head.append(small(arms.classes[y], f"{whole(ours)} against {whole(others)}" if ours is not None else ""))

    def auc(arm: Arm, of: Of) -> Markup:
        bounds = arms.leak_bounds(arm, of) if isinstance(of, int) else None
        return _estimate(arms.leak(arm, of), f"{bounds[0]:.2f} to {bounds[1]:.2f}" if bounds else "")

    def share(arm: Arm, of: Of) -> str:
        value = arms.extracted(arm, of)
        return percent(value and value.mean)

    shuffled = [value for arm in audited for value in arms.shuffled(arm)]
    return {
        "auc": {
            "head": head,
            "rows": grouped(audited, lambda arm: [arm.label, *(auc(arm, of) for of in (*ends, *classes))]),
        },
        "share": {
            "head": head,
            "rows": grouped(audited, lambda arm: [arm.label, *(share(arm, of) for of in (*ends, *classes))]),
        },
        "shuffled": (mean(shuffled), min(shuffled), max(shuffled)) if shuffled else None,
        "attacks": sorted({key[2] for by_class in arms.attacks.values() for key in by_class.values() if key}),
    }


def budgets(arms: Comparison) -> Table:
    """What every arm got for each class, which should be equal, and what cannot be."""

    def row(arm: Arm) -> list[Any]:
        each = [_budget(arm, key) for key in ("gradient_steps_per_class", "samples_seen_per_class")]
        moved = [size(arms.cost(arm, key)) for key in ("bytes_down", "bytes_up")]
        return [arm.label, *each, whole(arms.cost(arm, "parameters")), *moved, duration(arms.cost(arm, "seconds"))]

    equal = [small(name, "for each class") for name in ("gradient steps", "samples seen")]
    head = ["arm", *equal, "parameters", "received", "sent", small("training", "all clients")]
    return {"head": head, "rows": grouped(arms.arms, row)}


def _budget(arm: Arm, key: str) -> str:
    """One number, or from the smallest to the largest where classes or seeds differ."""
    told = [run.facts.get(key) for run in arm.runs]
    numbers = [n for value in told for n in (value if isinstance(value, list) else [value]) if n is not None]
    ends = sorted({min(numbers), max(numbers)}) if numbers else [None]
    return " to ".join(map(whole, ends))


def unequal(arms: Sequence[Arm]) -> list[str]:
    """Budgets that differ between arms, controls apart, as they must not where arms are compared."""
    words = {"gradient_steps_per_class": "gradient steps", "samples_seen_per_class": "samples seen"}
    trained = [arm for arm in arms if arm.data != "control" and arm.runs[0].facts.get("gradient_steps_per_class")]
    return [word for key, word in words.items() if len({_budget(arm, key) for arm in trained}) > 1]
