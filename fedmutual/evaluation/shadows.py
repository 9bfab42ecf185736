"""Attacks that train *shadow* networks: the attacker's own, on samples of which it knows what was trained on.

    GSA:   do the gradients at a candidate look like those at a shadow's members? (Pang et al., 2025)
    LiRA:  is the candidate's loss lower than networks give it that never saw it? (Carlini et al., 2022)

Shadows are trained on random parts of the candidates themselves. That tells nothing of who the target's members are.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmutual.config import Parametrisation
from fedmutual.diffusion.process import Process
from fedmutual.diffusion.sampling import noise_predictor

Scores = NDArray[np.float64]


class Shadow(NamedTuple):
    """What a shadow network says of n candidates, and which of them it was trained on, `inside: [n]`.

    gradients: [n, parameters], by `gradient_norms`; losses: [n], scores of its loss, larger for members.
    """

    gradients: Scores
    losses: Scores
    inside: NDArray[np.bool_]


def disjoint_parts(count: int, size: int, pairs: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of `count` candidates for 2 `pairs` shadows, `size` each and at most half: both of a pair share none.

    So every candidate is unseen by half of the shadows or more.
    """
    for _ in range(pairs):
        order = torch.randperm(count, generator=generator, device=generator.device).cpu()
        yield order[:size]
        yield order[size : 2 * size]


def gradient_norms(
    network: nn.Module,
    process: Process,
    parametrisation: Parametrisation,
    x: Tensor,
    indices: Sequence[int],
    noise: Tensor,
) -> Scores:
    """log ||d loss(x_i) / d theta_k|| for each candidate i and each tensor theta_k of parameters, [n, parameters].

    Pang et al., 2025, *White-box membership inference attacks against diffusion models*, GSA_1: the loss is the mean of
    ||eps(x_t, t) - xi||² over the times `indices`, with noise `noise: [times, *dims]` that all candidates share.
    """
    predict = noise_predictor(network, process, parametrisation, clip=False)
    parameters = [parameter.requires_grad_(True) for parameter in network.parameters()]
    rows = []
    for x0 in x:
        losses = []
        for index, xi in zip(indices, noise, strict=True):
            noised = process.alpha[index] * x0 + process.sigma[index] * xi
            losses.append((predict(noised[None], index)[0] - xi).square().mean())
        gradients = torch.autograd.grad(torch.stack(losses).mean(), parameters, allow_unused=True)
        rows.append([0.0 if one is None else float(one.norm()) for one in gradients])
    norms: Scores = np.log(np.maximum(np.array(rows, dtype=np.float64), np.finfo(np.float64).tiny))
    return norms


def gsa_scores(target: Scores, shadows: Sequence[Shadow]) -> Scores:
    """The log-odds of being a member, [n], by a classifier that has learnt from the shadows' gradients.

    Each network's norms are standardised by its own candidates, as the authors do; a logistic regression stands in for
    their boosted trees, because rare classes have a handful of members.
    """
    from sklearn.linear_model import LogisticRegression

    x = np.concatenate([_standardised(shadow.gradients) for shadow in shadows])
    inside = np.concatenate([shadow.inside for shadow in shadows])
    model = LogisticRegression(class_weight="balanced", max_iter=1000).fit(x, inside)
    odds: Scores = model.decision_function(_standardised(target))
    return odds


def _standardised(features: Scores) -> Scores:
    spread = features.std(0)
    standard: Scores = (features - features.mean(0)) / np.where(spread > 0, spread, 1)
    return standard


def lira_scores(target: Scores, shadows: Sequence[Shadow]) -> Scores:
    """(phi - mu_out) / sigma, [n]: how far the target's score lies above those of shadows that never saw the candidate.

    Carlini et al., 2022, *Membership inference attacks from first principles*, the offline attack: mu_out is a
    candidate's mean over the shadows without it, sigma one spread for all candidates, as they advise for few shadows.
    """
    losses = np.stack([shadow.losses for shadow in shadows])
    outside = ~np.stack([shadow.inside for shadow in shadows])
    seen_by = outside.sum(0)
    mean = (losses * outside).sum(0) / seen_by
    freedom = max(1, int(outside.sum()) - len(mean))
    spread = np.sqrt((np.square(losses - mean) * outside).sum() / freedom)
    scores: Scores = (target - mean) / (spread or 1.0)
    return scores
