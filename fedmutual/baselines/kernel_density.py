"""`kernel-density`: no network, but a Gaussian around each training image, of the shape of its class's covariance.

p_y(x) = 1 / n sum_i N(x; x_i, h² C_y)

C_y is the covariance of class y's training samples, shrunk as Ledoit and Wolf (2004) do; h is chosen by the likelihood
of the class's held-out samples, from `GRID`. Noised, it is a mixture again, whose denoiser is known exactly, so that it
is audited as a network is; it is drawn from directly. What stands for class y holds its training samples.
"""

import math

import torch
from torch import Tensor, nn

from fedmutual.baselines import Data, OnRound, Trained, ignore
from fedmutual.config import Parametrisation, RunConfig
from fedmutual.data import ClassData
from fedmutual.diffusion import Process
from fedmutual.errors import UserError
from fedmutual.learning.objective import denoising_target

GRID = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0)
"""Bandwidths in units of the class's own spread: at 1 a kernel is as wide as the class's samples, which for a class of
a few samples is narrower than the class."""

LEAST = 1e-4
"""The smallest variance of a kernel over the largest, below which a direction is held to have none at all."""


class KernelDensity(nn.Module):
    """The exact minimiser of the denoising loss on samples of p_y: (x: [batch, *dims], t: [batch]) -> [batch, *dims].

    In the axes of C_y, where kernel i has the variances v: x_0 = sum_i w_i [ x_i + alpha v / s (x - alpha x_i) ] with
    s = alpha² v + sigma² and w the softmax of -1/2 sum (x - alpha x_i)² / s.
    samples: [n, *dims]; axes: [d, d], a column an axis; variances: [d].
    """

    def __init__(
        self, samples: Tensor, axes: Tensor, variances: Tensor, process: Process, parametrisation: Parametrisation
    ):
        """`process`: its tables on the device and in the dtype of the samples."""
        super().__init__()
        self.shape = samples.shape[1:]
        self.centres, self.axes, self.variances = samples.flatten(1) @ axes, axes, variances
        self.process, self.parametrisation = process, parametrisation

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        index = torch.searchsorted(self.process.times, t.contiguous())
        alpha, sigma = self.process.alpha[index, None], self.process.sigma[index, None]
        rows, spread = x.flatten(1) @ self.axes, alpha.square() * self.variances + sigma.square()  # [batch, d]
        # (x - alpha c)² / s summed over axes, by three products in place of a tensor [batch, n, d].
        cross = (alpha * rows / spread) @ self.centres.T
        square = (alpha.square() / spread) @ self.centres.square().T
        mean = (cross - square / 2).softmax(1) @ self.centres
        x0 = (mean + alpha * self.variances / spread * (rows - alpha * mean)) @ self.axes.T
        noise = (x.flatten(1) - alpha * x0) / sigma
        return denoising_target(self.parametrisation, x0, noise, alpha, sigma).view_as(x)

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """`[count, *dims]` samples of p_y, without the steps of a sampler and their error."""
        chosen = torch.randint(len(self.centres), (count,), generator=rng, device=rng.device)
        noise = torch.randn(count, len(self.variances), generator=rng, device=rng.device, dtype=self.variances.dtype)
        rows = (self.centres[chosen] + self.variances.sqrt() * noise) @ self.axes.T
        return rows.view(count, *self.shape)


def log_likelihood(points: Tensor, centres: Tensor, variances: Tensor) -> Tensor:
    """log p of `points: [m, d]` under equal Gaussians of `variances: [d]` around `centres: [n, d]`: `[m]`."""
    square = ((points[:, None] - centres) ** 2 / variances).sum(2)
    constant = (2 * math.pi * variances).log().sum() / 2 + math.log(len(centres))
    return (-square / 2).logsumexp(1) - constant


def kernel_density(config: RunConfig, data: Data, on_round: OnRound = ignore) -> Trained:
    """Raises `UserError` where a class has no held-out samples to choose by."""
    if not all(len(part.held_out) for part in data):
        raise UserError("kernel-density chooses its bandwidth by held-out samples: set held-out above 0")
    fitted = [_fit(part) for part in data]
    networks: dict[int | str, dict[str, Tensor]] = {y: network for y, (network, _, _) in enumerate(fitted)}
    facts = {
        "tuned": {"setting": "bandwidth", "grid": GRID},
        "bandwidth_chosen": [chosen for _, chosen, _ in fitted],
        "held_out_log_likelihoods": [likelihoods for _, _, likelihoods in fitted],
    }
    return Trained(networks, 0, facts)


def _fit(part: ClassData) -> tuple[dict[str, Tensor], float, list[float]]:
    """What stands for a class, its bandwidth, and the mean held-out log likelihood of each bandwidth."""
    from sklearn.covariance import LedoitWolf  # only where a class is fitted: runs are read without scikit-learn

    rows, held_out = part.train.flatten(1).double(), part.held_out.flatten(1).double()
    covariance = torch.from_numpy(LedoitWolf().fit(rows.cpu().numpy()).covariance_).to(rows)
    values, axes = torch.linalg.eigh(covariance)
    values = values.clamp(min=LEAST * float(values.max()) or LEAST)
    likelihoods = [float(log_likelihood(held_out @ axes, rows @ axes, h * h * values).mean()) for h in GRID]
    h = GRID[likelihoods.index(max(likelihoods))]
    kept = {"samples": part.train, "axes": axes.to(part.train), "variances": (h * h * values).to(part.train)}
    return kept, h, likelihoods
