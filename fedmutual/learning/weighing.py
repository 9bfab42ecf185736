"""When a class weighs its peers, what it keeps of that, and the pull and the wishes that follow (`beta-rule = auto`).

Weighing shows held-out samples to a class's own network and to all its peers, which must not cost more than a share of
its steps. Weights change slowly: where a round cannot pay for weighing, those of an earlier round stand. They are kept
with the player, so that a resumed run ends where an unbroken one does.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedmutual.config import HELD_OUT_TO_CHOOSE, RunConfig
from fedmutual.diffusion import Process
from fedmutual.learning.peers import ByNoise, Peers
from fedmutual.learning.player import Player, Weighed
from fedmutual.learning.stacking import DRAWS, LEVELS, stack

SHARE = 0.1
"""Of the work of a class's steps, as much as its weighing may take."""

UPDATE = 3
"""Forward passes that an update of the own network is worth: one forward, and a backward of two."""

EVERY = 4
"""Rounds for which weights stand at most, unless so many do not pay for weighing `HELD_OUT_TO_CHOOSE` samples."""


def schedule(config: RunConfig, held_out: int, peers: int) -> tuple[int, int]:
    """(rounds from one weighing to the next, samples shown in each range of noise) of a class that is sent `peers`.

    A round of S steps of B samples takes S B (3 + peers of a step) forward passes, of which a tenth pays for p samples
    in each of five ranges, shown to 1 + peers networks. Weighing takes place every ceil(2 held_out / p) rounds; were
    these more than `EVERY`, fewer samples are shown.
    """
    wanted, of_step = DRAWS * held_out, config.mutual.peers_per_step or peers
    if config.optimiser.draws == "fixed":  # a step of all samples at all times costs more than weighing does
        return 1, wanted
    steps = max(1, config.local_steps)  # with 0 the local steps refuse
    work = steps * config.optimiser.batch * (UPDATE + min(of_step, peers))
    paid = SHARE * work / (LEVELS * (1 + peers))
    shown = min(wanted, max(HELD_OUT_TO_CHOOSE, int(EVERY * paid)))
    return math.ceil(shown / paid), shown


def weighed(
    peers: Peers,
    classes: Sequence[int],
    player: Player,
    held_out: Tensor,
    config: RunConfig,
    process: Process,
    y: int,
    round_: int,
) -> Peers:
    """The peers of a round, of these `classes`, with Q_y and strength by what `held_out: [n, *dims]` say.

    None where none is worth it. In a round in which it is time the player is left with new weights.
    """
    if not peers.networks or len(held_out) < 2:
        return Peers()
    every, shown = schedule(config, len(held_out), len(peers.networks))
    if round_ - (player.weighed.round if player.weighed else 0) >= every:
        own = copy.deepcopy(player.network)
        own.load_state_dict(player.published())
        some, draws = rotated(held_out, shown, round_), max(1, shown // len(held_out))
        weights = stack(own.eval(), peers.networks, some, config, process, y, round_, draws)
        player.weighed = Weighed(round_, tuple(classes), weights)
    return pulling(peers, player.weighed.of(classes), config.mutual.beta) if player.weighed else Peers()


def rotated(held_out: Tensor, shown: int, round_: int) -> Tensor:
    """At most `shown` of `held_out: [n, *dims]`: all, or the next ones in turn, round by round."""
    count = len(held_out)
    if shown >= count:
        return held_out
    return held_out[(round_ * shown + torch.arange(shown, device=held_out.device)) % count]


def pulling(peers: Peers, weights: Tensor, beta: float) -> Peers:
    """`peers` that pull as far as `weights: [levels, 1 + peers]` say, the own network's first; none where all are 0."""
    share = weights[:, 1:].sum(1)
    if not share.any():
        return Peers()
    q = weights[:, 1:] / torch.where(share > 0, share, 1.0)[:, None]
    return replace(peers, by_noise=ByNoise(q, (share / weights[:, 0]).clamp(max=beta)))


def helpers(player: Player, count: int) -> list[int]:
    """The classes of at most `count` peers that had the largest weights, in the mean over noise, when last weighed."""
    if player.weighed is None:
        return []
    worth = player.weighed.weights[:, 1:].mean(0).tolist()
    best = sorted(zip(worth, player.weighed.classes, strict=True), key=lambda pair: (-pair[0], pair[1]))
    return [z for weight, z in best[:count] if weight > 0]


def pack_weighed(player: Player) -> dict[str, Tensor]:
    """The weights that a player keeps, under names `weighed/...`."""
    kept = player.weighed
    if kept is None:
        return {}
    return {
        "weighed/round": torch.tensor(kept.round),
        "weighed/classes": torch.tensor(kept.classes),
        "weighed/weights": kept.weights,
    }


def unpack_weighed(player: Player, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `pack_weighed`."""
    player.weighed = None
    if "weighed/round" in tensors:
        classes = tuple(tensors["weighed/classes"].tolist())
        player.weighed = Weighed(int(tensors["weighed/round"]), classes, tensors["weighed/weights"])
