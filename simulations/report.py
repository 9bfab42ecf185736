"""The report: one self-contained page, and table rows, made from run folders and from nothing else.

Runs of one method and the same settings that differ in their seed alone are one *arm*; its numbers are means
over its seeds.
"""

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from scipy.stats import t as student

from fedmutual.config import RunConfig, UserError, read_settings
from fedmutual.evaluation import LARGER_IS_WORSE, SMALLER_IS_WORSE, ClassSummary, summarise
from simulations import figures

METRICS = ("fd", "fd-features", "kl", "kid", "precision", "recall", "f8", "memorisation")
CURVES = ("held_out", "loss", "mutual", "grad_norm")
FAULTS = ("rejected", "missing", "error")
NOT_THE_METHOD = frozenset({"seed", "out", "store", "resume", "device", "timeout"})  # they make no other arm

Table = dict[str, list[Any]]  # {"head": cells, "rows": lists of cells}; the first of a row is its heading


@dataclass(frozen=True)
class Run:
    """What one run folder holds."""

    folder: Path
    facts: dict[str, Any]  # run.json
    settings: dict[str, Any]
    history: list[dict[str, Any]]  # one (round, class) each, in this order
    rows: list[dict[str, Any]]  # metrics.csv: class is an index, "worst" or "mean"

    @property
    def name(self) -> str:
        return str(self.facts["name"])

    @property
    def method(self) -> str:
        return str(self.facts["method"])

    @property
    def seed(self) -> int:
        return int(self.settings.get("seed", 0))

    @property
    def classes(self) -> list[str]:
        return [str(name) for name in self.facts["class_names"]]

    @property
    def rounds_done(self) -> int:
        return max((line["round"] for line in self.history), default=0)

    def scores(self, metric: str) -> dict[int, float]:
        """The metric's value for each class that has a line."""
        return {
            row["class"]: row["value"]
            for row in self.rows
            if row["metric"] == metric and isinstance(row["class"], int)
        }


@dataclass
class Arm:
    """Runs that differ in their seed alone, and the name and line style they share."""

    runs: list[Run]
    style: int = 0
    label: str = ""
    differs_in: dict[str, Any] = field(default_factory=dict)

    def mean(self, metric: str, y: int) -> float:
        """Class y's value, averaged over the seeds that have one."""
        values = [run.scores(metric).get(y, math.nan) for run in self.runs]
        values = [value for value in values if not math.isnan(value)]
        return mean(values) if values else math.nan

    def summary(self, metric: str) -> ClassSummary:
        """Worst class and mean over classes, of the values averaged over seeds."""
        return summarise(metric, {y: self.mean(metric, y) for y in range(len(self.runs[0].classes))})

    def worst_by_seed(self, metric: str) -> dict[int, float]:
        """The worst class's value in each seed's run."""
        worst = {run.seed: summarise(metric, run.scores(metric)).worst for run in self.runs}
        return {seed: value for seed, value in worst.items() if not math.isnan(value)}


# Reading


def read_run(folder: Path) -> Run:
    """One run folder; only config.toml and run.json must be there, as in a run that has just begun.

    Raises:
        UserError: no folder, a file missing, or one that does not hold what it should.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a run folder: there is no such folder")
    facts = _read_facts(folder / "run.json")
    return Run(
        folder=folder,
        facts=facts,
        settings=read_settings(folder / "config.toml"),
        history=_read_history(folder / "history.jsonl"),
        rows=_read_metrics(folder / "metrics.csv", len(facts["class_names"])),
    )


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {path.parent} is not a run folder") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    lacking = [key for key in ("name", "method", "class_names") if key not in facts]
    if lacking:
        raise UserError(f"{path} lacks {', '.join(lacking)}")
    return facts


def _read_history(path: Path) -> list[dict[str, Any]]:
    """The lines in order of round and class; of two for the same, the later. A cut last line is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    history = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            history[entry["round"], entry["class"]] = entry
        except (ValueError, KeyError, TypeError):
            if number == len(lines):  # a whole line ends in a newline, so that this one was being written
                break
            raise UserError(f"{path}, line {number} is not a line of history: is the file damaged?") from None
    return [history[key] for key in sorted(history)]


def _read_metrics(path: Path, classes: int) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    rows, seen = [], set()
    for number, line in enumerate(lines, 2):
        try:
            y = line["class"] if line["class"] in ("worst", "mean") else int(line["class"])
            row = {
                "method": line["method"],
                "seed": int(line["seed"]),
                "class": y,
                "n_train": int(line["n_train"]) if line["n_train"] else None,
                "metric": line["metric"],
                "value": float(line["value"]) if line["value"] else math.nan,
            }
        except (KeyError, TypeError, ValueError):
            header = "method,seed,class,n_train,metric,value"
            raise UserError(f"{path}, line {number} is not of the form {header}") from None
        if isinstance(y, int) and y >= classes:
            raise UserError(f"{path}, line {number}: class {y} of {classes} classes")
        if (y, row["metric"]) in seen:
            raise UserError(f"{path} gives {row['metric']} of class {y} twice: a folder holds one run")
        seen.add((y, row["metric"]))
        rows.append(row)
    return rows


