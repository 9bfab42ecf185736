"""What a class can do without mutual learning, or to make it safe: the arms beside a fixed beta.

`auto_beta` and `similar_peers` decide from a class's own samples and its peers' networks. `tuned_ridge`,
`copy_head` and `pooled` are the controls that a claim for mutual learning must beat. All return profiles or
settings for every seed of a `World` at once.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fedmutual.seeds import generator
from fedmutual.theory.choice import choose, held_out_losses, similarity, surest
from fedmutual.theory.game import minimise_quadratic, relative_ridge
from fedmutual.theory.moments import Players, class_moments, denoising_losses, moments
from simulations.game.world import RIDGE, World

BETAS = (0.0, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0)
RIDGES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
"""Candidates, the safe one first; ridges in units of the mean diagonal of the class's own Gram matrix."""


def alone(world: World) -> Tensor:
    """Every class on its own at the base ridge: the equilibrium at beta = 0, [seeds, K, d, m]."""
    return world.game(torch.zeros(world.classes, dtype=torch.float64)).equilibrium()


def auto_beta(world: World, Q: Tensor, cautions: tuple[float, ...] = (1.0,), parts: int = 5) -> Tensor:
    """beta of each class by k-fold held-out loss against peers that stay alone, [cautions, seeds, K]."""
    peers = alone(world)
    losses = [_held_out(world, y, parts, betas=BETAS, peers=(Q, peers)) for y in range(world.classes)]
    return _chosen(world, losses, BETAS, cautions, surest)


def tuned_ridge(world: World, cautions: tuple[float, ...] = (1.0,), parts: int = 5) -> Tensor:
    """The ridge of each class by one standard error on the same folds, every class alone, [cautions, seeds, K]."""
    losses = [_held_out(world, y, parts, ridges=RIDGES) for y in range(world.classes)]
    return _chosen(world, losses, RIDGES, cautions, choose) * relative_ridge(world.moments, 1.0)


def _chosen(
    world: World,
    losses: list[Tensor],
    candidates: tuple[float, ...],
    cautions: tuple[float, ...],
    rule: Callable[..., Tensor],
) -> Tensor:
    """Every class's candidate at every caution, [cautions, seeds, K]; classes of one sample have no seeds dimension."""
    seeds = len(world.seeds)
    picks = [torch.stack([rule(table, candidates, one).expand(seeds) for table in losses], -1) for one in cautions]
    return torch.stack(picks)


def _held_out(
    world: World,
    y: int,
    parts: int,
    betas: tuple[float, ...] = (0.0,),
    ridges: tuple[float, ...] = (RIDGE,),
    peers: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Held-out losses of class y's best responses, [seeds, candidates, n_y], the candidates in one batch.

    One of `betas` and `ridges` has several entries. The moments of a fold serve all candidates, so `fit` is
    called once a fold and its model is the stack of all candidates' networks.
    """
    sample = world.samples[y]
    if sample.count < 2:  # nothing can be held out, and `choose` keeps the first candidate
        return torch.zeros(max(len(betas), len(ridges)), sample.count, dtype=sample.x0.dtype)
    beta, ridge = (torch.tensor(values, dtype=torch.float64)[:, None, None, None] for values in (betas, ridges))

    def fit(_: float, kept: Tensor) -> Tensor:
        weights = world.own_weight, world.mutual_weight
        own, target, cross = class_moments(world.players, y, sample.take(kept), world.process, *weights)
        hessian = own + beta * cross[..., y, :] + ridge * _mean_diagonal(own)
        if peers is None:
            return minimise_quadratic(hessian, -target)
        Q, profile = peers
        pull = torch.einsum("...z,...zdn,...mzn->...dm", Q[..., y, :], profile, cross)
        return minimise_quadratic(hessian, beta * pull - target)

    def loss(model: Tensor, held_out: Tensor) -> Tensor:
        part = sample.take(held_out)
        return denoising_losses(world.players, model, y, part, world.process, world.own_weight).movedim(0, -2)

    return held_out_losses(sample.count, [0.0], fit, loss, parts)[..., 0, :]


def copy_head(world: World, profile: Tensor) -> tuple[World, Tensor]:
    """Every class generates with the head's network of `profile`: (world with the head's features, profile)."""
    W, U = (table[:, :1].expand(-1, world.classes, -1, -1) for table in (world.players.W, world.players.U))
    head = profile[:, :1].expand(-1, world.classes, -1, -1)
    return replace(world, players=Players(W, U, world.players.horizon)), head


def pooled(world: World) -> tuple[World, Tensor]:
    """One class-conditional network of the same width on everybody's samples: (world with its features, profile).

    s(x, t, y) = A ReLU(W x + U e(t) + v_y) / m with W and U the head's, v_y uniform on [-1, 1], and one A
    that minimises the mean loss over all samples plus the base ridge.
    """
    W, U = (table[:, :1].expand(-1, world.classes, -1, -1) for table in (world.players.W, world.players.U))
    shift = torch.stack(
        [torch.stack([_shift(seed, y, W.shape[-2]) for y in range(world.classes)]) for seed in world.seeds]
    )
    players = Players(W, U + torch.stack([torch.zeros_like(shift), shift], -1), world.players.horizon)
    table = moments(players, world.samples, world.process, world.own_weight, world.mutual_weight)
    counts = torch.tensor([sample.count for sample in world.samples], dtype=torch.float64)
    share = (counts / counts.sum())[:, None, None]
    own, target = (share * table.own).sum(-3), (share * table.target).sum(-3)
    A = minimise_quadratic(own + RIDGE * _mean_diagonal(own), -target)
    return replace(world, players=players), A[:, None].expand(-1, world.classes, -1, -1)


def _mean_diagonal(own: Tensor) -> Tensor:
    """The unit of ridges: the mean diagonal of a Gram matrix times the identity, [*batch, m, m]."""
    return own.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * torch.eye(own.shape[-1], dtype=own.dtype)


def _shift(seed: int, y: int, features: int) -> Tensor:
    """v_y, [m]."""
    return 2 * torch.rand(features, dtype=torch.float64, generator=generator(seed, y, "pooled")) - 1


def similar_peers(world: World, temperature: float = 0.01, high: float = 0.25) -> Tensor:
    """Q by similarity of the scores of classes that are alone, on own data at t / T >= high: [seeds, K, K]."""
    profile, process, rows = alone(world), world.process, []
    times = [j for j, t in enumerate(process.times) if t >= high * process.horizon]
    for y, sample in enumerate(world.samples):
        scores = []
        for j in times:
            x, _ = sample.at(process, j)
            scores.append(world.players.score(profile, x[..., None, :, :], process.times[j]))
        everyone = torch.cat(scores, -2)  # [seeds, K, times n_y, d]
        others = [z for z in range(world.classes) if z != y]
        row = torch.zeros(everyone.shape[:-2], dtype=everyone.dtype)
        row[..., others] = similarity(everyone[..., y, :, :], everyone[..., others, :, :], temperature)
        rows.append(row)
    return torch.stack(rows, -2)
