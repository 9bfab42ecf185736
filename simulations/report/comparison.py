"""Arms compared in numbers: means over seeds, paired differences to isolated and to pooled training, leakage, costs."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from fedmutual.evaluation import DISTANCES, METRICS, in_order
from fedmutual.evaluation.intervals import Estimate
from simulations.report.words import NOTHING, interval, spread
from simulations.runs.arms import Arm, arms_of, counted, ends
from simulations.runs.folder import Run, read_runs

SUMMARIES = ("worst", "mean", "rarest", "largest")

QUANTILES = {"5 % are worse": 0.05, "a quarter are worse": 0.25, "median": 0.5, "three quarters are worse": 0.75}
"""What stands for the classes where they are many: {name: the share of the classes that fare worse}."""

MANY = 30
"""With more classes than these a page or a table shows quantiles and some classes, and not each."""

Of = int | str
"""A class, one of `SUMMARIES` or `QUANTILES`, or "all": the samples of all classes together."""


def training_counts(runs: Iterable[Run]) -> dict[int, int]:
    """Training samples of each class, where a run records them."""
    counts: dict[int, int] = {}
    for run in runs:
        recorded = {row["class"]: row["n_train"] for row in run.rows if isinstance(row["class"], int)}
        recorded |= dict(enumerate(run.facts.get("training_counts") or []))
        counts |= {y: count for y, count in recorded.items() if count is not None and y not in counts}
    return counts


def headline(measured: Mapping[str, Collection[str]]) -> str | None:
    """The measure that leads, of those that each arm has: the first of `DISTANCES` that every measured arm has.

    Where there is none, the first that any has; None where nothing was measured.
    """
    each = [names for metrics in measured.values() if (names := set(metrics) & set(DISTANCES))]
    shared = set.intersection(*each) if each else set()
    return next((name for name in DISTANCES if name in (shared or set().union(*each))), None)


class Comparison:
    """Arms side by side: every number that the table, the page and the answer are made of."""

    def __init__(self, arms: Sequence[Arm]):
        self.arms = list(arms)
        self.runs = [run for arm in arms for run in arm.runs]
        self.classes = self.runs[0].classes
        self.counts = training_counts(self.runs)
        self.real = {y: n for run in self.runs for y, n in run.scores("n_reference").items() if not math.isnan(n)}
        known = {name for name, metric in METRICS.items() if metric.of_a_class}
        metrics = in_order(name for run in self.runs for name in run.by_metric if name in known)
        self.together = in_order(name for run in self.runs for name in run.together)
        self.headline = headline({arm.label: [name for name in metrics if arm.summaries(name)] for arm in arms})
        self.metrics = sorted(metrics, key=lambda name: name != self.headline)
        self._measured = {name: set().union(*(_classes_with(run, name) for run in self.runs)) for name in metrics}
        self.ends = self._ends()
        attacks = {arm.label: _strongest(arm, len(self.classes)) for arm in self.arms}
        self.audited = any(key for by_class in attacks.values() for key in by_class.values())
        self.attacks = attacks  # {arm: {class: (class, "auc", attack, t), the attack that sees most; None without}}
        self._leaks = {arm.label: _of_attacks(arm, attacks[arm.label]) for arm in self.arms}
        extraction = {y: (y, "extracted", "extraction", None) for y in range(len(self.classes))}
        self._extracted = {arm.label: _of_attacks(arm, extraction) for arm in self.arms}

    def _ends(self) -> dict[str, list[int]]:
        """`ends` of the classes; none where the number of samples of a class is not known."""
        if len(self.counts) < len(self.classes) or len(self.classes) < 2:
            return {}
        return ends(self.counts)

    def title(self, of: Of) -> str:
        """worst class; mean; three rarest; 7."""
        if isinstance(of, int):
            return self.classes[of]
        known = {"worst": "worst class", "mean": "mean", "all": "all together"} | {name: name for name in QUANTILES}
        return known.get(of) or counted(self.ends[of], of)

    @property
    def many(self) -> bool:
        """Whether there are more classes than can stand side by side."""
        return len(self.classes) > MANY

    @property
    def each_class(self) -> list[int]:
        """The classes, where each has a place in tables and figures; none of many."""
        return [] if self.many else list(range(len(self.classes)))

    @property
    def summaries(self) -> list[str]:
        """Those of `SUMMARIES` that there are, and the quantiles of many classes."""
        return [of for of in SUMMARIES if of in ("worst", "mean", *self.ends)] + (list(QUANTILES) if self.many else [])

    def arm(self, *methods: str) -> Arm | None:
        """The arm of the first of `methods` that has one; None where several share it."""
        for method in methods:
            of_method = [arm for arm in self.arms if arm.method == method]
            if of_method:
                return of_method[0] if len(of_method) == 1 else None
        return None

    def by_seed(self, arm: Arm, metric: str, of: Of) -> dict[int, float]:
        """{seed: value}, for the seeds that have one.

        A run that lacks a class which others have is left out of "worst" and "mean": they would be of other classes.
        """
        if of in ("worst", "mean"):
            complete = {run.seed for run in arm.runs if self._complete(run, metric)}
            summaries = arm.summaries(metric)
            return {seed: getattr(summary, str(of)) for seed, summary in summaries.items() if seed in complete}
        if of in QUANTILES:
            complete_runs = [run for run in arm.runs if self._complete(run, metric)]
            values = {run.seed: _quantile(run, metric, QUANTILES[str(of)]) for run in complete_runs}
            return {seed: value for seed, value in values.items() if not math.isnan(value)}
        if of == "all":
            values = {run.seed: run.together.get(metric, math.nan) for run in arm.runs}
            return {seed: value for seed, value in values.items() if not math.isnan(value)}
        return self._mean_over(of, {run.seed: run.scores(metric) for run in arm.runs})

    def _complete(self, run: Run, metric: str) -> bool:
        """Whether the run has a value for every class that any run has one for."""
        return self._measured[metric] <= _classes_with(run, metric)

    def _mean_over(self, of: Of, scores: Mapping[int, Mapping[int, float]]) -> dict[int, float]:
        classes = self.ends.get(of, []) if isinstance(of, str) else [of]
        chosen = {seed: [values.get(y, math.nan) for y in classes] for seed, values in scores.items()}
        return {seed: mean(values) for seed, values in chosen.items() if values and not any(map(math.isnan, values))}

    def value(self, arm: Arm, metric: str, of: Of) -> Estimate | None:
        return Estimate.maybe(self.by_seed(arm, metric, of).values())

    def versus(self, arm: Arm, other: Arm | None, metric: str, of: Of) -> Estimate | None:
        """arm - other, paired by seed; None against itself, without the other or without a seed of both."""
        if other is None or other is arm:
            return None
        ours, theirs = self.by_seed(arm, metric, of), self.by_seed(other, metric, of)
        return Estimate.maybe(ours[seed] - theirs[seed] for seed in ours if seed in theirs)

    def judge(self, difference: Estimate, metric: str) -> tuple[str, str]:
        """(kind, size) of a difference: better or worse, 0.84 ± 0.39; chance, ±0.39; same."""
        if difference.mean == 0 and not difference.half:
            return "same", ""
        if difference.half is not None and difference.by_chance:
            return "chance", spread(difference.half)
        kind = "worse" if (difference.mean > 0) == METRICS[metric].larger_is_worse else "better"
        return kind, interval(abs(difference.mean), difference.half)

    # What leaks

    def leak(self, arm: Arm, of: Of) -> Estimate | None:
        """AUC of the strongest membership attack on a class, or its mean over the classes of a summary.

        Strongest is the attack and t with the highest mean over seeds for the class: the highest of several
        estimates, so that without any leak it lies a little above 0.5. "worst" is the class that leaks most.
        """
        by_class = self._leaks[arm.label]
        if of not in ("worst", "mean"):
            return self._of_classes(by_class, of)
        known = list(by_class.values())
        if of == "worst":
            return Estimate.maybe(max(known, key=lambda by_seed: mean(by_seed.values()), default={}).values())
        seeds = set.intersection(*map(set, known)) if known else set()
        return Estimate.maybe(mean(by_seed[seed] for by_seed in known) for seed in sorted(seeds))

    def leak_bounds(self, arm: Arm, y: int) -> tuple[float, float] | None:
        """The audit's own 95 % interval of `leak` on a class, where the arm has one seed and so none over seeds."""
        key, rows = self.attacks[arm.label][y], arm.runs[0].audit
        if key is None or len(arm.runs) > 1:
            return None
        row = next(row for row in rows if (row["class"], row["metric"], row["attack"], row.get("t")) == key)
        return None if row.get("low") is None else (row["low"], row["high"])

    def extracted(self, arm: Arm, of: Of) -> Estimate | None:
        """Share of a class's training samples that a peer regenerates; `of` is a class, "rarest" or "largest"."""
        return self._of_classes(self._extracted[arm.label], of)

    def shuffled(self, arm: Arm) -> list[float]:
        """AUC of the control with shuffled labels, every class, t and seed: around 0.5 where the audit is sound."""
        rows = [row for run in arm.runs for row in run.audit]
        return [row["value"] for row in rows if row["attack"] == "control-shuffled" and row["value"] is not None]

    def _of_classes(self, by_class: Mapping[int, Mapping[int, float]], of: Of) -> Estimate | None:
        among = {y: by_class[y] for y in (self.ends.get(of, []) if isinstance(of, str) else [of]) if y in by_class}
        seeds = sorted({seed for by_seed in among.values() for seed in by_seed})
        scores = {seed: {y: values[seed] for y, values in among.items() if seed in values} for seed in seeds}
        return Estimate.maybe(self._mean_over(of, scores).values())

    # What it cost

    def cost(self, arm: Arm, what: str) -> float | None:
        """Mean over seeds of parameters, bytes (both ways, all clients), bytes_down, bytes_up or seconds."""
        read = {
            "parameters": lambda run: run.facts.get("parameters"),
            "bytes_down": lambda run: run.moved("down"),
            "bytes_up": lambda run: run.moved("up"),
            "seconds": lambda run: run.seconds,
        }
        if what == "bytes":
            down, up = self.cost(arm, "bytes_down"), self.cost(arm, "bytes_up")
            return None if down is None or up is None else down + up
        known = [value for run in arm.runs if (value := read[what](run)) is not None]
        return mean(known) if known else None

    def tuned(self, arm: Arm) -> str:
        """The setting that a method chose by held-out samples, with its value if that is one; "no" where it did not."""
        tuned = arm.runs[0].facts.get("tuned")
        if not tuned:
            return "no"
        chosen = tuned.get("chosen")
        return str(tuned["setting"]) if chosen is None else f"{tuned['setting']} {chosen:.3g}"

    def rows(self) -> list[dict[str, Any]]:
        """As `comparison`."""
        rows = []
        against = {"isolated": self.arm("isolated"), "pooled": self.arm("pooled")}
        for arm in self.arms:
            costs: dict[str, Any] = {what: self.cost(arm, what) for what in ("parameters", "bytes", "seconds")}
            costs["tuned"] = self.tuned(arm)
            for of in (*self.summaries, "all", *range(len(self.classes))):
                leak = self.leak(arm, of)
                shared = {"leakage": leak and leak.mean, "leakage_ci95": leak and leak.half}
                for metric in self.together if of == "all" else self.metrics:
                    if (value := self.value(arm, metric, of)) is None:
                        continue
                    row = {"arm": arm.label, "method": arm.method, "data": arm.data, "class": of}
                    row |= {"name": self.title(of), "metric": metric}
                    row |= {"mean": value.mean, "ci95": value.half, "seeds": value.seeds}
                    for name, other in against.items():
                        difference = self.versus(arm, other, metric, of)
                        row[f"versus_{name}"] = difference and difference.mean
                        row[f"versus_{name}_ci95"] = difference and difference.half
                    row |= {"n_train": self.counts.get(of), "n_real": self.real.get(of)}
                    rows.append({**row, **costs, **shared})
        return rows


