"""Classes without a measure, and the reason as far as the run folder records one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedmutual.evaluation import METRICS
from simulations.runs.arms import Arm
from simulations.runs.folder import Run

OF_A_CLASS = {name for name, metric in METRICS.items() if metric.of_a_class}


@dataclass(frozen=True)
class MissingClass:
    """A class of one run that has no measure."""

    run: str
    name: str
    reason: str


def measured(run: Run, y: int) -> bool:
    """Whether the run has a value of any quality measure for class y."""
    values = (run.scores(metric).get(y, math.nan) for metric in run.by_metric if metric in OF_A_CLASS)
    return not all(map(math.isnan, values))


def missing_classes(arms: Sequence[Arm]) -> list[MissingClass]:
    """The classes without a measure, of every run that is measured or done; a run that goes on may still get there."""
    return [
        MissingClass(arm.title(run), name, _reason(run, y))
        for arm in arms
        for run in arm.runs
        if run.by_metric or run.facts.get("status") == "done"
        for y, name in enumerate(run.classes)
        if not measured(run, y) and (run.by_metric or _never_accepted(run, y))
    ]


def _never_accepted(run: Run, y: int) -> bool:
    """Whether the history shows that no reply of the class was ever accepted, while others were."""
    return bool(run.history) and y not in run.accepted


def _reason(run: Run, y: int) -> str:
    if any(y in values for metric, values in run.by_metric.items() if metric in OF_A_CLASS):
        return "its samples were drawn, but no measure has a value for them"
    if _never_accepted(run, y):
        return "it has no network, as no reply of its client was accepted" + _last_fault(run, y)
    return "it has not been measured; the run folder records no reason"


def _last_fault(run: Run, y: int) -> str:
    line = run.last_lines.get(y)
    if line is None:
        return ""
    return f"; the last is recorded as {line.status}" + (f" ({line.reason})" if line.reason else "")
