"""Runs read back from their folders, and what is worked out from one of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from fedmutual.course import Course
from fedmutual.errors import UserError
from fedmutual.evaluation import COUNTS
from fedmutual.run_folder import (
    ALL,
    CONFIG,
    FACTS,
    AuditRow,
    HistoryLine,
    MetricRow,
    RunFacts,
    read_audit,
    read_facts,
    read_history,
    read_metrics,
)
from fedmutual.settings import read_stored

CURVES = ("held_out", "loss", "mutual", "grad_norm")
"""Quantities of the history that have a value for each round and class."""


@dataclass(frozen=True)
class Run:
    """What one run folder holds."""

    folder: Path
    facts: RunFacts
    settings: dict[str, Any]
    history: list[HistoryLine]  # one (round, class) each, in this order
    rows: list[MetricRow]
    audit: list[AuditRow] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.facts.name)

    @property
    def method(self) -> str:
        return str(self.facts.method)

    @property
    def seed(self) -> int:
        return int(self.settings.get("seed", 0))

    @property
    def classes(self) -> list[str]:
        return [str(name) for name in self.facts.class_names]

    @property
    def data(self) -> str:
        """What its method does with the data, a key of `methods.DATA`; a run of a federation need not record it."""
        return self.facts.data or "stays"

    @cached_property
    def audited(self) -> dict[tuple[Any, ...], float]:
        """{(class, metric, attack, t): value} of the audit, where it could be measured."""
        return {(row.class_, row.metric, row.attack, row.t): row.value for row in self.audit if row.value is not None}

    @property
    def rounds_done(self) -> int:
        return max((line.round for line in self.history), default=0)

    @cached_property
    def accepted(self) -> set[int]:
        """The classes of which a reply was accepted."""
        return {line.class_ for line in self.history if line.status == "ok"}

    @cached_property
    def last_lines(self) -> dict[int, HistoryLine]:
        """{class: its last line of the history}."""
        return {line.class_: line for line in self.history}

    @cached_property
    def course(self) -> Course:
        """How far its training has come."""
        course = Course(int(self.settings.get("rounds") or self.rounds_done))
        course.add(self.history)
        return course

    @cached_property
    def by_metric(self) -> dict[str, dict[int, float]]:
        """{metric: {class: value}}."""
        values: dict[str, dict[int, float]] = {}
        for row in self.rows:
            if isinstance(row.class_, int):
                values.setdefault(row.metric, {})[row.class_] = row.value
        return values

    @cached_property
    def together(self) -> dict[str, float]:
        """{metric: value} of the samples of all classes together, where it was measured."""
        return {row.metric: row.value for row in self.rows if row.class_ == ALL and row.metric not in COUNTS}

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
                points.setdefault(line.class_, []).append((line.round, value))
        return points

    def moved(self, way: str) -> float | None:
        """Bytes that all clients received (`way` = "down") or sent ("up") over the whole training."""
        recorded = cast("int | None", self.facts[f"bytes_{way}"])
        if recorded is not None or not self.history:
            return recorded
        return sum(cast(int, line[f"bytes_{way}"]) for line in self.history)

    @property
    def seconds(self) -> float | None:
        """The training's own compute, summed over clients."""
        if self.facts.seconds_training is not None or not self.history:
            return self.facts.seconds_training
        return sum(line.seconds or 0 for line in self.history)


def read_run(folder: Path) -> Run:
    """One run folder; only config.toml and run.json must be there, as in a run that has just begun.

    Raises:
        UserError: no folder, a file missing, or one that does not hold what it should.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a run folder: there is no such folder")
    facts = read_facts(folder)
    classes = len(facts.class_names)
    return Run(
        folder=folder,
        facts=facts,
        settings=read_stored(folder / CONFIG),
        history=_in_order(read_history(folder, classes)),
        rows=read_metrics(folder, classes),
        audit=read_audit(folder, classes),
    )


def _in_order(history: Sequence[HistoryLine]) -> list[HistoryLine]:
    """The lines in order of round and class; of two for the same, the later."""
    lines = {(line.round, line.class_): line for line in history}
    return [lines[key] for key in sorted(lines)]


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Run folders among and within `folders`, each once: a folder that is no run stands for the runs inside it."""
    runs: dict[Path, Path] = {}
    for folder in map(Path, folders):
        inside = [] if (folder / FACTS).exists() else [path.parent for path in sorted(folder.rglob(FACTS))]
        runs |= {path.resolve(): path for path in inside or [folder]}
    return list(runs.values())


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
