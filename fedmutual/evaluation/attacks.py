"""Scores by which attacks tell members, the samples that a class's network was trained on: larger for likelier ones.

On the network, which a peer or the server holds; none needs another network:

    loss:    is a candidate denoised better than others? (Matsumoto et al., 2023; Carlini et al., 2023)
    PIA:     the same in two queries, by proximal initialisation (Kong et al., 2024)
    SimA:    how much noise does the network see in the candidate as it is, in one query? (Rao et al., 2025)
    SecMI:   does a deterministic step there and back return to where it began? (Duan et al., 2023)

On samples alone, which is all that the user of a release holds:

    distance:       how near does a sample come to the candidate? (Chen et al., 2020)
    density-ratio:  is the candidate likelier among the samples than among real ones? (van Breugel et al., 2023)
"""

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist
from torch import Tensor

from fedmutual.diffusion.process import Process
from fedmutual.diffusion.sampling import ROWS, Predict

DRAWS = 8
"""Noise draws for each candidate and time of the loss."""

SECMI_STEPS = 10
"""Deterministic steps up to the time that SecMI asks about: at its T / 10 each is T / 100, as in the paper."""

Scores = NDArray[np.float64]


# On the network: x: [n, *dims] -> scores [n]


@torch.no_grad()
def loss_scores(
    predict: Predict, process: Process, x: Tensor, index: int, generator: torch.Generator, draws: int = DRAWS
) -> Tensor:
    """-log of the mean over `draws` of ||eps(x_t, t) - xi||² at one training time.

    All candidates meet the same noise, so that they differ by what they are. The logarithm puts losses of different
    times on one scale: scores may be added over times.
    """
    noise = torch.randn(draws, *x.shape[1:], dtype=x.dtype, device=x.device, generator=generator)
    at = torch.full((1,), index, device=x.device)

    def loss(part: Tensor, xi: Tensor) -> Tensor:
        return (predict(process.noised(part, at.expand(len(part)), xi.expand_as(part)), index) - xi).square()

    sums = (reduce(torch.add, (loss(part, xi).flatten(1).mean(1) for xi in noise)) for part in _parts(x))
    return torch.cat([-total.div(draws).log() for total in sums])


@torch.no_grad()
def pia_scores(predict: Predict, process: Process, x: Tensor, index: int) -> Tensor:
    """-||eps(x_0, 0) - eps(alpha_t x_0 + sigma_t eps(x_0, 0), t)||_4: a point of training is denoised consistently.

    Kong et al., 2024, *An efficient membership inference attack for the diffusion model by proximal initialization*:
    the network's own output at the first training time stands in for the noise. Two queries, nothing random; the first
    of them is at the lowest noise whatever t is, so that a large t is no question about high noise alone.
    """
    at = torch.full((1,), index, device=x.device)
    scores = []
    for part in _parts(x):
        start = predict(part, 0)
        end = predict(process.noised(part, at.expand(len(part)), start), index)
        scores.append(-(start - end).flatten(1).norm(p=4, dim=1))
    return torch.cat(scores)


@torch.no_grad()
def sima_scores(predict: Predict, x: Tensor, index: int) -> Tensor:
    """-||eps(x_0, t)||_4: the network is shown the candidate without any noise, as if it were noised.

    Rao, Qu and Moyer, 2025, *Score-based membership inference on diffusion models*: the score at a point leads to the
    mean of the training samples near it, weighted by a kernel, so that it is short at one of them. One query, nothing
    random.
    """
    return torch.cat([-predict(part, index).flatten(1).norm(p=4, dim=1) for part in _parts(x)])


@torch.no_grad()
def secmi_scores(predict: Predict, process: Process, x: Tensor, index: int, steps: int = SECMI_STEPS) -> Tensor:
    """-||x_t - back(on(x_t))||², x_t being the candidate after deterministic steps up to t.

    Duan et al., 2023, *Are diffusion models vulnerable to membership inference attacks?*, the t-error of SecMI_stat.
    A step of DDIM from time s to u is alpha_u x_0 + sigma_u eps with eps = eps(x_s, s) and the x_0 that it implies;
    `on` is one from t to the next of these times, `back` the one to t again. `steps` + 2 queries where the process has
    that many times below t, nothing random.
    """
    ladder = _ladder(index, len(process), steps)
    scores = []
    for part in _parts(x):
        for start, end in pairwise(ladder[:-1]):
            part = _ddim(predict, process, part, start, end)
        on = _ddim(predict, process, part, ladder[-2], ladder[-1])
        back = _ddim(predict, process, on, ladder[-1], ladder[-2])
        scores.append(-(part - back).square().flatten(1).sum(1))
    return torch.cat(scores)


def secmi_queries(index: int, times: int, steps: int = SECMI_STEPS) -> int:
    """Forward passes of `secmi_scores` for each candidate."""
    return len(_ladder(index, times, steps))


def _ladder(index: int, times: int, steps: int) -> list[int]:
    """Indices of training times: 0 up to `index` in at most `steps` steps, and one step beyond."""
    rungs = sorted(set(np.linspace(0, index, min(steps, index) + 1).round().astype(int).tolist()))
    stride = max(1, round(index / steps))
    return [*rungs, min(index + stride, times - 1)]


def _ddim(predict: Predict, process: Process, x: Tensor, start: int, end: int) -> Tensor:
    noise = predict(x, start)
    x0 = (x - process.sigma[start] * noise) / process.alpha[start]
    return process.alpha[end] * x0 + process.sigma[end] * noise


def _parts(x: Tensor) -> Sequence[Tensor]:
    return torch.split(x, max(1, ROWS // x[0].numel()))


# On samples alone: x: [n, *dims] -> scores [n]


def distance_scores(generated: ArrayLike, x: ArrayLike) -> Scores:
    """-min_j ||x - g_j||, the Euclidean distance to the nearest generated sample.

    Chen et al., 2020, *GAN-Leaks*, the attack of those who hold nothing but samples.
    """
    return -_nearest(x, generated)


def density_ratio_scores(generated: ArrayLike, reference: ArrayLike, x: ArrayLike) -> Scores:
    """log r_R(x) - log r_G(x), r the distance to the nearest reference and to the nearest generated sample.

    The ratio p_G(x) / p_R(x) of DOMIAS (van Breugel et al., 2023, *Membership inference attacks against synthetic
    data through overfitting detection*): a candidate is suspect where samples are denser than reality is, and not
    where reality is dense itself. `reference` are real samples that are no candidates. Both densities are those of the
    nearest neighbour, 1 / (n V_d r^d) (Loftsgaarden and Quesenberry, 1965), in place of the paper's kernels and flows,
    which do not reach hundreds of dimensions: the sizes and d move no order of the scores.
    """
    least = np.finfo(np.float64).tiny  # a copy is at distance 0
    real, drawn = (np.log(np.maximum(_nearest(x, side), least)) for side in (reference, generated))
    ratio: Scores = real - drawn
    return ratio


def _nearest(x: ArrayLike, others: ArrayLike) -> Scores:
    sides = [np.asarray(side, dtype=np.float64) for side in (x, others)]
    nearest: Scores = cdist(*(side.reshape(len(side), -1) for side in sides)).min(1)
    return nearest
