"""What a peer learns about a class's training samples from the network that it was sent, or a user from samples of it.

The peer, or the server, holds the network and may put to it whatever it likes. Here it also holds candidates: real
samples of the class, of which some were trained on (members) and some were not (non-members), and gives each a score
that should be larger for members. Two questions:

    membership:  is a candidate a member? by the scores of `fedmutual.evaluation.attacks`
    extraction:  does the network draw the candidate? (Carlini et al., 2023)

What is measured is what these attacks find. A better attack may find more: a score of chance is no proof of privacy.
"""

import math
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import binomtest, rankdata
from torch import Tensor

from fedmutual.diffusion.process import Process
from fedmutual.diffusion.sampling import Predict
from fedmutual.errors import UserError
from fedmutual.evaluation.attacks import (
    DRAWS,
    density_ratio_scores,
    distance_scores,
    loss_scores,
    pia_scores,
    secmi_queries,
    secmi_scores,
    sima_scores,
)

TIMES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 0.9)
"""Noise levels that are asked about, as shares of T."""

LOW_NOISE = 0.2
"""The combined loss is that of the times up to here, where membership shows.

Settled, like `PIA_TIME`, on digits with seed 1 and the same for every run: never picked by what it finds in one.
"""

PIA_TIME = 0.1
"""The time of PIA that a summary shows; the other times are reported beside it."""

SIMA_TIME = 0.1
"""The same of SimA, and settled in the same way."""

SECMI_TIME = 0.1
"""The one time of SecMI, the paper's: each costs 12 queries."""

FALSE_POSITIVES = 0.01

SHUFFLES = 1000

_Z = 1.959964  # the normal quantile of a 95 % interval


class Estimate(NamedTuple):
    """A value and its 95 % interval; nan where too few samples leave it undefined."""

    value: float
    low: float
    high: float


class Finding(NamedTuple):
    """One number of an audit. `t`: a share of T, None where times are combined or play no part.

    `queries`: forward passes for each candidate; for attacks on samples, how many of them. `others`: non-members that
    were candidates; None: all.
    """

    attack: str
    t: float | None
    metric: str
    estimate: Estimate
    queries: int
    others: int | None = None


UNDEFINED = Estimate(math.nan, math.nan, math.nan)


# Separating members from non-members by a score


def auc(members: ArrayLike, non_members: ArrayLike) -> Estimate:
    """P(score of a member > score of a non-member) + P(equal) / 2, the area under the ROC curve.

    The interval is Newcombe's (2006, method 5): all areas from which the observed one is no more than 1.96 standard
    deviations away, by Hanley and McNeil's variance with both sample sizes replaced by their mean. It stays honest
    where DeLong's and the bootstrap's shrink to a point, at areas of 0 and 1, and it holds 0.5 exactly when the
    Mann-Whitney test does not tell members apart at the 5 % level. Tested against `sklearn.metrics.roc_auc_score`
    and `scipy.stats.mannwhitneyu`.

    Raises:
        UserError: no sample on one side, or scores that are not finite.
    """
    members, non_members = _compared(members, non_members)
    m, n = len(members), len(non_members)
    ranks = rankdata(np.concatenate([members, non_members]))
    area = float((ranks[:m].sum() - m * (m + 1) / 2) / (m * n))
    return Estimate(area, _lower_limit(area, m, n), 1 - _lower_limit(1 - area, m, n))


