"""The same game played the slow way: torch networks, raw samples, autograd, one client after the other.

It shares no formula with the Gram form, so that the two check each other; it is also what the Gram form's
speed is measured against.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fedmutual.networks.random_features import RandomFeatures
from fedmutual.theory.game import Game
from simulations.game.world import World


def networks(world: World, game: int, profile: Tensor | None = None) -> list[RandomFeatures]:
    """The players of one game as modules, with `profile: [K, d, m]` or untrained."""
    players = []
    for y, truth in enumerate(world.truths):
        W, U = world.players.W[game, y], world.players.U[game, y]
        player = RandomFeatures((truth.dimension,), W.shape[0], world.players.horizon).double()
        player.W.copy_(W)
        player.U.copy_(U)
        if profile is not None:
            player.A.data.copy_(profile[y])
        players.append(player)
    return players


def noised(world: World, game: int, y: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Class y's empirical objective as one batch of all (time, sample) pairs: x_t, t, xi / sigma, lambda, omega."""
    sample, process = world.samples[y], world.process
    index = torch.arange(len(process)).repeat_interleave(sample.count)
    noise = sample.noise[game].flatten(0, 1)
    x = process.noised(sample.x0[game].repeat(len(process), 1), index, noise)
    target = noise / process.sigma[index][:, None]
    return x, process.times[index], target, world.own_weight[index], world.mutual_weight[index]


def regularised_loss(
    player: RandomFeatures, data: tuple[Tensor, ...], peers: Tensor, beta: float, ridge: float
) -> Tensor:
    """L_y + beta M_y + ridge ||A_y||²; `peers: [batch, d]` is the mean output of the peers on the same data."""
    x, t, target, own_weight, mutual_weight = data
    score = player(x, t)
    own = (own_weight * (score + target).square().mean(1)).mean()
    mutual = (mutual_weight * (score - peers).square().mean(1)).mean()
    return own + beta * mutual + ridge * player.A.square().sum()


def objective(
    world: World, game: int, y: int, players: list[RandomFeatures], beta: float, Q: Tensor, ridge: float
) -> Tensor:
    """Player y's objective against the others, gradients flowing into player y alone."""
    data = noised(world, game, y)
    return regularised_loss(players[y], data, peer_mean(players, data, Q[y]), beta, ridge)


@torch.no_grad()
def peer_mean(players: list[RandomFeatures], data: tuple[Tensor, ...], weights: Tensor) -> Tensor:
    """sum_z Q_yz s_z at class y's points, [batch, d]."""
    return sum(weight * peer(data[0], data[1]) for weight, peer in zip(weights, players, strict=True))


def autograd_igd(
    world: World,
    game: Game,
    number: int,
    optimiser: str,
    rate: float,
    rounds: int,
    local_steps: int = 1,
    peers: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Game `number` of the batch by a loop over clients: the final profile, [K, d, m].

    optimiser: "sgd" or "adam", from torch.optim. peers: round -> [K, K] in place of Q.
    """
    players = networks(world, number)
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimiser]
    steppers = [kind([player.A], lr=rate) for player in players]
    data = [noised(world, number, y) for y in range(len(players))]
    beta = game.beta.expand(*game.ridge.shape)[number].tolist()
    for round_number in range(1, rounds + 1):
        Q = game.Q if peers is None else peers(round_number)
        means = [peer_mean(players, data[y], Q[y]) for y in range(len(players))]
        for y, (player, stepper) in enumerate(zip(players, steppers, strict=True)):
            for _ in range(local_steps):
                stepper.zero_grad()
                regularised_loss(player, data[y], means[y], beta[y], float(game.ridge[number, y])).backward()
                stepper.step()
    return torch.stack([player.A.detach() for player in players])
