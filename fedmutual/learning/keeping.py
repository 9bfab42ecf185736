"""Which of its own rounds a class publishes: the last, or the last of those that its held-out samples find best.

A class with few samples overfits while a large one still learns, and each may stop at a round of its own. Let l_r be
the held-out losses of the averaged network after round r, one a sample, and b the round of the smallest mean up to now.
The network of round r is published unless l_r - l_b is above 0 by more than a standard error, widened by Student's
t: Breiman's one-standard-error rule on paired differences, with the last round as the safe choice. So the noise of a
round, or few samples, keep nobody back, and what is published changes nothing in how the class trains on.

A network that is published in part keeps each part at a round of its own, by the losses at that part's times: which
round is sent must not depend on what is not. Where what is sent is proved, only the private part chooses: held-out
samples must not decide what is sent either.
"""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fedmutual.config import HELD_OUT_TO_CHOOSE, RunConfig
from fedmutual.diffusion import Process
from fedmutual.learning.held_out import held_out_losses, held_out_times, mean_loss
from fedmutual.learning.player import Kept, Player
from fedmutual.networks.split import border, parts
from fedmutual.theory.choice import choose

OfClass = Callable[[nn.Module, int], nn.Module]
"""(the player's network, class) -> the network of that class, (x, t) -> output."""


def keeps_best(config: RunConfig, held_out: int) -> bool:
    """Whether a player with so many held-out samples chooses among its rounds."""
    return config.optimiser.keep == "best" and held_out >= HELD_OUT_TO_CHOOSE


def end_round(
    player: Player,
    held_out: Mapping[int, Tensor],
    config: RunConfig,
    process: Process,
    round_: int,
    of_class: OfClass = lambda network, y: network,
) -> dict[int, float]:
    """Choose what a player publishes after a round, by the held-out samples {class: [n, *dims]} of what it trains on.

    Returns {class: the held-out loss of what is published}, in rounds that report it (`evaluate-every`). The newest
    network is measured in these rounds, and in every round where the player chooses.
    """
    held_out = {y: samples for y, samples in held_out.items() if len(samples)}
    every, chooses = config.federation.evaluate_every, keeps_best(config, sum(map(len, held_out.values())))
    reports = bool(every and round_ % every == 0)
    if not held_out or not (chooses or reports):
        return {}
    network, seed, autocast = _averaged(player), config.seed, config.compute.autocast
    losses = {
        y: held_out_losses(of_class(network, y), samples, config.diffusion, autocast, process, seed, y)
        for y, samples in held_out.items()
    }
    told = torch.tensor([mean_loss(own) for own in losses.values()], dtype=torch.float64)
    if chooses:
        told = _choose(player, list(losses.values()), config, process)
    return dict(zip(held_out, told.tolist(), strict=True)) if reports else {}


def _choose(player: Player, losses: Sequence[Tensor], config: RunConfig, process: Process) -> Tensor:
    """Keep each part of a player's network at a round; `[classes]`, what is reported of those that are kept."""
    high = process.times[held_out_times(process)] >= border(config)
    count, told = len(parts(player.network)[0]), torch.zeros(len(losses), dtype=torch.float64)
    if not config.publishing.proved:
        player.kept = keep_best(player.kept, player.average[:count], *_at(high, losses))
        told += player.kept.losses
    if not high.all():
        player.kept_private = keep_best(player.kept_private, player.average[count:], *_at(~high, losses))
        told += player.kept_private.losses
    return told


def _at(times: Tensor, losses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Each sample's loss at some of the times, `[n]`, and what these times add to each class's mean, `[classes]`."""
    share = float(times.double().mean())
    told = torch.tensor([share * mean_loss(own[times]) for own in losses], dtype=torch.float64)
    return torch.cat([own[times].mean(0) for own in losses]), told


def _averaged(player: Player) -> nn.Module:
    """A network of its own with the averaged parameters as they are."""
    network = copy.deepcopy(player.network)
    with torch.no_grad():
        for parameter, average in zip(network.parameters(), player.average, strict=True):
            parameter.copy_(average)
    return network


def keep_best(before: Kept | None, average: Sequence[Tensor], losses: Tensor, told: Tensor) -> Kept:
    """The newest round, unless its held-out `losses: [n]` are worse than the best round's beyond their error.

    before: what was kept until now; average: the averaged parameters after the newest round; told: `[classes]`, what is
    reported of that round if it is kept.
    """
    if before and not _as_good(losses, before.best):
        before.newest = False
        return before
    best = before.best if before and before.best.mean() <= losses.mean() else losses
    return Kept([parameter.clone() for parameter in average], best, told)


def _as_good(losses: Tensor, best: Tensor) -> bool:
    """Whether held-out samples cannot tell a round with such losses `[n]` from a better one, `best: [n]`."""
    finite = bool(losses.isfinite().all())
    return finite and bool(choose(torch.stack([losses, best]), (1.0, 0.0)))


def pack_kept(player: Player) -> dict[str, Tensor]:
    """What a player keeps of earlier rounds, and what its next choice needs, under names `kept/...`, of the private
    part `kept-private/...`."""
    return _pack("kept", player.kept) | _pack("kept-private", player.kept_private)


def unpack_kept(player: Player, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `pack_kept`, into a player whose average is in place."""
    count = len(parts(player.network)[0])
    player.kept = _unpack("kept", tensors, player.average[:count])
    player.kept_private = _unpack("kept-private", tensors, player.average[count:])


def _pack(name: str, kept: Kept | None) -> dict[str, Tensor]:
    if not kept:
        return {}
    network = {} if kept.newest else {f"{name}/{place}": parameter for place, parameter in enumerate(kept.network)}
    return {f"{name}/best": kept.best, f"{name}/losses": kept.losses, **network}


def _unpack(name: str, tensors: Mapping[str, Tensor], average: Sequence[Tensor]) -> Kept | None:
    if f"{name}/best" not in tensors:
        return None
    newest, device = f"{name}/0" not in tensors, average[0].device
    network = average if newest else [tensors[f"{name}/{place}"] for place in range(len(average))]
    copies = [parameter.to(device, copy=True) for parameter in network]
    return Kept(copies, tensors[f"{name}/best"].to(device), tensors[f"{name}/losses"], newest)
