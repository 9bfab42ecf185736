"""Individual gradient descent: one player's local steps against frozen peers (the paper's Algorithm 1).

theta_y <- theta_y - eta grad_{theta_y} [ L_y + beta_y M_y ](theta_y, theta_-y)

Peers do not move within a call, so their outputs are computed for many steps in one large batch, and a step
is the player's own forward and backward alone. With `peers-per-step` each step sees peers drawn by Q, which leaves the
gradient unbiased, for it is linear in the mean of the peers. Numbers leave the device once a call.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmutual.config import RunConfig
from fedmutual.diffusion import Process
from fedmutual.errors import UserError
from fedmutual.learning.batches import Batch, fixed, fresh
from fedmutual.learning.objective import denoising_loss, mutual_loss
from fedmutual.learning.peers import Peers, effective_beta
from fedmutual.learning.player import Player, descend, predict
from fedmutual.networks.split import border, parts
from fedmutual.seeds import derive, generator

NO_STEPS = "local-steps = 0 is for separate machines, whose server finds the number: give one here, such as 200"


class Diverged(RuntimeError):
    """The loss or its gradient stopped being finite; says for which class, round and step."""


@dataclass(frozen=True)
class Steps:
    """What a call of `local_steps` measured: means over its steps, each of them before the update.

    loss: L_y; mutual: M_y, without beta_y; gradient_norm: of the gradient of both, before clipping. Where a network is
    published in part they are of that part alone: L_y at its times, and the gradient in its parameters.
    """

    loss: float
    mutual: float
    gradient_norm: float


def local_steps(
    player: Player,
    data: Tensor,
    peers: Peers,
    config: RunConfig,
    process: Process,
    y: int,
    round_: int,
) -> Steps:
    """`config.local_steps` steps of class y on its own `data: [n, *dims]`, in place.

    Without peers the mutual term is 0. Randomness: (seed, y, round, "steps") and, for the peers of each step,
    (seed, y, round, "peer-steps"); or (seed, y, 0, "noise") for fixed draws.

    Raises:
        UserError: no number of steps is given.
        Diverged: at the first step whose loss or gradient is not finite; the player cannot be used any more.
    """
    if not config.local_steps:
        raise UserError(NO_STEPS)
    beta = effective_beta(config.mutual, len(data))
    if config.optimiser.draws == "fixed":
        batches = fixed(data, peers, process, config, generator(config.seed, y, 0, "noise", device=data.device))
    else:
        rng = generator(config.seed, y, round_, "steps", device=data.device)
        chance = generator(config.seed, y, round_, "peer-steps")
        shares = peers.drawn(config.mutual.peers_per_step, config.local_steps, chance)
        batches = fresh(data, peers, shares, process, config, rng)
    apart, measured = parts(player.network), []
    player.network.train()
    with torch.random.fork_rng(devices=[data.device] if data.is_cuda else []):
        torch.manual_seed(derive(config.seed, y, round_, "dropout"))
        for batch in batches:
            measured.append(_step(player, apart, batch, beta, config))
    return means(measured, f"class {y}, round {round_}")


def means(measured: Sequence[tuple[Tensor, ...]], where: str) -> Steps:
    """What steps measured (loss, mutual term, gradient norm; more must be finite too), read off the device at once.

    Raises:
        Diverged: at the first step of which something is not finite.
    """
    columns = torch.stack([torch.stack(column) for column in zip(*measured, strict=True)]).double().cpu()
    finite = columns.isfinite().all(0)
    if not finite.all():
        raise Diverged(f"{where}, local step {int(finite.long().argmin()) + 1}: the loss is no longer finite")
    return Steps(*(float(column.mean()) for column in columns[:3]))


def _step(
    player: Player, apart: Sequence[tuple[Tensor, ...]], batch: Batch, beta: float, config: RunConfig
) -> tuple[Tensor, ...]:
    """One update; (denoising loss, mutual loss, gradient norms of the parts before clipping), scalars on the device."""
    output = predict(player.network, batch.x, batch.t, config.compute.autocast)
    own = denoising_loss(output, batch.target, batch.denoising)
    published = (batch.t >= border(config)).to(own.dtype)  # [batch]; peers know no other rows, nor are told of them
    mean = batch.peer_mean
    pull = own.new_zeros(()) if mean is None else mutual_loss(output, mean, batch.mutual * published).mean()
    norms = descend(player, apart, own.mean() + beta * pull, config.optimiser, config.rounds * config.local_steps)
    return (own.detach() * published).mean(), pull.detach(), *norms