def _lower_limit(area: float, m: int, n: int) -> float:
    def gap(theta: float) -> float:
        spread = ((m + n) / 2 - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return area - theta - _Z * math.sqrt(theta * (1 - theta) * (1 + spread) / (m * n))

    # At theta = area = 1 the variance is 0, a second root that is not the limit: stay below it.
    return brentq(gap, 0, area * (1 - 1e-9)) if area else 0.0


def shuffled(members: ArrayLike, non_members: ArrayLike, generator: torch.Generator) -> Estimate:
    """The control: the mean AUC of `SHUFFLES` shuffles of who is a member, and the range that 95 % of them fall in.

    The mean must be 0.5. The range is what chance makes of so few samples: an AUC outside it is none (the permutation
    test, valid for any number of members).

    Raises:
        UserError: as `auc`.
    """
    members, non_members = _compared(members, non_members)
    m, n = len(members), len(non_members)
    ranks = rankdata(np.concatenate([members, non_members]))
    order = torch.rand(SHUFFLES, m + n, generator=generator, device=generator.device).argsort(1)[:, :m].cpu().numpy()
    areas = (ranks[order].sum(1) - m * (m + 1) / 2) / (m * n)
    return Estimate(float(areas.mean()), *map(float, np.quantile(areas, [0.025, 0.975])))


def true_positive_rate(members: ArrayLike, non_members: ArrayLike) -> Estimate:
    """Share of members that are recognised while at most 1 % of non-members are taken for one.

    nan with fewer than 100 non-members, which cannot show 1 %. The interval is Clopper and Pearson's over members, at
    the threshold that these non-members set. Tested against `sklearn.metrics.roc_curve`.

    Raises:
        UserError: as `auc`.
    """
    members, non_members = _compared(members, non_members)
    return _caught(members, non_members) if len(non_members) * FALSE_POSITIVES >= 1 else UNDEFINED


def extracted(generated: ArrayLike, members: ArrayLike, non_members: ArrayLike) -> Estimate:
    """Share of `members` that have a `generated` sample nearer to them than 99 % of `non_members` have one.

    All `[n, *dims]`; the distance is Euclidean, as in Carlini et al., 2023. A non-member tells how near generated
    samples come to a real one without having seen it. With fewer than 100 of them a member must have a nearer one than
    any of them, which n of them leave to chance with probability 1 / (n + 1). Interval as `true_positive_rate`.

    Raises:
        UserError: no sample on one side, or samples that are not finite.
    """
    sides = _compared(members, non_members)
    return _caught(*_compared(*(distance_scores(generated, side) for side in sides)))


def _compared(members: ArrayLike, non_members: ArrayLike) -> list[NDArray[np.float64]]:
    sides = [np.asarray(side, dtype=np.float64) for side in (members, non_members)]
    if not all(len(side) for side in sides):
        raise UserError(f"an audit compares members with non-members, not {len(sides[0])} with {len(sides[1])}")
    if not all(np.isfinite(side).all() for side in sides):
        raise UserError("an attack met values that are not finite: the network diverged")
    return sides


def _caught(members: NDArray[np.float64], non_members: NDArray[np.float64]) -> Estimate:
    allowed = math.floor(FALSE_POSITIVES * len(non_members) + 1e-9)
    threshold = np.sort(non_members)[::-1][allowed]
    above = binomtest(int((members > threshold).sum()), len(members))
    return Estimate(above.statistic, *above.proportion_ci(method="exact"))


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates, those that are undefined left out.

    Its limits lie the root of the summed squares of the single ones' distances away (Zou and Donner, 2008), so that
    they may be lopsided as those are.
    """
    known = np.array([estimate for estimate in estimates if not math.isnan(estimate.value)])
    if not len(known):
        return UNDEFINED
    value, low, high = known.T
    down, up = (np.linalg.norm(value - limit) / len(known) for limit in (low, high))
    return Estimate(float(value.mean()), float(value.mean() - down), float(value.mean() + up))


# One class


def level_from(start: float, t: float) -> float:
    """The level of noise that lies in [start, 1] where t lies in [0, 1]."""
    return round(start + (1 - start) * t, 4)


def audit(
    predict: Predict,
    process: Process,
    members: Tensor,
    non_members: Tensor,
    generated: Tensor,
    generator: torch.Generator,
    start: float = 0.0,
) -> list[Finding]:
    """Every attack on one class, on its network and on samples of it, and the control.

    A network that knows only the times from the share `start` of T on is asked at those, as many and spread alike;
    `process` then holds no others, and PIA and SecMI start from the first of them.

    `members, non_members, generated`: [n, *dims], on the process's device; without `generated` there are no attacks on
    samples and no extraction. The control gives PIA's scores to members and non-members that were shuffled: it must
    find nothing.

    Raises:
        UserError: as `auc`.
    """
    x, count = torch.cat([members, non_members]), len(members)
    findings = []

    def compare(attack: str, t: float | None, scores: Tensor, queries: int) -> None:
        findings.extend(told_apart(attack, t, scores[:count], scores[count:], queries))

    losses, proximal = {}, {}
    for t in TIMES:
        level = level_from(start, t)
        index = process.nearest(level)
        losses[t] = loss_scores(predict, process, x, index, generator)
        proximal[t] = pia_scores(predict, process, x, index)
        compare("loss", level, losses[t], DRAWS)
        compare("pia", level, proximal[t], 2)
        compare("sima", level, sima_scores(predict, x, index), 1)
    low = [losses[t] for t in TIMES if t <= LOW_NOISE]
    compare("loss", None, reduce(torch.add, low), DRAWS * len(low))
    level = level_from(start, SECMI_TIME)
    index = process.nearest(level)
    compare("secmi", level, secmi_scores(predict, process, x, index), secmi_queries(index, len(process)))
    chance = shuffled(proximal[PIA_TIME][:count].cpu(), proximal[PIA_TIME][count:].cpu(), generator)
    findings.append(Finding("control-shuffled", level_from(start, PIA_TIME), "auc", chance, 2))
    if len(generated):
        findings += _on_samples(generated.cpu(), members.cpu(), non_members.cpu(), generator)
    return findings


def _on_samples(generated: Tensor, members: Tensor, non_members: Tensor, generator: torch.Generator) -> list[Finding]:
    """The attacks on samples alone. The density ratio takes half of the non-members, drawn, for its reference."""
    share = extracted(generated, members, non_members)
    order = torch.randperm(len(non_members), generator=generator, device=generator.device).cpu()
    reference, others = (non_members[rows] for rows in order.tensor_split(2))
    near = [torch.from_numpy(distance_scores(generated, side)) for side in (members, non_members)]
    dense = [torch.from_numpy(density_ratio_scores(generated, reference, side)) for side in (members, others)]
    return [
        Finding("extraction", None, "extracted", share, len(generated)),
        *told_apart("distance", None, near[0], near[1], len(generated)),
        *told_apart("density-ratio", None, dense[0], dense[1], len(generated)),
    ]


def told_apart(attack: str, t: float | None, members: Tensor, non_members: Tensor, queries: int) -> list[Finding]:
    """AUC and true-positive rate of an attack, from its scores of members and of non-members."""
    sides = members.double().cpu(), non_members.double().cpu()
    return [
        Finding(attack, t, "auc", auc(*sides), queries, len(non_members)),
        Finding(attack, t, "tpr-at-1-fpr", true_positive_rate(*sides), queries, len(non_members)),
    ]
