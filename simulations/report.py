"""The report: one self-contained page, and table rows, made from run folders and from nothing else."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from fedmutual.config import RunConfig, UserError
from fedmutual.evaluation import LARGER_IS_WORSE
from simulations import comparison_figures, figures
from simulations.comparison import Comparison, Estimate, Of, training_counts
from simulations.runs import DATA, Arm, Run, arms_of, read_runs, read_samples
from simulations.words import NOTHING, duration, interval, number, percent, size, whole

FEW = 4
"""So many arms stand side by side as columns; more of them are rows, and details are folded."""

CURVES = ("held_out", "loss", "mutual", "grad_norm")
FAULTS = ("rejected", "missing", "error")

Table = dict[str, list[Any]]
"""{"head": cells, "rows": lists of cells}; the first of a row is its heading, and a row of one cell begins a group."""


# The answer


def answer(arms: Comparison) -> list[str]:
    """The comparison in three sentences; without what they need, which arm has the better worst class."""
    metric, found = arms.headline, arms.answer() if len(arms.arms) > 2 else None
    if metric is None:
        return ["No samples have been measured yet, so there is no answer. What is known so far is below."]
    worst = {arm.label: value for arm in arms.arms if (value := arms.value(arm, metric, "worst"))}
    sentences = found or _plainly(arms, metric, worst)
    if max(value.seeds for value in worst.values()) == 1:
        what = "Each rests" if len(worst) > 1 else "This rests"
        sentences.append(f"{what} on one seed, and one seed proves nothing: repeat with several before believing it.")
    return sentences


def _plainly(arms: Comparison, metric: str, worst: dict[str, Estimate]) -> list[str]:
    measured = [arm for arm in arms.arms if arm.label in worst]
    best, *others = sorted(measured, key=lambda arm: worst[arm.label].mean)
    value = f"at a distance of {number(worst[best.label].mean)} from real data ({metric}; 0 is best)"
    if not others:
        overall = number(arms.value(best, metric, "mean").mean)
        first = f"The worst class with {best.label} is {_worst_class(arms, best, metric)}, {value}."
        return [first, f"The mean over classes is {overall}."]
    sentences = [f"The worst class fares best with {best.label}: it is {_worst_class(arms, best, metric)}, {value}."]
    for arm in others:
        gap = _gap(worst[best.label].mean, worst[arm.label].mean, arms.versus(arm, best, metric, "worst"))
        sentences.append(f"With {arm.label} it is {_worst_class(arms, arm, metric)}, {gap}.")
    return sentences


def _worst_class(arms: Comparison, arm: Arm, metric: str) -> str:
    worst = arm.worst_classes(metric)
    names = " or ".join(arms.classes[y] for y in worst)
    if len(worst) > 1 or worst[0] not in arms.counts:
        return f"class {names}"
    return f"class {names} ({arms.counts[worst[0]]} training samples)"


def _gap(base: float, value: float, paired: Estimate | None) -> str:
    """How far another's worst class is from the best's, with an interval where seeds can be paired."""
    share = f" ({percent((value - base) / base)})" if base > 0 else ""
    text = f"at {number(value)}: {number(value - base)} higher{share}"
    if paired is None or paired.half is None:
        return text
    low, high = number(paired.mean - paired.half), number(paired.mean + paired.half)
    chance = ", so it may be chance" if paired.by_chance else ""
    return f"{text}; 95 % interval {low} to {high} over {paired.seeds} seeds{chance}"


# Sections


def _head(arm: Arm) -> Markup:
    return figures.swatch(arm.style) + Markup(" {}").format(arm.label)


def _small(main: str, *notes: str) -> Markup:
    """A cell's main words, and others small below them."""
    below = [Markup("<small>{}</small>").format(note) for note in notes if note]
    return Markup("{}").format(main) + Markup("").join(below)


def _estimate(value: Estimate | None, *notes: str) -> Markup:
    """The mean, and ± half its interval small below it."""
    if value is None:
        return Markup(NOTHING)
    middle, _, half = interval(value.mean, value.half).partition(" ± ")
    return _small(middle, half and f"± {half}", *notes)


