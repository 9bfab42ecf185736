"""The arms of one case, played for a batch of seeds and measured class by class.

Every arm meets the same data, noise and (where it has networks of its own) the same features, so that
differences are paired over seeds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedmutual.data.mixtures import Mixture
from fedmutual.seeds import generator
from fedmutual.theory.density import exponential_samples
from fedmutual.theory.descent import adam, descend
from fedmutual.theory.game import Game, relative_ridge, uniform_peers
from simulations.game.cases import Case, Settings
from simulations.game.controls import auto_beta, copy_head, pooled, similar_peers, tuned_ridge
from simulations.game.world import RIDGE, World

CHUNK = 20
"""Seeds that are played at once: enough to be fast, few enough for the cache."""


@dataclass(frozen=True)
class Arm:
    """What the classes of a game do, by the name in tables and reports.

    beta: one for all, "auto" where each class chooses its own on held-out samples, None for a control without a mutual
    term. peers: whose networks count, where it is not all alike.
    """

    name: str
    beta: float | Literal["auto"] | None = None
    peers: str = ""


def at(beta: float, peers: str = "") -> Arm:
    """One beta for all classes."""
    return Arm(_named(f"{beta:g}", peers), beta, peers)


def auto(caution: str = "", peers: str = "") -> Arm:
    """Each class's own beta, chosen by `controls.auto_beta`; `caution` where it is not the setting's."""
    return Arm(_named("auto" + (f", {caution}" if caution else ""), peers), "auto", peers)


def _named(beta: str, peers: str) -> str:
    return f"beta {beta}" + (f", {peers}" if peers else "")


ALONE = at(0.0)
SIMILAR, BOLD = "similar peers", "caution 0"
TUNED_RIDGE, TUNED_RIDGE_BOLD = Arm("tuned ridge"), Arm("tuned ridge, caution 0")
COPY_HEAD, POOLED = Arm("copy head"), Arm("pooled")

Key = tuple[str, Arm]
"""(learning, arm): ("equilibrium", at(0.1))."""


@dataclass(frozen=True)
class Measured:
    """The metric of every arm, and the betas of those that chose them: {(learning, arm): [seeds, K]}.

    health: what says how far the numbers can be trusted, each the worst over all networks.
    """

    values: dict[Key, Tensor]
    betas: dict[Key, Tensor]
    health: dict[str, float]


def draw(case: Case, seeds: list[int], settings: Settings) -> World:
    """The world of a case under `settings`."""
    mutual_weight = settings.mutual_weight or case.mutual_weight
    return World.draw(seeds, case.truths, case.counts, settings.features, settings.own_weight, mutual_weight)


def measure(case: Case, metric: str, seeds: list[int], settings: Settings, done: Callable[[int], None]) -> Measured:
    """All arms on all seeds, in chunks; `done` is called with how many seeds are finished."""
    parts = []
    for first in range(0, len(seeds), CHUNK):
        chunk = seeds[first : first + CHUNK]
        parts.append(_measure_chunk(draw(case, chunk, settings), case, metric, settings))
        done(first + len(chunk))
    return Measured(
        {key: torch.cat([part.values[key] for part in parts]) for key in parts[0].values},
        {key: torch.cat([part.betas[key] for part in parts]) for key in parts[0].betas},
        {key: max(part.health[key] for part in parts) for key in parts[0].health},
    )


def _measure_chunk(world: World, case: Case, metric: str, settings: Settings) -> Measured:
    batches, chosen = _games(world, settings)
    profiles: dict[Key, tuple[World, Tensor]] = {}
    steepest = 0.0
    for batch in batches:
        solved = batch.game.equilibrium()
        scale = batch.game.gradient(batch.game.untrained).flatten(-3).norm(dim=-1)
        steepest = max(steepest, float((batch.game.gradient(solved).flatten(-3).norm(dim=-1) / scale).max()))
        learned = {"equilibrium": solved}
        if case.adam:
            learned["adam"] = descend(batch.game, adam(settings.rate), settings.iterations).last
        for learning, A in learned.items():
            profiles |= {(learning, arm): (world, A[k]) for k, arm in enumerate(batch.arms)}
            if ALONE in batch.arms:
                profiles[learning, COPY_HEAD] = copy_head(world, A[batch.arms.index(ALONE)])
    profiles["equilibrium", POOLED] = pooled(world)
    values, health = _evaluate(profiles, metric, settings)
    betas = {(learning, arm): chosen[arm] for learning, arm in profiles if arm in chosen}
    return Measured(values, betas, health | {"relative gradient at the equilibrium": steepest})


@dataclass(frozen=True)
class Batch:
    """Games that are played together: `arms[k]` is `game` at index k of its first dimension, [arms, seeds]."""

    arms: list[Arm]
    game: Game


def _games(world: World, settings: Settings) -> tuple[list[Batch], dict[Arm, Tensor]]:
    """The games of all arms, and {arm: [seeds, K]} of the betas that classes chose themselves."""
    batches: list[Batch] = []
    chosen: dict[Arm, Tensor] = {}
    neighbourhoods = {"": uniform_peers(world.classes)}
    if world.classes > 2:
        neighbourhoods[SIMILAR] = similar_peers(world)
    base = relative_ridge(world.moments, RIDGE)
    for peers, Q in neighbourhoods.items():
        careful, bold = auto_beta(world, Q, (settings.caution, 0.0), settings.folds)
        mine = {auto(peers=peers): careful, auto(BOLD, peers): bold}
        arms = {at(beta, peers): torch.full_like(base, beta) for beta in settings.betas} | mine
        ridges = [base] * len(arms)
        if not peers:
            tuned = tuned_ridge(world, (settings.caution, 0.0), settings.folds)
            arms |= {arm: torch.zeros_like(base) for arm in (TUNED_RIDGE, TUNED_RIDGE_BOLD)}
            ridges += list(tuned)
        game = world.game(torch.stack(list(arms.values())), Q, torch.stack(ridges))
        batches.append(Batch(list(arms), game))
        chosen |= mine
    return batches, chosen


def _evaluate(
    profiles: dict[Key, tuple[World, Tensor]], metric: str, settings: Settings
) -> tuple[dict[Key, Tensor], dict[str, float]]:
    """The metric of every arm; arms with the same features are evaluated in one batch."""
    values: dict[Key, Tensor] = {}
    health = {"error estimate": 0.0, "mass at the domain's edge": 0.0}
    for features in {id(world.players): world for world, _ in profiles.values()}.values():
        keys = [key for key, (world, _) in profiles.items() if world.players is features.players]
        batch = torch.stack([profiles[key][1] for key in keys])
        if metric == "kl":
            divergences = features.divergence(batch)
            flaws = (("error estimate", divergences.error), ("mass at the domain's edge", divergences.edge))
            for name, numbers in flaws:
                health[name] = max(health[name], float(numbers.max()))
            measured = divergences.kl
        else:
            measured = frechet_distances(features, batch, settings.samples)
        values |= {key: measured[k] for k, key in enumerate(keys)}
    return values, health if metric == "kl" else {}


def frechet_distances(world: World, profiles: Tensor, count: int) -> Tensor:
    """||m - m'||² + tr(S + S' - 2 (S S')^1/2) of `count` samples against the true moments: [variants, seeds, K].

    In two dimensions the trace of the root is sqrt(tr(S S') + 2 sqrt(det S det S')). Every variant of a game
    starts from the same noise and meets the same steps, so differences between variants are paired.
    """
    process = world.process
    stop = -math.log(process.alpha_stop)
    times = torch.cat([process.times.flip(0), torch.tensor([stop], dtype=torch.float64)])
    rows = []
    for k, seed in enumerate(world.seeds):
        random = generator(seed, "sampling")
        start = torch.randn(world.classes, count, 2, dtype=torch.float64, generator=random)
        W, U = world.players.W[k], world.players.U[k]
        A = profiles[:, k]

        def score(x: Tensor, t: float, W: Tensor = W, U: Tensor = U, A: Tensor = A) -> Tensor:
            bias = U[..., 0] * (t / world.players.horizon) + U[..., 1]
            return torch.relu(x @ W.mT + bias[:, None]) @ A.mT / W.shape[-2]

        def noise(shape: torch.Size = start.shape, random: torch.Generator = random) -> Tensor:
            return torch.randn(shape, dtype=torch.float64, generator=random)

        x = exponential_samples(score, start.expand(len(A), -1, -1, -1), times, noise)
        rows.append(torch.stack([_frechet(x[:, y], truth) for y, truth in enumerate(world.truths)], -1))
    return torch.stack(rows, 1)


def _frechet(x: Tensor, truth: Mixture) -> Tensor:
    """x: [variants, n, 2] -> [variants]."""
    mean, cov = x.mean(-2), torch.stack([torch.cov(part.T) for part in x])
    true_mean = truth.weights @ truth.means
    spread = truth.means - true_mean
    true_cov = (truth.weights * truth.variances).sum() * torch.eye(2) + spread.T @ (truth.weights[:, None] * spread)
    product = cov @ true_cov
    root = (_trace(product) + 2 * torch.linalg.det(product).clamp(min=0).sqrt()).sqrt()
    return (mean - true_mean).square().sum(-1) + _trace(cov) + _trace(true_cov) - 2 * root


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