def _classes_with(run: Run, metric: str) -> set[int]:
    return {y for y, value in run.scores(metric).items() if not math.isnan(value)}


def _quantile(run: Run, metric: str, share: float) -> float:
    """The value that this share of the classes is worse than; nan where no class has one."""
    values = sorted(value for value in run.scores(metric).values() if not math.isnan(value))
    if not values:
        return math.nan
    return float(np.quantile(values, 1 - share if METRICS[metric].larger_is_worse else share))


def _audited(arm: Arm, key: tuple[Any, ...]) -> dict[int, float]:
    """{seed: value} of one measure of the audit, (class, metric, attack, t)."""
    return {run.seed: run.audited[key] for run in arm.runs if key in run.audited}


def _of_attacks(arm: Arm, keys: Mapping[int, tuple[Any, ...] | None]) -> dict[int, dict[int, float]]:
    """{class: {seed: value}} of the classes whose measure was audited."""
    found = {y: _audited(arm, key) for y, key in keys.items() if key is not None}
    return {y: by_seed for y, by_seed in found.items() if by_seed}


def _strongest(arm: Arm, classes: int) -> dict[int, tuple[Any, ...] | None]:
    """{class: the attack on it, the shuffled control apart, with the highest mean AUC over seeds}."""
    attacks: dict[int, list[tuple[Any, ...]]] = {y: [] for y in range(classes)}
    for key in dict.fromkeys(key for run in arm.runs for key in run.audited):
        y, metric, attack, _ = key
        if metric == "auc" and attack != "control-shuffled" and y in attacks:
            attacks[y].append(key)
    return {y: max(of, key=lambda key: mean(_audited(arm, key).values()), default=None) for y, of in attacks.items()}


def comparison(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The compared arms as rows: one for each arm, metric and class (an index, one of `SUMMARIES`, or "all").

    A row has arm (its label, unlike any other's), method, data ("stays", "pooled", "control"), class, name, metric,
    mean and ci95 (half the 95 % interval over seeds, Student's t; None with one seed), seeds (how many),
    versus_isolated and versus_pooled (paired by seed; None where there is no such arm, or it is this one) and their
    _ci95, n_train and n_real (samples behind a class; None for a summary), parameters, bytes (both ways, all
    clients), seconds (of training), tuned (`Comparison.tuned`), leakage and leakage_ci95 (`Comparison.leak`).

    Raises:
        UserError: as `read_runs`.
    """
    return Comparison(arms_of(read_runs(folders))).rows()


def signed(
    difference: float | None, half: float | None, written: Callable[[float, float | None], str] = interval
) -> str:
    """A paired difference in few letters: +0.84 ± 0.39; chance (±0.39) where 0 lies within the interval."""
    if difference is None:
        return NOTHING
    if difference == 0 and not half:
        return "the same"
    if half is not None and abs(difference) <= half:
        return f"chance ({spread(half)})"
    return ("+" if difference > 0 else "") + written(difference, half)
