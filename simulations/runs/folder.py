"""Run folders read back, and runs grouped into arms.

Runs of one method and the same settings that differ in their seed alone are one *arm*; its numbers are means
over its seeds.
"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from fedmutual.errors import UserError
from fedmutual.settings import read_settings

DATA = {"stays": "Data stays", "pooled": "Data is pooled", "control": "Controls"}
"""What a method does with the data, in the order in which arms are shown."""

CURVES = ("held_out", "loss", "mutual", "grad_norm")
"""Quantities of the history that have a value for each round and class."""


@dataclass(frozen=True)
class Run:
    """What one run folder holds."""

    folder: Path
    facts: dict[str, Any]  # run.json
    settings: dict[str, Any]
    history: list[dict[str, Any]]  # one (round, class) each, in this order
    rows: list[dict[str, Any]]  # metrics.csv: class is an index, "worst", "mean" or "all"
    audit: list[dict[str, Any]] = field(default_factory=list)  # audit.json, class as in rows

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
    def data(self) -> str:
        """What its method does with the data, a key of `DATA`; a run of a federation need not say it."""
        return str(self.facts.get("data") or "stays")

    @cached_property
    def audited(self) -> dict[tuple[Any, ...], float]:
        """{(class, metric, attack, t): value} of the audit, where it could be measured."""
        known = (row for row in self.audit if row["value"] is not None)
        return {(row["class"], row["metric"], row["attack"], row.get("t")): row["value"] for row in known}

    @property
    def rounds_done(self) -> int:
        return max((line["round"] for line in self.history), default=0)

    @cached_property
    def by_metric(self) -> dict[str, dict[int, float]]:
        """{metric: {class: value}}."""
        found: dict[str, dict[int, float]] = {}
        for row in self.rows:
            if isinstance(row["class"], int):
                found.setdefault(row["metric"], {})[row["class"]] = row["value"]
        return found

    @cached_property
    def together(self) -> dict[str, float]:
        """{metric: value} of the samples of all classes together, where it was measured."""
        counts = ("n_reference", "n_generated")
        return {
            row["metric"]: row["value"] for row in self.rows if row["class"] == "all" and row["metric"] not in counts
        }

    def scores(self, metric: str) -> dict[int, float]:
        """The metric's value for each class that has a line."""
        return self.by_metric.get(metric, {})

    def curve(self, quantity: str) -> dict[int, list[tuple[int, float]]]:
        """{class: (round, value) in order} of one of `CURVES`, where it was recorded and finite.

        A mutual term that had no weight (beta = 0) is left out: nobody minimised it.
        """
        points: dict[int, list[tuple[int, float]]] = {}
        for line in self.history:
            value, beta = line.get(quantity), line.get("beta")
            beta = self.settings.get("beta") if beta is None else beta
            if value is not None and math.isfinite(value) and not (quantity == "mutual" and beta == 0):
                points.setdefault(line["class"], []).append((line["round"], value))
        return points

    def moved(self, way: str) -> float | None:
        """Bytes that all clients received (`way` = "down") or sent ("up") over the whole training."""
        told, lines = self.facts.get(f"bytes_{way}"), [line.get(f"bytes_{way}") for line in self.history]
        return told if told is not None else sum(count or 0 for count in lines) if lines else None

    @property
    def seconds(self) -> float | None:
        """The training's own compute, summed over clients."""
        told, lines = self.facts.get("seconds_training"), [line.get("seconds") or 0 for line in self.history]
        return told if told is not None else sum(lines) if lines else None


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
        audit=_read_audit(folder / "audit.json", len(facts["class_names"])),
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
    if facts.get("data", "stays") not in DATA:
        raise UserError(f"{path}: data must be one of {', '.join(DATA)}, not {facts['data']!r}")
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


def _read_audit(path: Path, classes: int) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_bytes())["rows"]
        for row in rows:
            if row["class"] not in ("worst", "mean", *range(classes)):
                raise UserError(f"{path}: class {row['class']} of {classes} classes")
            lacking = {"attack", "metric", "value"} - set(row)
            if lacking:
                raise UserError(f"{path}: a row lacks {', '.join(sorted(lacking))}")
    except (ValueError, KeyError, TypeError):
        again = f"fedmutual audit {path.parent}"
        raise UserError(f"{path} does not hold the rows of an audit: run `{again}` anew") from None
    return rows


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Run folders among and within `folders`, each once: a folder that is no run stands for the runs inside it."""
    found: dict[Path, Path] = {}
    for folder in map(Path, folders):
        inside = [] if (folder / "run.json").exists() else [path.parent for path in sorted(folder.rglob("run.json"))]
        found |= {path.resolve(): path for path in inside or [folder]}
    return list(found.values())


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Runs that one report can hold: those that `find_runs` finds.

    Raises:
        UserError: as `read_run`; no folder; runs whose classes differ.
    """
    runs = [read_run(folder) for folder in find_runs(folders)]
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
