"""Noised versions of a class's samples: all that the sent network of `publish = noise-budget` is trained on.

    z = alpha_s x + sigma_s eps,   eps ~ N(0, I),   ||x|| <= R,

a few of each sample, drawn once, at the last training time s before the border. What is trained on them alone is a
function of them (post-processing), so that all that is sent is one Gaussian mechanism. Where one sample is replaced by
another, each of its versions moves by alpha_s 2 R at most:

    rho = versions alpha_s² (2 R)² / (2 sigma_s²).

For t after s they serve as samples do. With a = alpha_t / alpha_s and b² = 1 - a²,

    x_t = a z + b xi,   xi ~ N(0, I),

has the distribution of alpha_t x + sigma_t eps, and the score there is grad log p_t(x_t) = E[-xi / b | x_t]: denoising
score matching from s, as where clean samples are not to be had (Daras, Dimakis and Daskalakis 2024). In units of noise,
-sigma_t grad log p_t, a network is to put out (sigma_t / b) xi, whose variance has no bound as t falls to s. So its
loss is weighed by (b / sigma_t)², which is to predict xi, and moves no minimiser.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fedmutual.config import RunConfig
from fedmutual.device import dtype_of
from fedmutual.diffusion import Process, make_process
from fedmutual.diffusion.process import expand
from fedmutual.errors import UserError
from fedmutual.networks.split import border
from fedmutual.privacy.cost import Cost
from fedmutual.privacy.secret import SecretStream


class Versions(NamedTuple):
    """Samples noised to the training time of index `level`: `samples: [versions, n, *dims]`, or those of some rows."""

    samples: Tensor
    level: int

    def of_rows(self, rows: Tensor, rng: torch.Generator) -> "Versions":
        """Of the samples `rows: [rows]` one version each, drawn: `[rows, *dims]`."""
        which = torch.randint(len(self.samples), rows.shape, generator=rng, device=rows.device)
        return self._replace(samples=self.samples[which, rows])

    def noised_on(self, process: Process, index: Tensor, xi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_t of each row at a time after `level`, the noise that is to be seen in it, and the weight (b / sigma_t)².

        `index: [rows]`, `xi: [rows, *dims]`. What is returned of rows at other times means nothing.
        """
        later, place = process.after(self.level), (index - self.level - 1).clamp(min=0)
        a, b, sigma = later.alpha[place], later.sigma[place], process.sigma[index]
        x = expand(a, xi) * self.samples + expand(b, xi) * xi
        return x, expand(sigma / b, xi) * xi, (b / sigma).square()


def draw_versions(config: RunConfig, data: Tensor) -> Versions:
    """Noised versions of class `data: [n, *dims]`, by secret noise: no two calls give the same.

    Raises:
        UserError: as `cost`.
    """
    level, process = level_of(config), make_process(config.diffusion, data.device, torch.float64)
    x = scaled_down(data.double(), norm_of(config, data[0].numel()))
    noise = secret_normal(config.publishing.noised_versions, *x.shape).to(data.device)
    return Versions((process.alpha[level] * x + process.sigma[level] * noise).to(data.dtype), level)


def versions_for(config: RunConfig, data: Tensor) -> Versions | None:
    """Fresh ones where the settings ask for them, for training that spends nothing since nothing of it is sent."""
    return draw_versions(config, data) if config.publishing.mode == "noise-budget" else None


def cost(config: RunConfig, dimension: int) -> Cost:
    """What the versions of a class cost, where one sample of so many numbers is replaced by another.

    Raises:
        UserError: no training time lies before the split.
    """
    level, process = level_of(config), make_process(config.diffusion, dtype=torch.float64)
    ratio = float(process.alpha[level] / process.sigma[level])
    mu = 2 * norm_of(config, dimension) * ratio
    return Cost(rho=config.publishing.noised_versions * mu**2 / 2)


def sent_epsilon(config: RunConfig, shape: tuple[int, ...]) -> float | None:
    """The epsilon at `delta` of all that a client sends in a run, for samples of `shape`; None where there is none.

    It follows from the settings, so that a server knows it too.

    Raises:
        UserError: as `cost`.
    """
    if config.publishing.mode != "noise-budget":
        return None
    return cost(config, math.prod(shape)).epsilon(config.publishing.delta)


def norm_of(config: RunConfig, dimension: int) -> float:
    """R, the norm that samples of so many numbers are scaled down to."""
    return config.publishing.sample_norm or math.sqrt(dimension)


def scaled_down(x: Tensor, norm: float) -> Tensor:
    """The samples `[n, *dims]`, those of a norm above `norm` scaled down to it."""
    norms = x.flatten(1).norm(dim=1)
    return x * expand((norm / norms).clamp(max=1), x)


def secret_normal(*shape: int) -> Tensor:
    """Standard normal numbers, float64, from the system's cryptographic source: nobody can draw them again."""
    return SecretStream().normal(*shape)


def level_of(config: RunConfig) -> int:
    """The index of the last training time that a network in two parts gives to the private one.

    Raises:
        UserError: no training time lies before the split.
    """
    process = make_process(config.diffusion, dtype=dtype_of(config.compute))
    level = int((process.times < border(config)).sum()) - 1
    if level < 0:
        raise UserError(f"split = {config.publishing.split:g} leaves no training time below it to noise at: raise it")
    return level
