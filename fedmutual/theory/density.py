"""The density that a one-dimensional score network generates, computed rather than sampled.

Sampling reverses the Ornstein-Uhlenbeck process: with tau = T - t the sampler's state follows dY = [Y + 2
s(Y, t)] dtau + sqrt(2) dB from Y ~ N(0, 1), so its density solves the Fokker-Planck equation dp/dtau = -d/dx
([x + 2 s(x, t)] p) + d²p/dx². The score is read at every time, not held between training times: this is the
limit of the exponential integrator for many steps, free of the sampler's own error.

Space: finite volumes with the exponentially fitted flux of Scharfetter and Gummel (1969), also known from
Chang and Cooper (1970). Time: implicit Euler. The matrix is an M-matrix with unit column sums, so densities
stay positive and keep their mass for any step.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.linalg.lapack import dgtsv
from torch import Tensor

from fedmutual.data.mixtures import Mixture

Score = Callable[[Tensor, float], Tensor]
"""(x: [n], t) -> scores [*batch, n] of a batch of one-dimensional networks at the same points."""

Start = Callable[[Tensor], Tensor]
"""x: [n] -> the density [*batch, n] at t = horizon."""


@dataclass(frozen=True)
class Grid:
    """Equal cells on [low, high] and equal time steps from t = horizon down to t = stop."""

    low: float = -12.0
    high: float = 12.0
    cells: int = 200
    horizon: float = 2.0
    stop: float = 1e-3
    steps: int = 100

    @property
    def width(self) -> float:
        return (self.high - self.low) / self.cells

    @property
    def centres(self) -> Tensor:
        return self.low + self.width * (torch.arange(self.cells, dtype=torch.float64) + 0.5)

    @property
    def walls(self) -> Tensor:
        """The walls between neighbouring cells, [cells - 1]."""
        return self.low + self.width * torch.arange(1, self.cells, dtype=torch.float64)

    def refined(self) -> "Grid":
        """Half the cells' width and half the time step."""
        return Grid(self.low, self.high, 2 * self.cells, self.horizon, self.stop, 2 * self.steps)


def generated_density(score: Score, grid: Grid, start: Start | None = None) -> Tensor:
    """Density of the sampler's output in each cell, [*batch, cells], from `start` or from N(0, 1)."""
    density = gaussian(grid.centres, 0.0, 1.0) if start is None else start(grid.centres)
    density = density / (density.sum(-1, keepdim=True) * grid.width)
    step = (grid.horizon - grid.stop) / grid.steps
    for k in range(grid.steps):
        t = grid.horizon - (k + 0.5) * step
        drift = grid.walls + 2 * score(grid.walls, t)
        density = _implicit_step(density.expand(*drift.shape[:-1], grid.cells), drift, grid.width, step)
    return density


def _implicit_step(density: Tensor, drift: Tensor, width: float, step: float) -> Tensor:
    """(I + step L) p_new = p_old, L p the outflow through walls that let nothing out of the domain.

    Flux through a wall: (1/h) [B(-Pe) p_left - B(Pe) p_right], Pe = drift h, B(z) = z / (e^z - 1).
    All systems are solved as one: their tridiagonal matrices, end to end, are one tridiagonal matrix.
    """
    ratio = step / width**2
    peclet = drift * width
    backward = ratio * bernoulli(peclet)  # [*batch, cells - 1], what p_right sends back to the left
    forward = backward + ratio * peclet  # B(-z) = B(z) + z
    diagonal = torch.ones_like(density)
    diagonal[..., :-1] += forward
    diagonal[..., 1:] += backward
    lower, upper = torch.zeros_like(density), torch.zeros_like(density)
    lower[..., :-1], upper[..., :-1] = -forward, -backward
    flat = [table.reshape(-1).numpy() for table in (lower, diagonal, upper, density)]
    *_, solution, failed = dgtsv(flat[0][:-1], flat[1], flat[2][:-1], flat[3], True, True, True, False)
    if failed:
        raise ValueError("the Fokker-Planck step is singular: the score is not finite")
    return torch.from_numpy(solution).view(density.shape)


def bernoulli(z: Tensor) -> Tensor:
    """B(z) = z / (e^z - 1), B(0) = 1."""
    small = z.abs() < 1e-8
    return torch.where(small, 1 - z / 2, z / torch.expm1(torch.where(small, 1.0, z)))


def gaussian(x: Tensor, mean: float | Tensor, variance: float | Tensor) -> Tensor:
    """The density of N(mean, variance) at x."""
    return torch.exp(-((x - mean) ** 2) / (2 * variance)) / (2 * math.pi * variance) ** 0.5


def kl_divergence(truth: Tensor, density: Tensor, grid: Grid) -> Tensor:
    """KL(truth || density) = sum_i h p_i log(p_i / q_i), [*batch]; both [*batch, cells]."""
    truth = truth / (truth.sum(-1, keepdim=True) * grid.width)
    tiny = torch.finfo(truth.dtype).tiny
    return grid.width * (torch.xlogy(truth, truth) - torch.xlogy(truth, density.clamp(min=tiny))).sum(-1)


@dataclass(frozen=True)
class Divergence:
    """KL(P_0 || P_theta) of a batch of networks.

    kl: [*batch], extrapolated from a grid and its refinement, whose error is of first order in the time step.
    error: [*batch], how far the refinement moved it. edge: [*batch], mass in the outermost 2 % of cells at
    either end: mass that has run against the domain's walls instead of leaving.
    """

    kl: Tensor
    error: Tensor
    edge: Tensor


def divergence(score: Score, truths: Sequence[Mixture], grid: Grid, start: Start | None = None) -> Divergence:
    """KL of each class's generated density from the truth; the last batch dimension of `score` is the class."""
    values = []
    for level in (grid, grid.refined()):
        truth = torch.stack([mixture.log_density(level.centres[:, None]).exp() for mixture in truths])
        density = generated_density(score, level, start)
        values.append(kl_divergence(truth, density, level))
    coarse, fine = values
    rim = max(1, level.cells // 50)
    edge = (density[..., :rim].sum(-1) + density[..., -rim:].sum(-1)) * level.width
    return Divergence(2 * fine - coarse, (fine - coarse).abs(), edge)


def exponential_samples(score: Score, x: Tensor, times: Tensor, noise: Callable[[], Tensor]) -> Tensor:
    """Samples of the reverse process by the exponential integrator, the score held over each step:

    x <- e^h x + 2 (e^h - 1) s(x, t) + sqrt(e^{2h} - 1) z, h = t_j - t_{j+1} (the paper, sampling).

    x: [*batch, d] draws of N(0, I), any dimension; times: [steps + 1] falling from T to the stop; `noise`
    draws the z of one step, broadcastable to x, so that networks under comparison can share it.
    """
    for now, after in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        growth = math.expm1(now - after)
        x = x + growth * (x + 2 * score(x, now)) + math.sqrt(math.expm1(2 * (now - after))) * noise()
    return x
