"""Runs grouped into arms: one method and one set of settings, several seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedmutual.evaluation import ClassSummary, summarise
from fedmutual.methods import DATA, place
from simulations.runs.folder import Run


def ends(counts: Mapping[int, int]) -> dict[str, list[int]]:
    """The rarest and the largest classes: three of each, or half of all where there are fewer than six."""
    by_size = sorted(counts, key=lambda y: (counts[y], y))
    few = min(3, len(by_size) // 2)
    return {"rarest": by_size[:few], "largest": by_size[::-1][:few]}


def counted(classes: Sequence[int], of: str) -> str:
    """three rarest."""
    return {1: "", 2: "two ", 3: "three "}[len(classes)] + of


NOT_THE_METHOD = {"seed", "out", "store", "resume", "device", "timeout", "data-path", "download", "checkpoint-every"}
"""Settings that make no other arm: the seed, and those that say where and when but not what is computed."""


@dataclass
class Arm:
    """Runs that differ in their seed alone, and the name and line style they share."""

    runs: list[Run]
    style: int = 0
    label: str = ""

    @property
    def method(self) -> str:
        return self.runs[0].method

    @property
    def data(self) -> str:
        return self.runs[0].data

    def title(self, run: Run) -> str:
        """The name of one of its runs."""
        return self.label if len(self.runs) == 1 else f"{self.label}, seed {run.seed}"

    def values(self, metric: str, y: int) -> list[float]:
        """Class y's value in each seed's run that has one."""
        values = [run.scores(metric).get(y, math.nan) for run in self.runs]
        return [value for value in values if not math.isnan(value)]

    def summaries(self, metric: str) -> dict[int, ClassSummary]:
        """Worst class and mean over classes by seed, for the seeds that have a value."""
        by_seed = {run.seed: summarise(metric, run.scores(metric)) for run in self.runs}
        return {seed: summary for seed, summary in by_seed.items() if summary.worst_class is not None}

    def worst_classes(self, metric: str) -> list[int]:
        """The classes that are worst, or as bad as the worst, with some seed."""
        worst = {seed: summary.worst for seed, summary in self.summaries(metric).items()}
        return sorted({y for run in self.runs for y, v in run.scores(metric).items() if v == worst.get(run.seed)})


def arms_of(runs: Sequence[Run]) -> list[Arm]:
    """Runs grouped by method and settings, the seed apart; a seed that comes again starts an arm of its own.

    In order of what is done with the data, then of the registry of methods, then as they come.
    """
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        same = (run.method, frozenset((key, run.settings[key]) for key in run.settings.keys() - NOT_THE_METHOD))
        again = sum(run.seed == other.seed for key, group in groups.items() if key[0] == same for other in group)
        groups.setdefault((same, again), []).append(run)
    arms = sorted((Arm(sorted(group, key=lambda run: run.seed)) for group in groups.values()), key=_rank)
    for style, arm in enumerate(arms):
        arm.style = style
        arm.label = ", ".join([arm.runs[0].method, *_differences(arm, arms)])
    labels = [arm.label for arm in arms]
    for arm in arms:
        if labels.count(arm.label) > 1:
            arm.label += f" ({arm.runs[0].folder.name})"
    return arms


def _rank(arm: Arm) -> tuple[int, int]:
    return list(DATA).index(arm.data), place(arm.method)


def _differences(arm: Arm, arms: Sequence[Arm]) -> list[str]:
    """The settings that set an arm apart from others of its method."""
    own, method = arm.runs[0].settings, arm.runs[0].method
    rivals = [other.runs[0].settings for other in arms if other.runs[0].method == method]
    return [
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in own.items()
        if key not in NOT_THE_METHOD and any(rival.get(key) != value for rival in rivals)
    ]
