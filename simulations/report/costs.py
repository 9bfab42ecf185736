"""What training cost: budgets that must be equal and costs that cannot be, and where the time went."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from simulations.report.comparison import Comparison
from simulations.report.tables import FEW, Table, grouped, head_of, small
from simulations.report.words import duration, size, whole
from simulations.runs.arms import Arm
from simulations.runs.folder import Run

BUDGETS = {"gradient_steps_per_class": "gradient steps", "samples_seen_per_class": "samples seen"}


@dataclass(frozen=True)
class ClientCosts:
    """One arm's bytes and seconds, a client a row."""

    title: Markup
    table: Table


@dataclass(frozen=True)
class WallTime:
    """The wall time of a run, or the mean of an arm's: `parts` are (name, seconds) and add up to `whole`.

    local: seconds of training summed over clients, of which `at_once` trained at once; ratio: how many times as long
    as that training alone the rounds took.
    """

    title: str
    parts: list[tuple[str, float]]
    whole: float
    local: float
    at_once: int
    ratio: float


def budgets(arms: Comparison) -> Table:
    """What every arm got for each class, which should be equal, and what cannot be."""

    def row(arm: Arm) -> list[Any]:
        each = [_range_in_words(_budget(arm, key)) for key in BUDGETS]
        moved = [size(arms.cost(arm, key)) for key in ("bytes_down", "bytes_up")]
        trained = duration(arms.cost(arm, "seconds"))
        return [arm.label, *each, whole(arms.cost(arm, "parameters")), *moved, trained, arms.tuned(arm)]

    equal = [small(name, "for each class") for name in BUDGETS.values()]
    head = ["arm", *equal, "parameters", "received", "sent", small("training", "all clients")]
    head.append(small("tuned", "by held-out samples"))
    return Table(head, grouped(arms.arms, row))


def _budget(arm: Arm, key: str) -> list[float]:
    """The smallest and the largest number where classes or seeds differ; one number where they do not; none unknown."""
    recorded = [run.facts.get(key) for run in arm.runs]
    each = [number for value in recorded for number in (value if isinstance(value, list) else [value])]
    numbers = [number for number in each if number is not None]
    return sorted({min(numbers), max(numbers)}) if numbers else []


def _range_in_words(ends: Sequence[float]) -> str:
    return " to ".join(map(whole, ends)) if ends else whole(None)


def unequal(arms: Sequence[Arm]) -> list[str]:
    """Budgets that differ between arms, controls apart, as they must not where arms are compared."""
    trained = [arm for arm in arms if arm.data != "control" and arm.runs[0].facts.get("gradient_steps_per_class")]
    return [name for key, name in BUDGETS.items() if len({tuple(_budget(arm, key)) for arm in trained}) > 1]


def costs(arms: Sequence[Arm], many: bool) -> list[ClientCosts]:
    """For each arm the bytes that each client received and sent, and its own compute; means over seeds.

    Of `many` clients there are the most, the median and the least of each.
    """
    tables = []
    for arm in arms:
        sums = np.zeros((len(arm.runs[0].classes), 3))
        for line in (line for run in arm.runs for line in run.history):
            sums[line["class"]] += [line.get(key) or 0 for key in ("bytes_down", "bytes_up", "seconds")]
        if sums.any():
            sums /= len(arm.runs)
            each = zip(arm.runs[0].classes, sums, strict=True)
            ends = [("most of a client", sums.max(0)), ("median", np.median(sums, 0)), ("least", sums.min(0))]
            clients = [("all clients", sums.sum(0)), *(ends if many else each)]
            rows = [[name, size(down), size(up), duration(own)] for name, (down, up, own) in clients]
            tables.append(ClientCosts(head_of(arm), Table(["client", "received", "sent", "own compute"], rows)))
    return tables


def times(arms: Sequence[Arm]) -> list[WallTime]:
    """For each run, or each of many arms, the wall time in three parts: the clients' compute, the rest of the rounds,
    the rest.

    The first is what perfect scheduling would need: the sum of the clients' own compute over the clients at once.
    """
    each = [(arm.title(run), [run]) for arm in arms for run in arm.runs]
    bars = []
    for title, runs in each if len(arms) <= FEW else [(arm.label, arm.runs) for arm in arms]:
        parts = np.array([_parts(run) for run in runs if run.history])
        local, ideal, rounds, wall = parts.mean(0) if len(parts) else np.zeros(4)
        if not local or not rounds:
            continue
        named = [("clients' compute", ideal), ("rest of the rounds", rounds - ideal), ("outside them", wall - rounds)]
        at_once = runs[0].facts.get("clients_at_once") or 1
        bars.append(WallTime(title, named, wall, local, at_once, rounds * at_once / local))
    return bars


def _parts(run: Run) -> tuple[float, float, float, float]:
    """Seconds: all clients' compute, the same spread over the clients at once, all rounds, everything."""
    local = sum(line.get("seconds") or 0 for line in run.history)
    rounds = sum({line["round"]: line.get("round_seconds") or 0 for line in run.history}.values())
    ideal = min(local / (run.facts.get("clients_at_once") or 1), rounds)
    return local, ideal, rounds, max(run.facts.get("wall_seconds") or 0, rounds)
