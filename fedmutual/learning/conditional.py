"""Steps of one network for all classes, s(x, t, y), on pooled samples.

Methods differ in the rows that a step draws (`by_sample`, `by_class`, `in_turn`) and in its loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedmutual.config import RunConfig
from fedmutual.diffusion import Process
from fedmutual.errors import UserError
from fedmutual.learning.batches import Batch, blocks, noised
from fedmutual.learning.igd import Steps, means
from fedmutual.learning.objective import denoising_loss
from fedmutual.learning.peers import Peers
from fedmutual.learning.player import Player, descend
from fedmutual.seeds import derive, generator


@dataclass(frozen=True)
class Pool:
    """Samples of all classes, one class after the other."""

    samples: Tensor  # [N, *dims]
    labels: Tensor  # [N]
    counts: Tensor  # [K]

    @classmethod
    def of(cls, parts: Sequence[Tensor]) -> "Pool":
        """Class y's samples are `parts[y]: [n_y, *dims]`."""
        counts = torch.tensor([len(part) for part in parts], device=parts[0].device)
        labels = torch.arange(len(parts), device=counts.device).repeat_interleave(counts)
        return cls(torch.cat(list(parts)), labels, counts)

    def rows_of(self, labels: Tensor, rng: torch.Generator) -> Tensor:
        """For each of `labels` a row of its class, every sample of a class as likely as any other."""
        place = torch.rand(len(labels), generator=rng, device=labels.device, dtype=torch.float64)
        starts = self.counts.cumsum(0) - self.counts
        return starts[labels] + (place * self.counts[labels]).long()


Draw = Callable[[Pool, int, int, int, torch.Generator], Tensor]
"""(pool, first step, steps, batch, generator) -> rows of the pool [steps * batch]."""


def by_sample(pool: Pool, first: int, steps: int, batch: int, rng: torch.Generator) -> Tensor:
    """Every sample is as likely: a class comes up as often as it has samples."""
    return torch.randint(len(pool.samples), (steps * batch,), generator=rng, device=pool.labels.device)


def by_class(pool: Pool, first: int, steps: int, batch: int, rng: torch.Generator) -> Tensor:
    """Every class is as likely, and within it every sample."""
    labels = torch.randint(len(pool.counts), (steps * batch,), generator=rng, device=pool.labels.device)
    return pool.rows_of(labels, rng)


def in_turn(pool: Pool, first: int, steps: int, batch: int, rng: torch.Generator) -> Tensor:
    """Step k draws from class k mod K alone."""
    labels = torch.arange(first, first + steps, device=pool.labels.device) % len(pool.counts)
    return pool.rows_of(labels.repeat_interleave(batch), rng)


Loss = Callable[[nn.Module, Batch, Tensor, torch.Generator], tuple[Tensor, Tensor, Tensor]]
"""(network, batch, labels [batch], generator) -> what a step descends, its denoising part, its other part."""


def denoising(network: nn.Module, batch: Batch, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """E lambda(t) ||s(x_t, t, y) - target||²: class-conditional denoising, and nothing else."""
    own = denoising_loss(network(batch.x, batch.t, labels), batch.target, batch.denoising).mean()
    return own, own.detach(), own.new_zeros(())


def conditional_steps(
    player: Player,
    pool: Pool,
    draw: Draw,
    loss: Loss,
    config: RunConfig,
    process: Process,
    round_: int,
) -> Steps:
    """`config.local_steps` steps on the pool, in place. Randomness: (seed, "all", round, "steps").

    Raises:
        Diverged: at the first step whose loss or gradient is not finite; the player cannot be used any more.
        UserError: draws = fixed, which knows one class's samples only.
    """
    if config.optimiser.draws == "fixed":
        raise UserError("one network for all classes needs draws of its own at each step: set -s draws=fresh")
    device = pool.samples.device
    rng = generator(config.seed, "all", round_, "steps", device=device)
    parameters, measured = tuple(player.network.parameters()), []
    batch_size, total_steps = config.optimiser.batch, config.rounds * config.local_steps
    player.network.train()
    with torch.random.fork_rng(devices=[device] if pool.samples.is_cuda else []):
        torch.manual_seed(derive(config.seed, "all", round_, "dropout"))
        for first, steps in blocks(config.local_steps, batch_size, pool.samples[0].numel()):
            rows = draw(pool, first, steps, batch_size, rng)
            batches = noised(pool.samples[rows], Peers(), process, config, rng)
            for batch, labels in zip(batches, pool.labels[rows].split(batch_size), strict=True):
                whole, own, other = loss(player.network, batch, labels, rng)
                (norm,) = descend(player, (parameters,), whole, config.optimiser, total_steps)
                measured.append((own, other, norm))
    return means(measured, f"all classes, round {round_}")