def _read_all(folders: Sequence[Path]) -> list[Run]:
    runs = [read_run(folder) for folder in folders]
    if not runs:
        raise UserError("no run folder was given")
    for run in runs:
        if run.classes != runs[0].classes:
            raise UserError(f"{runs[0].name} and {run.name} have different classes: report them separately")
    return runs


def table(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """The rows of the runs' metrics, worst class first, then the mean, then each class.

    Each has run, method, seed, class (an index, "worst" or "mean"), name, n_train, metric and value (None where
    undefined), so that it can be written as JSON.

    Raises:
        UserError: as `read_run`, and runs whose classes differ.
    """
    order = {"worst": -2, "mean": -1}
    rows = []
    for run in _read_all(runs):
        for row in sorted(run.rows, key=lambda row: order.get(row["class"], row["class"])):
            y = row["class"]
            name = run.classes[y] if isinstance(y, int) else y
            value = None if math.isnan(row["value"]) else row["value"]
            rows.append({"run": run.name, **row, "name": name, "value": value})
    return rows


# Arms


def arms_of(runs: Sequence[Run]) -> list[Arm]:
    """Runs grouped by method and settings, the seed apart; a seed that comes again starts an arm of its own."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        same = frozenset(item for item in run.settings.items() if item[0] not in NOT_THE_METHOD)
        again = sum(
            run.seed == other.seed for key, group in groups.items() if key[:2] == (run.method, same) for other in group
        )
        groups.setdefault((run.method, same, again), []).append(run)
    arms = [Arm(group, style) for style, group in enumerate(groups.values())]
    for arm in arms:
        rivals = [other.runs[0].settings for other in arms if other.runs[0].method == arm.runs[0].method]
        own = arm.runs[0].settings
        told = [key for key in own if key not in NOT_THE_METHOD and any(r.get(key) != own[key] for r in rivals)]
        arm.label = ", ".join([arm.runs[0].method, *(f"{key} {own[key]}" for key in told)])
    for arm in arms:
        if sum(arm.label == other.label for other in arms) > 1:
            arm.label += f" ({arm.runs[0].name})"
    return arms


# The answer


def number(value: float | None) -> str:
    """A measured value in three or four digits; – where there is none."""
    if value is None or math.isnan(value):
        return "–"
    size = abs(value)
    if size == 0 or size >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if size >= 1 else f"{value:.3f}" if size >= 1e-3 else f"{value:.1e}"


def _training_counts(runs: Iterable[Run]) -> dict[int, int]:
    """Training samples of each class, where a run tells them."""
    counts: dict[int, int] = {}
    for run in runs:
        told = {row["class"]: row["n_train"] for row in run.rows if isinstance(row["class"], int)}
        told |= dict(enumerate(run.facts.get("training_counts") or []))
        counts |= {y: count for y, count in told.items() if count is not None and y not in counts}
    return counts


def _interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of the mean of two or more values (Student's t)."""
    return float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def headline(arms: Sequence[Arm]) -> list[str]:
    """The answer in sentences: which class is worst, and which arm has the better worst class."""
    metric = next((name for name in METRICS if any(arm.worst_by_seed(name) for arm in arms)), None)
    if metric is None:
        return ["No samples have been measured yet, so there is no answer. What is known so far is below."]
    measured = [arm for arm in arms if arm.worst_by_seed(metric)]
    sign = 1 if metric in LARGER_IS_WORSE else -1
    measured.sort(key=lambda arm: sign * mean(arm.worst_by_seed(metric).values()))
    best, *others = measured
    counts = _training_counts(best.runs)

    def worst(arm: Arm) -> str:
        y = arm.summary(metric).worst_class
        count = f" ({counts[y]} training samples)" if y in counts else ""
        return f"class {arm.runs[0].classes[y]}{count}, {metric} {number(mean(arm.worst_by_seed(metric).values()))}"

    if not others:
        overall = number(best.summary(metric).mean)
        answer = [f"The worst class with {best.label} is {worst(best)}; the mean over classes is {overall}."]
    else:
        answer = [f"{best.label} has the best worst class: {worst(best)}."]
        answer += [f"With {arm.label} the worst is {worst(arm)}: {_gap(best, arm, metric)}." for arm in others]
    if max(len(arm.runs) for arm in measured) == 1:
        what = "This rests on one seed" if not others else "Each rests on one seed"
        answer.append(f"{what}, and one seed proves nothing: repeat the run with several before believing it.")
    return answer


def _gap(best: Arm, other: Arm, metric: str) -> str:
    """How far the other's worst class is from the best's, with an interval where seeds can be paired."""
    ours, theirs = best.worst_by_seed(metric), other.worst_by_seed(metric)
    gap = mean(theirs.values()) - mean(ours.values())
    base = mean(ours.values())
    text = f"{number(abs(gap))} {'higher' if gap >= 0 else 'lower'}"
    text += f" ({abs(gap / base):.0%})" if base else ""
    pairs = [theirs[seed] - ours[seed] for seed in ours if seed in theirs]
    if len(pairs) < 2:
        return text
    half, middle = _interval(pairs), mean(pairs)
    clear = "" if abs(middle) > half else ", which may be chance"
    return f"{text}; 95 % interval {number(middle - half)} to {number(middle + half)} over {len(pairs)} seeds{clear}"


# Sections


def _heads(arms: Sequence[Arm]) -> list[Markup]:
    return [figures.swatch(arm.style) + Markup(" {}").format(arm.label) for arm in arms]


def _marked(values: Sequence[float], metric: str, notes: Sequence[str]) -> list[Markup]:
    """A row's cells with the best value in bold and starred, and each cell's small note."""
    known = [value for value in values if not math.isnan(value)]
    directed = metric in LARGER_IS_WORSE | SMALLER_IS_WORSE and len(set(known)) > 1
    best = (min if metric in LARGER_IS_WORSE else max)(known) if directed else None
    cells = []
    for value, note in zip(values, notes, strict=True):
        form = '<b>{}<span class="star" title="best of the row"> ★</span></b>' if value == best else "{}"
        cells.append(Markup(form).format(number(value)) + (Markup("<small>{}</small>").format(note) if note else ""))
    return cells


def metric_tables(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """A table for each metric: the worst class, the mean, then each class; a column for each arm."""
    classes, runs = arms[0].runs[0].classes, [run for arm in arms for run in arm.runs]
    counts = _training_counts(runs)
    real = {y: value for run in runs for y, value in run.scores("n_reference").items()}
    present = {row["metric"] for run in runs for row in run.rows} - {"n_reference", "n_generated"}
    names = [name for name in METRICS if name in present] + sorted(present - set(METRICS))
    tables = []
    for metric in names:
        rows = []
        if metric in METRICS:
            sums = [arm.summary(metric) for arm in arms]
            notes = [f"class {classes[s.worst_class]}" if s.worst_class is not None else "" for s in sums]
            rows.append(["worst class", "", "", *_marked([s.worst for s in sums], metric, notes)])
            rows.append(["mean", "", "", *_marked([s.mean for s in sums], metric, [""] * len(arms))])
        for y, name in enumerate(classes):
            values = [arm.mean(metric, y) for arm in arms]
            notes = [_spread(arm, metric, y) for arm in arms]
            rows.append([name, counts.get(y, "–"), _whole(real.get(y)), *_marked(values, metric, notes)])
        tables.append({"metric": metric, "head": ["class", "train", "real", *_heads(arms)], "rows": rows})
    return tables


def _whole(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.0f}"


def _spread(arm: Arm, metric: str, y: int) -> str:
    values = [run.scores(metric).get(y, math.nan) for run in arm.runs]
    values = [value for value in values if not math.isnan(value)]
    return f"± {number(_interval(values))}" if len(values) > 1 else ""


def curves(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """For each quantity of the history a panel a class, all panels on one scale, a line for each run.

    A mutual term that had no weight (beta = 0) is left out: nobody minimised it.
    """
    classes = arms[0].runs[0].classes
    sections = []
    for quantity in CURVES:
        by_class = [[] for _ in classes]
        for arm in arms:
            for run in arm.runs:
                for y, points in _points(run, quantity).items():
                    by_class[y].append(figures.Series(arm.style, points))
        every = [point for panel in by_class for series in panel for point in series.points]
        if not every:
            continue
        across = figures.rounds_axis(x for x, _ in every)
        up = figures.value_axis(y for _, y in every)
        charts = [
            figures.line_chart(panel, across, up, f"{quantity} of class {name} over rounds")
            for name, panel in zip(classes, by_class, strict=True)
        ]
        sections.append({"quantity": quantity, "log": up.log, "charts": list(zip(classes, charts, strict=True))})
    return sections


def _points(run: Run, quantity: str) -> dict[int, list[tuple[float, float]]]:
    points: dict[int, list[tuple[float, float]]] = {}
    for line in run.history:
        value, beta = line.get(quantity), line.get("beta")
        beta = run.settings.get("beta") if beta is None else beta
        if value is None or not math.isfinite(value) or (quantity == "mutual" and beta == 0):
            continue
        points.setdefault(line["class"], []).append((line["round"], value))
    return points
