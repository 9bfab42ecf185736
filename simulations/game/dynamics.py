"""How the game is approached: the Nash gap of gradient descent, local steps, sampled peers; and speed."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedmutual.data.mixtures import MIXTURES
from fedmutual.theory.descent import adam, descend, gradient_descent, sampled_peers, stable_rate
from fedmutual.theory.game import Game, uniform_peers
from simulations.game.cases import Case, Settings
from simulations.game.play import draw
from simulations.game.reference import autograd_igd
from simulations.game.world import World

SLOPE_FROM = 1000
"""The Nash gap's slope is fitted from this iteration on."""


@dataclass(frozen=True)
class Curve:
    """One line of a figure: `values: [len(rounds), seeds]`; `beta` where that is what sets it apart."""

    name: str
    rounds: list[int]
    values: Tensor
    beta: float | None = None


def logarithmic(most: int, count: int = 25) -> list[int]:
    """About `count` whole numbers from 1 to `most`, evenly spread on a logarithmic axis."""
    return sorted({round(float(x)) for x in np.geomspace(1, most, count)})


def nash_curves(world: World, betas: list[float], iterations: int, pace: float = 1.0) -> list[Curve]:
    """The Nash gap along gradient descent at `pace` times the stable rate, one curve a beta."""
    rounds, curves = logarithmic(iterations), []
    for beta in betas:
        game = world.game(torch.full((world.classes,), beta, dtype=torch.float64))
        path = descend(game, gradient_descent(pace * stable_rate(game)), iterations, record=rounds)
        gaps = torch.stack([game.nash_gap(path.profiles[number]) for number in rounds])
        curves.append(Curve(f"beta {beta:g}", rounds, gaps, beta))
    return curves


