"""Choosing a class's own settings by what its own held-out samples say: beta = "auto", the ridge, its peers.

Nothing here knows what a network is: a model is whatever `fit` returns and `loss` accepts. Only the client's
own samples and the peers' networks it already holds are used, so nothing new leaves the client.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from scipy.special import ndtr, stdtrit  # scipy.stats takes a second to import, in every client
from torch import Tensor

Model = TypeVar("Model")


def folds(count: int, parts: int) -> list[tuple[Tensor, Tensor]]:
    """(kept, held out) indices of `count` samples; every sample is held out once.

    Samples are dealt out in turn: they have no order, so this is as random as they are and needs no
    generator. With fewer samples than parts each is held out alone; one sample cannot be split, and there are
    no folds.
    """
    if parts < 2:
        raise ValueError("cross-validation needs at least two folds")
    if count < 2:
        return []
    index = torch.arange(count)
    part = index % min(parts, count)
    return [(index[part != k], index[part == k]) for k in range(min(parts, count))]


def held_out_losses(
    count: int,
    candidates: Sequence[float],
    fit: Callable[[float, Tensor], Model],
    loss: Callable[[Model, Tensor], Tensor],
    parts: int = 5,
) -> Tensor:
    """The loss of each of the class's `count` samples under a model that has not seen it.

    fit:  (candidate, kept indices) -> a model trained on those samples at that setting. loss: (model,
    held-out indices) -> their losses [*batch, held out], lower is better; the batch is the caller's. Returns
    [*batch, candidates, count]; all zero for a single sample, of which nothing can be held out.
    """
    splits = folds(count, parts)
    if not splits:
        return torch.zeros(len(candidates), count)
    order = torch.cat([held_out for _, held_out in splits]).argsort()
    rows = []
    for candidate in candidates:
        parts_of_row = [loss(fit(candidate, kept), held_out) for kept, held_out in splits]
        rows.append(torch.cat(parts_of_row, -1)[..., order])
    return torch.stack(rows, -2)


def choose(losses: Tensor, candidates: Sequence[float], caution: float = 1.0) -> Tensor:
    """The first candidate that held-out samples cannot tell from the best one: [*batch].

    losses: [*batch, candidates, count], the candidates ordered from the safe one (beta = 0) on. Candidate c
    is passed over when its mean excess over the best candidate's loss is more than `caution` standard errors
    of the paired differences: Breiman's one-standard-error rule, the error of a few samples widened by
    Student's t. So a class with nothing to gain, or too few samples to know, stays with the safe choice;
    `caution = 0` is the plain minimum.
    """
    means = losses.mean(-1)
    best = means.argmin(-1)[..., None, None]
    excess = losses - losses.gather(-2, best.expand(*best.shape[:-1], losses.shape[-1]))
    count = excess.shape[-1]
    doubt = excess.std(-1, correction=min(1, count - 1)) / count**0.5
    quantile = stdtrit(max(1, count - 1), ndtr(caution))
    good = excess.mean(-1) <= quantile * doubt
    first = good.to(torch.uint8).argmax(-1)
    return torch.as_tensor(candidates, dtype=losses.dtype)[first]


def surest(losses: Tensor, candidates: Sequence[float], caution: float = 1.0) -> Tensor:
    """The candidate whose gain over the first is the largest at the cautious end of its error: [*batch].

    losses: [*batch, candidates, count], the first candidate the safe one. The gain of candidate c on sample i is
    g_i = losses_0i - losses_ci, and what counts is mean(g) - caution sqrt(2 sum min(g_i - mean(g), 0)² / (n - 1) / n),
    widened by Student's t where samples are few: `caution` standard errors, made of the deviations below the mean
    alone (Markowitz's semideviation). For a network that has overfitted gains little on most samples and much on the
    few that it knows least, and such luck is no reason for doubt. The safe candidate's is exactly 0, so that only what
    pays with that certainty is chosen; `caution = 0` is the plain minimum.
    """
    gains = losses[..., :1, :] - losses
    mean, count = gains.mean(-1, keepdim=True), gains.shape[-1]
    below = (gains - mean).clamp(max=0).square().sum(-1)
    doubt = (2 * below / max(1, count - 1) / count).sqrt()
    quantile = stdtrit(max(1, count - 1), ndtr(caution))
    best = (mean.squeeze(-1) - quantile * doubt).argmax(-1)
    return torch.as_tensor(candidates, dtype=losses.dtype)[best]


def similarity(own: Tensor, peers: Tensor, temperature: float = 0.01) -> Tensor:
    """Q_y = softmax over peers of -mean ||s_y - s_z||² / (temperature mean ||s_y||²): [*batch, peers].

    own: [*batch, n, d], peers: [*batch, peers, n, d], scores at n of the class's own samples noised to high
    levels, where a score says which region of space a class occupies. Dividing by the own score's mean square
    leaves no unit: `temperature` is the relative disagreement at which a peer's weight falls by a factor e.
    """
    disagreement = (peers - own[..., None, :, :]).square().mean((-2, -1))
    scale = own.square().mean((-2, -1)).clamp(min=torch.finfo(own.dtype).tiny)
    return torch.softmax(-disagreement / (temperature * scale[..., None]), -1)