def _grouped(arms: Sequence[Arm], row: Any) -> list[list[Any]]:
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
    rows = _grouped(arms.arms, lambda arm: [arm.label, *cells[arm.label].values()])
    return {"head": ["arm", *cells[arms.arms[0].label]], "rows": rows}


def _overview_cells(arms: Comparison, arm: Arm, metric: str) -> dict[Markup, Any]:
    """{head of a column: the arm's cell}."""
    tail = "rarest" if arms.ends else "worst"
    names = _short_names([arms.classes[y] for y in arm.worst_classes(metric)])
    cells = {_small(arms.title("worst"), metric): _estimate(arms.value(arm, metric, "worst"), names)}
    for name in ("isolated", "pooled"):
        if other := arms.arm(name):
            verdict = arms.verdict(arms.versus(arm, other, metric, "worst"), metric)
            cells[_small(f"against {name}", arms.title("worst"))] = verdict
    for of in arms.summaries[1:]:
        cells[_small(arms.title(of), metric)] = _estimate(arms.value(arm, metric, of))
    if "memorisation" in arms.metrics:
        copies = arms.value(arm, "memorisation", tail)
        cells[_small("near copies", arms.title(tail))] = percent(copies and copies.mean)
    if arms.audited:
        regenerated = arms.extracted(arm, tail)
        cells[_small("membership AUC", arms.title(tail))] = _estimate(arms.leak(arm, tail))
        cells[_small("regenerated", arms.title(tail))] = percent(regenerated and regenerated.mean)
    cells[_small("parameters")] = whole(arms.cost(arm, "parameters"))
    cells[_small("bytes", "both ways")] = size(arms.cost(arm, "bytes"))
    cells[_small("training", "all clients")] = duration(arms.cost(arm, "seconds"))
    return cells


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
        told = f"{metric} {value}, AUC {leak}, {size(moved)}"
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
    panels = {of: [(arm, arms.value(arm, metric, of)) for arm in arms.arms] for of in (*arms.summaries, *_rarest(arms))}
    panels = {of: found for of, found in panels.items() if any(value for _, value in found)}
    scale = comparison_figures.dots_axis(value.mean for found in panels.values() for _, value in found if value)
    marked = [arm for name in ("isolated", "pooled") if (arm := arms.arm(name))]

    def panel(of: Of) -> tuple[str, Markup, Markup]:
        rows = [
            comparison_figures.Dot(
                arm.label, _group(arm), value and value.mean, value and value.half, str(value or NOTHING)
            )
            for arm, value in panels[of]
        ]
        marks = [(arm.label, value.mean) for arm, value in panels[of] if arm in marked and value]
        told = "; ".join(f"{row.label} {row.text}" for row in rows)
        return arms.title(of), _samples_behind(arms, of), comparison_figures.dots(rows, scale, marks, told)

    return {
        "metric": metric,
        "log": scale.log,
        "marked": [arm.label for arm in marked],
        "summaries": [panel(of) for of in panels if isinstance(of, str)],
        "classes": [panel(of) for of in panels if isinstance(of, int)],
    }


def _rarest(arms: Comparison) -> list[int]:
    """All classes, the rarest first where their sizes are known."""
    return sorted(range(len(arms.classes)), key=lambda y: (arms.counts.get(y, 0), -y))


def _samples_behind(arms: Comparison, of: Of) -> str:
    if not isinstance(of, int):
        return ""
    trained, real = arms.counts.get(of), arms.real.get(of)
    told = [f"{trained} train" if trained is not None else "", f"{whole(real)} real" if real else ""]
    return ", ".join(filter(None, told))