def slopes(curve: Curve) -> np.ndarray:
    """d log(gap) / d log(iteration) of each game by least squares from iteration 1000 on, [seeds]; a game whose gap
    has reached rounding, 1e-14 of where it began, is fitted up to there."""
    x = np.log(curve.rounds)
    late = np.array(curve.rounds) >= min(SLOPE_FROM, curve.rounds[-1] // 10)
    fitted = []
    for gap in curve.values.T.numpy():
        kept = late & np.isfinite(gap) & (gap > 1e-14 * gap[0])
        fitted.append(np.polyfit(x[kept], np.log(gap[kept]), 1)[0] if kept.sum() > 2 else np.nan)
    return np.array(fitted)


def distance(game: Game, A: Tensor, solved: Tensor) -> Tensor:
    """Relative distance of the scores from those at the equilibrium, on own noised data and in lambda's norm, [seeds]:
    the root of sum_y tr((A - A*) own_y (A - A*)^T) / sum_y tr(A* own_y A*^T)."""
    step = A - solved
    own = game.moments.own
    missing = (step * (step @ own)).sum((-3, -2, -1))
    return (missing / (solved * (solved @ own)).sum((-3, -2, -1))).sqrt()


def local_step_curves(world: World, beta: float, rounds: int, local_steps: tuple[int, ...] = (1, 5, 25)) -> list[Curve]:
    """Distance to the equilibrium over rounds of exchange, all peers heard, for several numbers of local steps."""
    game = world.game(torch.full((world.classes,), beta, dtype=torch.float64))
    return [_approach(f"E = {steps}", game, rounds, local_steps=steps) for steps in local_steps]


def peer_curves(world: World, beta: float, rounds: int) -> list[Curve]:
    """The same for one local step and one, three or all peers heard each round."""
    Q = uniform_peers(world.classes)
    game = world.game(torch.full((world.classes,), beta, dtype=torch.float64), Q)
    curves = []
    for count in sorted({1, min(3, world.classes - 1), world.classes - 1}):
        peers = None if count == world.classes - 1 else sampled_peers(Q, count, world.seeds)
        name = "all peers" if peers is None else f"{count} peer" + "s" * (count > 1) + " a round"
        curves.append(_approach(name, game, rounds, peers=peers))
    return curves


def _approach(
    name: str, game: Game, rounds: int, local_steps: int = 1, peers: Callable[[int], Tensor] | None = None
) -> Curve:
    numbers, solved = logarithmic(rounds), game.equilibrium()
    path = descend(game, gradient_descent(stable_rate(game)), rounds, local_steps, peers, record=numbers)
    return Curve(name, numbers, torch.stack([distance(game, path.profiles[number], solved) for number in numbers]))


@dataclass(frozen=True)
class HeatMaps:
    """Over time (rows) and space (columns), averaged over seeds: density and squared score errors of each class."""

    x: Tensor
    t: Tensor
    density: Tensor
    without: Tensor
    mutual: Tensor
    beta: float


def heat_maps(world: World, beta: float, reach: float, cells: int = 161) -> HeatMaps:
    """p_t(x) and E |s_y(x, t) - grad log p_t(x)|² at the equilibria of beta 0 and `beta`: [K, times, cells]."""
    x, times = torch.linspace(-reach, reach, cells, dtype=torch.float64), world.process.times
    zero = torch.zeros(world.classes, dtype=torch.float64)
    profiles = [world.game(zero + value).equilibrium() for value in (0.0, beta)]
    density: list[Tensor] = []
    errors: list[list[Tensor]] = [[], []]
    for j, t in enumerate(times):
        laws = [truth.diffused(world.process.alpha[j], world.process.sigma[j]) for truth in world.truths]
        density.append(torch.stack([law.log_density(x[:, None]).exp() for law in laws]))
        exact = torch.stack([law.score(x[:, None])[:, 0] for law in laws])
        for table, profile in zip(errors, profiles, strict=True):
            table.append((world.players.score(profile, x[:, None], t)[..., 0] - exact).square().mean(0))
    stacked, without, mutual = (torch.stack(table, 1) for table in (density, *errors))
    return HeatMaps(x, times, stacked, without, mutual, beta)


def stability(world: World, betas: list[float]) -> list[dict[str, float]]:
    """For each beta: the share of games that are monotone, and the spectral radius of best-response iteration."""
    rows = []
    for beta in betas:
        game = world.game(torch.full((world.classes,), beta, dtype=torch.float64))
        radius = game.spectral_radius()
        monotone = (game.smallest_eigenvalue() > 0).double().mean()
        rows.append(
            {"beta": beta, "monotone": float(monotone), "radius": float(radius.mean()), "worst": float(radius.max())}
        )
    return rows


def benchmark(games: int = 300, iterations: int = 5000, probe: int = 100) -> list[dict[str, float | str]]:
    """CPU seconds of `iterations` of `games` two-class games (m = 16, 50 samples, 50 times) in Gram form, beside a
    loop over clients with autograd on the raw samples, timed on `probe` iterations of one game and scaled up."""
    case = Case("overlap", MIXTURES["overlap"](), [36, 14])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        world = draw(case, list(range(games)), Settings())
        game = world.game(torch.full((2,), 0.1, dtype=torch.float64))
        rows: list[dict[str, float | str]] = []
        for name, optimiser, reference in (
            ("gradient descent", gradient_descent(0.1), "sgd"),
            ("adam", adam(1e-4), "adam"),
        ):
            start = time.process_time()
            descend(game, optimiser, iterations)
            gram = time.process_time() - start
            autograd_igd(world, game, 0, reference, 1e-4, 1)  # torch.optim loads more of torch when first used
            start = time.process_time()
            autograd_igd(world, game, 0, reference, 1e-4, probe)
            loop = (time.process_time() - start) * iterations / probe
            rows.append(
                {
                    "name": name,
                    "games": games,
                    "iterations": iterations,
                    "seconds": gram,
                    "autograd_seconds_per_game": loop,
                    "ratio": loop * games / gram,
                }
            )
    finally:
        torch.set_num_threads(threads)
    return rows
