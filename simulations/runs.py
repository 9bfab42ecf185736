"""Run folders read back, and runs grouped into arms.

Runs of one method and the same settings that differ in their seed alone are one *arm*; its numbers are means
over its seeds.
"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from fedmutual.config import UserError, read_settings
from fedmutual.evaluation import ClassSummary, summarise

NOT_THE_METHOD = {"seed", "out", "store", "resume", "device", "timeout", "data-path", "download", "checkpoint-every"}
"""Settings that make no other arm: the seed, and those that say where and when but not what is computed."""


@dataclass(frozen=True)
class Run:
    """What one run folder holds."""

    folder: Path
    facts: dict[str, Any]  # run.json
    settings: dict[str, Any]
    history: list[dict[str, Any]]  # one (round, class) each, in this order
    rows: list[dict[str, Any]]  # metrics.csv: class is an index, "worst", "mean" or "all"

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
            row["class"]: row["value"] for row in self.rows if row["metric"] == metric and isinstance(row["class"], int)
        }


@dataclass
class Arm:
    """Runs that differ in their seed alone, and the name and line style they share."""

    runs: list[Run]
    style: int = 0
    label: str = ""

    def title(self, run: Run) -> str:
        """The name of one of its runs."""
        return self.label if len(self.runs) == 1 else f"{self.label}, seed {run.seed}"

    def values(self, metric: str, y: int) -> list[float]:
        """Class y's value in each seed's run that has one."""
        values = [run.scores(metric).get(y, math.nan) for run in self.runs]
        return [value for value in values if not math.isnan(value)]

    def summaries(self, metric: str) -> dict[int, ClassSummary]:
        """Worst class and mean over classes by seed, for the seeds that have a value."""
        found = {run.seed: summarise(metric, run.scores(metric)) for run in self.runs}
        return {seed: summary for seed, summary in found.items() if summary.worst_class is not None}

    def worst_classes(self, metric: str) -> list[int]:
        """The classes that are worst, or as bad as the worst, with some seed."""
        worst = {seed: summary.worst for seed, summary in self.summaries(metric).items()}
        return sorted({y for run in self.runs for y, v in run.scores(metric).items() if v == worst.get(run.seed)})


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
        history=_read_history(folder / "history.jsonl", len(facts["class_names"])),
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


def _read_history(path: Path, classes: int) -> list[dict[str, Any]]:
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
            if entry["class"] not in range(classes):
                raise UserError(f"{path}, line {number}: class {entry['class']} of {classes} classes")
            history[int(entry["round"]), entry["class"]] = entry
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
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
            y = line["class"] if line["class"] in ("worst", "mean", "all") else int(line["class"])
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
        if isinstance(y, int) and y not in range(classes):
            raise UserError(f"{path}, line {number}: class {y} of {classes} classes")
        if (y, row["metric"]) in seen:
            raise UserError(f"{path} gives {row['metric']} of class {y} twice: a folder holds one run")
        seen.add((y, row["metric"]))
        rows.append(row)
    return rows


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Runs that one report can hold.

    Raises:
        UserError: as `read_run`; no folder; runs whose classes differ.
    """
    runs = [read_run(folder) for folder in folders]
    if not runs:
        raise UserError("no run folder was given")
    for run in runs:
        if run.classes != runs[0].classes:
            raise UserError(f"{runs[0].folder} and {run.folder} have different classes: report them separately")
    return runs


def read_samples(folder: Path) -> Mapping[str, Any]:
    """The run's `generated_<y>` and `real_<y>`, as many as there are.

    Raises:
        UserError: a file that is there and cannot be read.
    """
    path = folder / "samples" / "samples.npz"
    if not path.exists():
        return {}
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, BadZipFile) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def arms_of(runs: Sequence[Run]) -> list[Arm]:
    """Runs grouped by method and settings, the seed apart; a seed that comes again starts an arm of its own."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        same = (run.method, frozenset((key, run.settings[key]) for key in run.settings.keys() - NOT_THE_METHOD))
        again = sum(run.seed == other.seed for key, group in groups.items() if key[0] == same for other in group)
        groups.setdefault((same, again), []).append(run)
    arms = [Arm(group, style) for style, group in enumerate(groups.values())]
    for arm in arms:
        arm.label = ", ".join([arm.runs[0].method, *_differences(arm, arms)])
    labels = [arm.label for arm in arms]
    for arm in arms:
        if labels.count(arm.label) > 1:
            arm.label += f" ({arm.runs[0].folder.name})"
    return arms


def _differences(arm: Arm, arms: Sequence[Arm]) -> list[str]:
    """The settings that set an arm apart from others of its method."""
    own, method = arm.runs[0].settings, arm.runs[0].method
    rivals = [other.runs[0].settings for other in arms if other.runs[0].method == method]
    return [
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in own.items()
        if key not in NOT_THE_METHOD and any(rival.get(key) != value for rival in rivals)
    ]