def _cells(metric: str, values: Sequence[Estimate | None], notes: Sequence[str] = ()) -> list[Markup]:
    """Cells of arms that are held against each other: the best in bold and starred."""
    known = [value.mean for value in values if value]
    best = (min if metric in LARGER_IS_WORSE else max)(known) if len(set(known)) > 1 else None
    cells = []
    for value, note in zip(values, notes or [""] * len(values), strict=True):
        middle, _, half = interval(value.mean, value.half).partition(" ± ") if value else (NOTHING, "", "")
        starred = Markup('<b>{}<span class="star" title="best of the arms"> ★</span></b>').format(middle)
        cells.append(_small(starred if value and value.mean == best else middle, half and f"± {half}", note))
    return cells


def metric_tables(arms: Comparison) -> list[dict[str, Any]]:
    """A table for each metric: the worst class first, then the other summaries and each class.

    A column for each of a few arms; a row for each of many, with the rarest class first.
    """
    few, tables = len(arms.arms) <= FEW, []
    for metric in arms.metrics:
        notes = [_short_names([arms.classes[y] for y in arm.worst_classes(metric)]) for arm in arms.arms]
        lines = []
        summaries = ("worst", "mean") if few else arms.summaries
        for of in (*summaries, *(range(len(arms.classes)) if few else _rarest(arms))):
            cells = _cells(metric, [arms.value(arm, metric, of) for arm in arms.arms], notes if of == "worst" else ())
            lines.append((of, cells))
        if few:
            rows = [[arms.title(of), *_behind(arms, of), *cells] for of, cells in lines]
            head = ["class", "train", "real", *map(_head, arms.arms)]
        else:
            columns = dict(
                zip([arm.label for arm in arms.arms], zip(*(cells for _, cells in lines), strict=True), strict=True)
            )
            rows = _grouped(arms.arms, lambda arm, columns=columns: [arm.label, *columns[arm.label]])
            head = ["arm", *(_small(arms.title(of), _samples_behind(arms, of)) for of, _ in lines)]
        tables.append({"metric": metric, "head": head, "rows": rows})
    return tables


def _behind(arms: Comparison, of: Of) -> list[str]:
    return ["", ""] if isinstance(of, str) else [whole(arms.counts.get(of)), whole(arms.real.get(of))]


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
    ends, classes = [of for of in arms.ends], _rarest(arms)
    head = ["arm", *map(arms.title, ends)]
    for y in classes:
        ours, others = members.get(y, (None, None))
        head.append(_small(arms.classes[y], f"{whole(ours)} against {whole(others)}" if ours is not None else ""))

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
            "rows": _grouped(audited, lambda arm: [arm.label, *(auc(arm, of) for of in (*ends, *classes))]),
        },
        "share": {
            "head": head,
            "rows": _grouped(audited, lambda arm: [arm.label, *(share(arm, of) for of in (*ends, *classes))]),
        },
        "shuffled": (mean(shuffled), min(shuffled), max(shuffled)) if shuffled else None,
        "attacks": sorted({key[2] for by_class in arms.attacks.values() for key in by_class.values() if key}),
    }


def _together(arms: Sequence[Arm]) -> list[tuple[str, list[Arm]]]:
    """Arms that share a drawing: all of a few, else those that do the same with the data."""
    if len(arms) <= FEW:
        return [("", list(arms))]
    groups = [(name, [arm for arm in arms if arm.data == data]) for data, name in DATA.items()]
    return [(name, group) for name, group in groups if group]


