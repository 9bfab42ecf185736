"""Gaussian classes as games: their data, their random-feature networks, and the KL of what these generate.

Everything random comes from (seed, class), so that game number 7 is the same game in any batch, and settings
that are compared (beta, ridge, controls) meet the same data and the same features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmutual.data.mixtures import Mixture
from fedmutual.diffusion.process import Process, ornstein_uhlenbeck
from fedmutual.seeds import generator
from fedmutual.theory.density import Divergence, Grid, divergence
from fedmutual.theory.game import Game, relative_ridge, uniform_peers
from fedmutual.theory.moments import Moments, Players, Sample, moments

RIDGE = 1e-3
"""The base ridge, in units of the mean diagonal of the class's own beta-free Gram matrix: it only keeps the
solves well-conditioned, and does not grow with beta."""


@dataclass(frozen=True)
class World:
    """A batch of games, one for each seed, on the same classes.

    samples: one `Sample` a class, [seeds, n_y, d]. own_weight, mutual_weight: lambda and omega, [N].
    """

    seeds: list[int]
    truths: Sequence[Mixture]
    players: Players
    samples: list[Sample]
    process: Process
    own_weight: Tensor
    mutual_weight: Tensor
    moments: Moments

    @classmethod
    def draw(
        cls,
        seeds: list[int],
        truths: Sequence[Mixture],
        counts: list[int],
        features: int = 16,
        own_weight: str = "sigma",
        mutual_weight: str = "one",
        process: Process | None = None,
        shared: bool = False,
    ) -> "World":
        """Classes with `counts` samples each; `features` random features for each, or one set `shared` by all."""
        process = process or ornstein_uhlenbeck()
        dimension = truths[0].dimension
        players = Players.draw(seeds, len(truths), features, dimension, process.horizon, shared)
        samples = [_sample(seeds, y, truths[y], count, len(process)) for y, count in enumerate(counts)]
        own, mutual = process.weight(own_weight), process.weight(mutual_weight)
        table = moments(players, samples, process, own, mutual)
        return cls(seeds, truths, players, samples, process, own, mutual, table)

    @property
    def classes(self) -> int:
        return len(self.truths)

    def game(self, beta: Tensor, Q: Tensor | None = None, ridge: Tensor | None = None) -> Game:
        """beta: broadcastable to [*batch, seeds, K]; by default Q is uniform and the ridge `RIDGE`."""
        shape = torch.broadcast_shapes(beta.shape, (len(self.seeds), self.classes))
        Q = uniform_peers(self.classes) if Q is None else Q
        ridge = relative_ridge(self.moments, RIDGE) if ridge is None else ridge
        return Game(self.moments, beta.expand(shape), Q, ridge)

    def divergence(self, profiles: Tensor, grid: Grid | None = None) -> Divergence:
        """KL(P_0 || P_theta) for `profiles: [variants, seeds, K, 1, m]`: fields [variants, seeds, K]."""
        weights = profiles[..., 0, :].permute(1, 2, 3, 0)  # [seeds, K, m, variants], which share features

        def score(x: Tensor, t: float) -> Tensor:
            return (self.players.features(x[:, None], t) @ weights).permute(3, 0, 1, 2)

        return divergence(score, self.truths, grid or self.grid())

    def grid(self) -> Grid:
        """Wide enough for every class: at least [-12, 12], and nine standard deviations beyond every component."""
        reach = max(float((m.means[:, 0].abs() + 9 * m.variances.sqrt()).max()) for m in self.truths)
        reach = max(12.0, reach)
        cells = 2 * round(100 * reach / 12)  # cells of the same width whatever the domain
        return Grid(
            -reach,
            reach,
            cells,
            self.process.horizon,
            float(-torch.log(torch.tensor(self.process.alpha_stop))),
        )


def _sample(seeds: list[int], y: int, truth: Mixture, count: int, times: int) -> Sample:
    x0 = [truth.sample(count, generator(seed, y, "samples")) for seed in seeds]
    shape = (times, count, truth.dimension)
    noise = [torch.randn(shape, dtype=torch.float64, generator=generator(seed, y, "noise")) for seed in seeds]
    return Sample(torch.stack(x0), torch.stack(noise))
