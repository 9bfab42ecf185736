"""Individual gradient descent: one player's local steps against frozen peers (the paper's Algorithm 1).

theta_y <- theta_y - eta grad_{theta_y} [ L_y + beta_y M_y ](theta_y, theta_-y)

Peers do not move within a call, so their outputs are computed for many steps in one large batch, and a step
is the player's own forward and backward alone. With `peers-per-step` each step sees peers drawn by Q, which leaves the
gradient unbiased, for it is linear in the mean of the peers. Numbers leave the device once a call.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedmutual.config import RunConfig
from fedmutual.diffusion import Process
from fedmutual.errors import UserError
from fedmutual.learning.batches import Batch, fixed, fresh
from fedmutual.learning.objective import denoising_loss, mutual_loss
from fedmutual.learning.peers import Peers, effective_beta
from fedmutual.learning.player import Player, descend, predict
from fedmutual.learning.private_steps import poisson, private_step
from fedmutual.networks.split import border, parts
from fedmutual.privacy.secret import SecretStream
from fedmutual.privacy.versions import Versions
from fedmutual.seeds import derive, generator

NO_STEPS = "local-steps = 0 is for separate machines, whose server finds the number: give one here, such as 200"


class Diverged(RuntimeError):
    """The loss or its gradient stopped being finite; says for which class, round and step."""


@dataclass(frozen=True)
class Steps:
    """What a call of `local_steps` measured: means over its steps, each of them before the update.

    loss: L_y; mutual: M_y, without beta_y; gradient_norm: of the gradient of both, before clipping. Where a network is
    published in part they are of that part alone: L_y at its times, and the gradient in its parameters. left_out: steps
    whose gradient in the private part was not finite and counted as 0, where that must not stop what is sent.
    """

    loss: float
    mutual: float
    gradient_norm: float
    left_out: int = 0


def local_steps(
    player: Player,
    data: Tensor,
    peers: Peers,
    config: RunConfig,
    process: Process,
    y: int,
    round_: int,
    versions: Versions | None = None,
    secret: SecretStream | None = None,
) -> Steps:
    """`config.local_steps` steps of class y on its own `data: [n, *dims]`, in place.

    With noised `versions` of the data the published part is trained on them alone, and its loss is theirs. Steps of
    DP-SGD draw all but the peers of each step from `secret`, by default a stream of its own for each call.
    Without peers the mutual term is 0. Randomness: (seed, y, round, "steps") and, for the peers of each step,
    (seed, y, round, "peer-steps"); or (seed, y, 0, "noise") for fixed draws.

    Raises:
        UserError: no number of steps is given.
        Diverged: at the first step whose loss or gradient is not finite; the player cannot be used any more. By DP-SGD
            where its network is not.
    """
    if not config.local_steps:
        raise UserError(NO_STEPS)
    if config.publishing.mode == "dp-sgd":
        return _private_steps(player, data, peers, config, process, y, round_, secret or SecretStream())
    if (config.publishing.mode == "noise-budget") != (versions is not None):
        raise ValueError("the published part is trained on noised versions with publish = noise-budget, and only then")
    beta = effective_beta(config.mutual, len(data))
    if config.optimiser.draws == "fixed":
        batches = fixed(data, peers, process, config, generator(config.seed, y, 0, "noise", device=data.device))
    else:
        rng = generator(config.seed, y, round_, "steps", device=data.device)
        batches = fresh(data, peers, _shares(peers, config, y, round_), process, config, rng, versions)
    apart, measured = parts(player.network), []
    player.network.train()
    with torch.random.fork_rng(devices=[data.device] if data.is_cuda else []):
        torch.manual_seed(derive(config.seed, y, round_, "dropout"))
        for batch in batches:
            measured.append(_step(player, apart, batch, beta, config))
    where = f"class {y}, round {round_}"
    if not config.publishing.proved:
        return means(measured, where)
    return replace(means([row[:3] for row in measured], where), left_out=_not_finite([row[3:] for row in measured]))


def _shares(peers: Peers, config: RunConfig, y: int, round_: int) -> Tensor:
    """How much each peer counts in each step, `[local_steps, peers]`."""
    chance = generator(config.seed, y, round_, "peer-steps")
    return peers.drawn(config.mutual.peers_per_step, config.local_steps, chance)


def _private_steps(
    player: Player,
    data: Tensor,
    peers: Peers,
    config: RunConfig,
    process: Process,
    y: int,
    round_: int,
    secret: SecretStream,
) -> Steps:
    """As `local_steps`, by DP-SGD; what it measures is of clean samples. Only the noised network may stop it."""
    beta, shares = effective_beta(config.mutual, len(data)), _shares(peers, config, y, round_)
    player.network.train()
    with torch.random.fork_rng(devices=[data.device] if data.is_cuda else []):
        torch.manual_seed(secret.seed())
        sampled = poisson(data, peers, shares, process, config, secret)
        measured = [private_step(player, step, beta, config, secret) for step in sampled]
    if not all(bool(parameter.isfinite().all()) for parameter in player.network.parameters()):
        raise Diverged(f"class {y}, round {round_}: the network is no longer finite")
    loss, mutual, norm = (float(torch.stack(column).nanmean()) for column in zip(*measured, strict=True))
    return Steps(loss, mutual, norm)


def means(measured: Sequence[tuple[Tensor, ...]], where: str) -> Steps:
    """What steps measured (loss, mutual term, gradient norm; more must be finite too), read off the device at once.

    Raises:
        Diverged: at the first step of which something is not finite.
    """
    columns = torch.stack([torch.stack(column) for column in zip(*measured, strict=True)]).double().cpu()
    finite = columns.isfinite().all(0)
    if not finite.all():
        raise Diverged(f"{where}, local step {int(finite.long().argmin()) + 1}: the loss is no longer finite")
    loss, mutual, norm = (float(column.mean()) for column in columns[:3])
    return Steps(loss, mutual, norm)


def _not_finite(norms: Sequence[tuple[Tensor, ...]]) -> int:
    """How many of the steps have a norm that is not finite."""
    return sum(not all(bool(norm.isfinite()) for norm in step) for step in norms)


def _step(
    player: Player, apart: Sequence[tuple[Tensor, ...]], batch: Batch, beta: float, config: RunConfig
) -> tuple[Tensor, ...]:
    """One update; (denoising loss, mutual loss, gradient norms of the parts before clipping), scalars on the device."""
    output = predict(player.network, batch.x, batch.t, config.compute.autocast)
    own = denoising_loss(output, batch.target, batch.denoising)
    published = batch.t >= border(config)  # [batch]; peers know no other rows, nor are told of them
    mean, none = batch.peer_mean, own.new_zeros(())
    pull = none if mean is None else torch.where(published, mutual_loss(output, mean, batch.mutual), none).mean()
    total, proved = config.rounds * config.local_steps, config.publishing.proved
    norms = descend(player, apart, own.mean() + beta * pull, config.optimiser, total, forgiving=proved)
    return torch.where(published, own.detach(), none).mean(), pull.detach(), *norms
