"""Gaussian mixtures, the arbiters: sample, log-density and the exact score at every noise level.

Named families follow the paper's and its review discussion's notation: N(mu, s²), so that `case-two`, printed
there as 1/2 N(-4, 3) + 1/2 N(4, 3) against N(0, 2), has variances 3 and 2.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """p(x) = sum_k w_k N(x; mu_k, v_k I) in d dimensions.

    weights: [k], means: [k, d], variances: [k], all float64.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor

    @classmethod
    def of(cls, *components: tuple[float, float | tuple[float, ...], float]) -> "Mixture":
        """From (weight, mean, variance) triples; a scalar mean is one-dimensional."""
        weights, means, variances = zip(*components, strict=True)
        rows = [mean if isinstance(mean, tuple) else (mean,) for mean in means]
        return cls(*(torch.tensor(table, dtype=torch.float64) for table in (weights, rows, variances)))

    @property
    def dimension(self) -> int:
        return self.means.shape[1]

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` independent draws, [count, d]."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.dimension, dtype=torch.float64, generator=generator)
        return self.means[component] + self.variances[component].sqrt()[:, None] * noise

    def diffused(self, alpha: float | Tensor, sigma: float | Tensor) -> "Mixture":
        """The law of alpha x + sigma xi: means alpha mu_k, variances alpha² v_k + sigma²."""
        return Mixture(self.weights, alpha * self.means, alpha**2 * self.variances + sigma**2)

    def _log_joint(self, x: Tensor) -> Tensor:
        """log w_k N(x; mu_k, v_k I): [*batch, k] for `x: [*batch, d]`."""
        distance = (x[..., None, :] - self.means).square().sum(-1)
        log_normaliser = self.dimension / 2 * torch.log(2 * math.pi * self.variances)
        return self.weights.log() - log_normaliser - distance / (2 * self.variances)

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x), [*batch] for `x: [*batch, d]`."""
        return self._log_joint(x).logsumexp(-1)

    def score(self, x: Tensor) -> Tensor:
        """grad log p(x) = sum_k p(k | x) (mu_k - x) / v_k, the shape of `x: [*batch, d]`."""
        posterior = self._log_joint(x).softmax(-1) / self.variances
        return (posterior[..., None] * (self.means - x[..., None, :])).sum(-2)


def case_one(mu: float = 2.0, variance: float = 1.0) -> list[Mixture]:
    """N(-mu, s²) and N(mu, s²): the paper's separated pair."""
    return [Mixture.of((1.0, -mu, variance)), Mixture.of((1.0, mu, variance))]


def line(classes: int, spacing: float = 1.0) -> list[Mixture]:
    """`classes` unit Gaussians on a line, `spacing` apart, centred on 0: neighbours are alike."""
    centre = (classes - 1) / 2
    return [Mixture.of((1.0, spacing * (y - centre), 1.0)) for y in range(classes)]


@dataclass(frozen=True)
class Disc(Sequence[Mixture]):
    """`classes` Gaussians whose means fill a disc of the plane evenly: the more there are, the more neighbours overlap.

    Vogel's sunflower (1979): mu_y = radius sqrt((y + 1/2) / K) (cos y phi, sin y phi), phi = pi (3 - sqrt 5). Each is
    made when it is asked for, since whoever holds one class asks for no other.
    """

    classes: int
    radius: float = 3.0
    deviation: float = 0.3

    def __len__(self) -> int:
        return self.classes

    def __getitem__(self, y: Any) -> Any:
        if isinstance(y, slice):
            return [self[each] for each in range(*y.indices(len(self)))]
        if not 0 <= y < self.classes:
            raise IndexError(y)
        distance, angle = self.radius * math.sqrt((y + 0.5) / self.classes), y * math.pi * (3 - math.sqrt(5))
        return Mixture.of((1.0, (distance * math.cos(angle), distance * math.sin(angle)), self.deviation**2))


MIXTURES: dict[str, Callable[[], Sequence[Mixture]]] = {
    "case-one": case_one,
    "case-two": lambda: [Mixture.of((0.5, -4.0, 3.0), (0.5, 4.0, 3.0)), Mixture.of((1.0, 0.0, 2.0))],
    "overlap": lambda: [Mixture.of((0.5, -2.0, 1.0), (0.5, 2.0, 1.0)), Mixture.of((1.0, 0.0, 4.0))],
    "overlap-2d": lambda: [
        Mixture.of((0.5, (-2.0, 0.0), 1.0), (0.5, (2.0, 0.0), 1.0)),
        Mixture.of((1.0, (0.0, 0.0), 4.0)),
    ],
    "line-10": lambda: line(10),
    "line-50": lambda: line(50),
    "disc-10": lambda: Disc(10),
    "disc-100": lambda: Disc(100),
    "disc-1000": lambda: Disc(1000),
}
"""Families of classes by name; the first class is the head. Each call returns one `Mixture` a class."""
