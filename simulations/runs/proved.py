"""What a run claims of epsilon, in words, and the lower bound that an audit sets against the claim."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fedmutual.config import IN_PARTS, RunConfig
from fedmutual.diffusion import Process
from fedmutual.diffusion.sampling import Predict
from fedmutual.evaluation.attacks import pia_scores
from fedmutual.evaluation.lower_bound import CONFIDENCE, Guesses, epsilon_at_least, guess
from fedmutual.evaluation.membership import PIA_TIME, level_from
from fedmutual.run_folder import ALL, AuditRow, HistoryLine
from fedmutual.seeds import derive


def guesses(
    predict: Predict, process: Process, members: Tensor, others: Tensor, config: RunConfig, y: int, start: float
) -> Guesses:
    """Of pairs of a member and a sample that could have been one in its place: how often PIA tells which it was."""
    index = process.nearest(level_from(start, PIA_TIME))
    used, unused = (pia_scores(predict, process, side, index).cpu().numpy() for side in (members, others))
    return guess(used, unused, np.random.default_rng(derive(config.seed, y, 0, "pairs")))


def bound_row(method: str, config: RunConfig, told: Guesses, start: float) -> AuditRow:
    """The row of the bound that the guesses of all classes make: clients look at no sample of each other's."""
    return AuditRow(
        method=method,
        seed=config.seed,
        class_=ALL,
        attack="pia",
        t=level_from(start, PIA_TIME),
        metric="epsilon",
        value=epsilon_at_least(told, config.publishing.delta, added=config.publishing.mode == "dp-sgd"),
        queries=2,
        members=told.made,
        non_members=told.made,
        more={"right": told.right},
    )


def claim(facts: Mapping[str, Any], settings: Mapping[str, Any], history: Sequence[HistoryLine] = ()) -> str:
    """What the run claims of all that a client sends; empty where it claims nothing."""
    epsilon, delta = facts.get("epsilon"), facts.get("delta")
    if epsilon is None:
        return ""
    odds = f"{math.exp(epsilon):.3g}" if epsilon < 100 else f"10^{epsilon / math.log(10):.0f}"
    added = settings.get("publish") == "dp-sgd"
    told = "whether a training sample was there" if added else "which of two values a training sample had"
    said = (
        f"All that a client sends in this run, but the seconds, has epsilon = {epsilon:.3g} at delta = {delta:g}: it "
        f"changes the odds on {told} by a factor of {odds} at most."
    )
    if added:
        said += f" {_by_class(facts, history)}Samples are drawn from the same networks, and are covered as well. "
        said += "Expect nothing useful of a class of 50 samples where epsilon bounds much (docs/privacy.md)."
    if settings.get("publish") in IN_PARTS:
        said += " Samples are drawn from the owners' private parts as well, and have no such guarantee."
    return said


def _by_class(facts: Mapping[str, Any], history: Sequence[HistoryLine]) -> str:
    """A sentence on the epsilon of each class at the end, for fewer samples have the larger one; or nothing."""
    last = {line.class_: line.epsilon for line in history if line.epsilon is not None}
    names = facts.get("class_names") or {}
    named = [f"{names[y] if y < len(names) else y}: {last[y]:.3g}" for y in sorted(last)]
    return f"Epsilon by class is {', '.join(named)}. " if named else ""


def refutation(rows: Sequence[AuditRow], facts: Mapping[str, Any]) -> str:
    """The lower bound of an audit beside the claim; empty where there is none."""
    bounds = [row for row in rows if (row.class_, row.metric) == (ALL, "epsilon")]
    if not bounds:
        return ""
    (row,) = bounds
    found = (
        f"Epsilon is at least {row.value:.2f} with {CONFIDENCE:.0%} confidence: of {row.members} pairs PIA told "
        f"{row['right']} apart."
    )
    claimed = facts.get("epsilon")
    if claimed is None or row.value is None:
        return found
    if row.value > claimed:
        return f"{found} That refutes the epsilon of {claimed:.3g} that the run claims: do not trust what it sends."
    return f"{found} The run claims {claimed:.3g}."