def curves(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """For each quantity of the history a panel a class, all panels on one scale; many arms in a row of panels a group.

    A line for each run, or where arms are many one for each arm, the mean over its seeds. A mutual term that had no
    weight (beta = 0) is left out: nobody minimised it.
    """
    classes = arms[0].runs[0].classes
    sections = []
    for quantity in CURVES:
        lines = {arm.label: _lines(arm, quantity, averaged=len(arms) > FEW) for arm in arms}
        every = [point for found in lines.values() for _, points in found for point in points]
        if not every:
            continue
        across = figures.rounds_axis(x for x, _ in every)
        up = figures.value_axis(y for _, y in every)
        groups = []
        for title, group in _together(arms):
            shown = [arm for arm in group if lines[arm.label]]
            charts = []
            for y, name in enumerate(classes):
                series = [
                    figures.Series(arm.style, points) for arm in shown for of, points in lines[arm.label] if of == y
                ]
                charts.append((name, figures.line_chart(series, across, up, f"{quantity} of class {name} over rounds")))
            if shown:
                groups.append({"title": title, "arms": list(map(_head, shown)), "charts": charts})
        sections.append({"quantity": quantity, "log": up.log, "groups": groups})
    return sections


def _lines(arm: Arm, quantity: str, averaged: bool) -> list[tuple[int, list[tuple[float, float]]]]:
    """(class, points) for each run of the arm, or of their mean at the rounds that all of them have."""
    runs = [_points(run, quantity) for run in arm.runs]
    lines = [line for run in runs for line in run.items()]
    if not averaged or len(runs) == 1:
        return lines
    means = []
    for y in dict.fromkeys(y for y, _ in lines):
        found = [dict(points) for of, points in lines if of == y]
        rounds = sorted(set.intersection(*map(set, found)))
        if rounds:
            means.append((y, [(k, mean(points[k] for points in found)) for k in rounds]))
    return means


def _points(run: Run, quantity: str) -> dict[int, list[tuple[float, float]]]:
    points: dict[int, list[tuple[float, float]]] = {}
    for line in run.history:
        value, beta = line.get(quantity), line.get("beta")
        beta = run.settings.get("beta") if beta is None else beta
        if value is None or not math.isfinite(value) or (quantity == "mutual" and beta == 0):
            continue
        points.setdefault(line["class"], []).append((line["round"], value))
    return points


def samples(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """For each class its generated samples, an arm beside the other (its first seed), and real ones.

    Of many arms the largest, the middle and the rarest class alone: the run folders hold the others.
    """
    first = arms[0].runs[0]
    shape = tuple(first.facts.get("shape") or ())
    counts = training_counts(run for arm in arms for run in arm.runs)
    stores = {arm.label: read_samples(arm.runs[0].folder) for arm in arms}
    by_size = sorted(range(len(first.classes)), key=lambda y: (-counts.get(y, 0), y))
    chosen = by_size if len(arms) <= FEW else [by_size[0], by_size[len(by_size) // 2], by_size[-1]]
    sections = []
    for y in chosen if len(arms) > FEW else range(len(first.classes)):
        name = first.classes[y]
        real = next((store[f"real_{y}"] for store in stores.values() if f"real_{y}" in store), None)
        panels = []
        for title, group in _together(arms) if len(shape) != 3 else [("", arms)]:
            captions = {arm.style: _head(arm) for arm in group} | {None: "real" if len(shape) == 3 else title}
            drawn = {
                arm.style: store[f"generated_{y}"] for arm in group if f"generated_{y}" in (store := stores[arm.label])
            }
            panels += [(captions[style], figure) for style, figure in figures.sample_panels(shape, real, drawn, name)]
            panels += [  # without the samples themselves, the grids that the run drew of them
                (_head(arm), figures.picture(figures.png_address(path.read_bytes()), f"samples of class {name}"))
                for arm in group
                if arm.style not in drawn and (path := arm.runs[0].folder / f"samples/class-{y:03d}.png").exists()
            ]
        if panels:
            sections.append({"name": name, "count": counts.get(y), "panels": panels})
    return sections


def costs(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """For each arm the bytes that each client received and sent, and its own compute; means over seeds."""
    tables = []
    for arm in arms:
        sums = np.zeros((len(arm.runs[0].classes), 3))
        for line in (line for run in arm.runs for line in run.history):
            sums[line["class"]] += [line.get(key) or 0 for key in ("bytes_down", "bytes_up", "seconds")]
        if sums.any():
            sums /= len(arm.runs)
            clients = [("all clients", sums.sum(0)), *zip(arm.runs[0].classes, sums, strict=True)]
            rows = [[name, size(down), size(up), duration(own)] for name, (down, up, own) in clients]
            tables.append({"title": _head(arm), "head": ["client", "received", "sent", "own compute"], "rows": rows})
    return tables


def budgets(arms: Comparison) -> Table:
    """What every arm got for each class, which should be equal, and what cannot be."""

    def row(arm: Arm) -> list[Any]:
        each = [_budget(arm, key) for key in ("gradient_steps_per_class", "samples_seen_per_class")]
        moved = [size(arms.cost(arm, key)) for key in ("bytes_down", "bytes_up")]
        return [arm.label, *each, whole(arms.cost(arm, "parameters")), *moved, duration(arms.cost(arm, "seconds"))]

    equal = [_small(name, "for each class") for name in ("gradient steps", "samples seen")]
    head = ["arm", *equal, "parameters", "received", "sent", _small("training", "all clients")]
    return {"head": head, "rows": _grouped(arms.arms, row)}


def _budget(arm: Arm, key: str) -> str:
    """One number, or from the smallest to the largest where classes or seeds differ."""
    told = [run.facts.get(key) for run in arm.runs]
    numbers = [n for value in told for n in (value if isinstance(value, list) else [value]) if n is not None]
    ends = sorted({min(numbers), max(numbers)}) if numbers else [None]
    return " to ".join(map(whole, ends))


def times(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """For each run, or each of many arms, the wall time in three parts: the clients' compute, the rest of the rounds,
    the rest.

    The first is what perfect scheduling would need: the sum of the clients' own compute over the clients at once.
    """
    bars = []
    for title, runs in [(arm.label, arm.runs) for arm in arms] if len(arms) > FEW else _each(arms):
        parts = np.array([_parts(run) for run in runs if run.history])
        local, ideal, rounds, whole_time = parts.mean(0) if len(parts) else np.zeros(4)
        if not local or not rounds:
            continue
        named = [
            ("clients' compute", ideal),
            ("rest of the rounds", rounds - ideal),
            ("outside them", whole_time - rounds),
        ]
        at_once = runs[0].facts.get("clients_at_once") or 1
        ratio = rounds * at_once / local
        bar = {"title": title, "parts": named, "whole": whole_time, "local": local, "at_once": at_once, "ratio": ratio}
        bars.append(bar)
    return bars


def _parts(run: Run) -> tuple[float, float, float, float]:
    """Seconds: all clients' compute, the same spread over the clients at once, all rounds, everything."""
    local = sum(line.get("seconds") or 0 for line in run.history)
    rounds = sum({line["round"]: line.get("round_seconds") or 0 for line in run.history}.values())
    ideal = min(local / (run.facts.get("clients_at_once") or 1), rounds)
    return local, ideal, rounds, max(run.facts.get("wall_seconds") or 0, rounds)


def _each(arms: Sequence[Arm]) -> list[tuple[str, list[Run]]]:
    return [(title, [run]) for title, run in _titled(arms)]


def faults(arms: Sequence[Arm]) -> Table:
    """Every reply that was rejected, missing or an error, with its reason."""
    rows = [
        [title, line["round"], run.classes[line["class"]], line["status"], line.get("reason") or "–"]
        for title, run in _titled(arms)
        for line in run.history
        if line.get("status") in FAULTS
    ]
    return {"head": ["run", "round", "class", "status", "reason"], "rows": rows}


def _titled(arms: Sequence[Arm]) -> list[tuple[str, Run]]:
    return [(arm.title(run), run) for arm in arms for run in arm.runs]


def settings(arms: Sequence[Arm]) -> dict[str, Table]:
    """Settings `away` from their default in any arm, and `all`; where arms differ, each value and who has it."""
    defaults = RunConfig().settings()
    unknown = {key for arm in arms for key in arm.runs[0].settings} - set(defaults)
    away, every = [], []
    for key in [*defaults, *sorted(unknown)]:
        holders: dict[str, list[str]] = {}
        for arm in arms:
            value = ", ".join(dict.fromkeys(_literal(run.settings.get(key)) for run in arm.runs))
            holders.setdefault(value, []).append(arm.label)
        told = [value if len(holders) == 1 else f"{value}: {', '.join(labels)}" for value, labels in holders.items()]
        row = [key, Markup("<br>").join(told), _literal(defaults.get(key))]
        every.append(row)
        if set(holders) != {row[-1]} and key not in ("out", "store"):
            away.append(row)
    head = ["setting", "value", "default"]
    return {"away": {"head": head, "rows": away}, "all": {"head": head, "rows": every}}


def _literal(value: Any) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def runs_table(arms: Sequence[Arm]) -> Table:
    """What each run is, and how far it came."""
    rows = []
    for title, run in _titled(arms):
        facts, planned = run.facts, run.settings.get("rounds")
        rounds = f"{run.rounds_done} of {planned}" if planned else str(run.rounds_done)
        parameters = f"{facts['parameters']:,}" if facts.get("parameters") else "–"
        started = (facts.get("started") or "–")[:16].replace("T", " ")
        wall = duration(facts.get("wall_seconds"))
        rows.append([title, run.seed, facts.get("status") or "–", rounds, parameters, started, wall])
    return {"head": ["run", "seed", "status", "rounds", "parameters", "started", "wall time"], "rows": rows}


def environments(arms: Sequence[Arm]) -> dict[str, list[str]]:
    """The runs by hardware and versions, in words."""
    found: dict[str, list[str]] = {}
    for title, run in _titled(arms):
        versions = ", ".join(f"{name} {version}" for name, version in (run.facts.get("versions") or {}).items())
        text = ". ".join(part for part in (run.facts.get("hardware"), versions) if part)
        found.setdefault(text or "not recorded", []).append(title)
    return found


def _shortage(arms: Sequence[Arm]) -> dict[str, int] | None:
    """Dimension and fewest real samples, where the samples are too few to fix a covariance matrix."""
    runs = [run for arm in arms for run in arm.runs]
    dimension = math.prod(runs[0].facts.get("shape") or [0])
    fewest = min((int(value) for run in runs for value in run.scores("n_reference").values()), default=dimension)
    return {"dimension": dimension, "fewest": fewest} if fewest <= dimension and fewest else None


def _unequal(arms: Sequence[Arm]) -> list[str]:
    """Budgets that differ between arms that train, as they must not where arms are compared."""
    words = {"gradient_steps_per_class": "gradient steps", "samples_seen_per_class": "samples seen"}
    trained = [arm for arm in arms if arm.runs[0].facts.get("gradient_steps_per_class")]
    return [word for key, word in words.items() if len({_budget(arm, key) for arm in trained}) > 1]


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write the page for `runs` to `out` and return it.

    Raises:
        UserError: as `read_runs`, samples that cannot be read, or a page that cannot be written.
    """
    read = read_runs(runs)
    found = arms_of(read)
    arms = Comparison(found)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"duration": duration, "number": number}
    template = environment.from_string(Path(__file__).with_suffix(".html").read_text())
    several = len(found) > 1
    page = template.render(
        title=", ".join(dict.fromkeys(run.name for run in read)),
        arms=[(_head(arm), arm) for arm in found],
        many=len(found) > FEW,
        seeds=max(len(arm.runs) for arm in found),
        answer=answer(arms),
        unfinished=[(title, run) for title, run in _titled(found) if run.facts.get("status") != "done"],
        overview=overview(arms) if several else None,
        tradeoff=tradeoff(arms) if several else None,
        dots=dots(arms) if several else None,
        metrics=metric_tables(arms),
        images=len(read[0].facts.get("shape") or ()) == 3,
        samples=samples(found),
        leakage=leakage(arms),
        curves=curves(found),
        budgets=budgets(arms) if several else None,
        unequal=_unequal(found),
        costs=costs(found),
        times=times(found),
        faults=faults(found),
        runs=runs_table(found),
        settings=settings(found),
        environments=environments(found),
        shortage=_shortage(found),
    )
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None
    return out
