"""`central-igd`: simultaneous individual gradient descent of all classes in one process, the paper's Algorithm 1.

Everyone sees everyone's published network of the step before: what a federated run with one local step must
equal when everyone takes part and all peers are sent.
"""

import copy
import time

from fedmutual.baselines import Data, OnRound, Rows, Trained, ignore
from fedmutual.config import RunConfig
from fedmutual.device import dtype_of
from fedmutual.diffusion import make_process
from fedmutual.learning.igd import local_steps
from fedmutual.learning.keeping import end_round
from fedmutual.learning.peers import Peers, freeze
from fedmutual.learning.player import Player
from fedmutual.networks import build
from fedmutual.privacy.versions import versions_for


def central_igd(config: RunConfig, data: Data, on_round: OnRound = ignore) -> Trained:
    device, shape = data[0].train.device, tuple(data[0].train.shape[1:])
    each_step = config.but(rounds=config.rounds * config.local_steps, local_steps=1)
    process = make_process(config.diffusion, device, dtype_of(config.compute))
    players = [Player.start(build(config, shape, y).to(device), config.optimiser) for y in range(len(data))]
    frozen = [freeze(copy.deepcopy(player.network), config.compute.autocast) for player in players]
    others = [[network for z, network in enumerate(frozen) if z != y] for y in range(len(data))]
    peers = [Peers(rest, [1 / len(rest)] * len(rest)) if config.mutual.beta else Peers() for rest in others]
    versions = [versions_for(config, part.train) for part in data]
    seconds = [0.0] * len(data)
    for step in range(1, each_step.rounds + 1):
        for network, player in zip(frozen, players, strict=True):
            network.load_state_dict(player.published())
        rows: Rows = []
        for y, (player, part) in enumerate(zip(players, data, strict=True)):
            began = time.perf_counter()
            steps = local_steps(player, part.train, peers[y], each_step, process, y, step, versions[y])
            seconds[y] += time.perf_counter() - began
            rows.append({"class": y, "loss": steps.loss, "mutual": steps.mutual, "grad_norm": steps.gradient_norm})
        if step % config.local_steps == 0:
            round_ = step // config.local_steps
            for y, (player, part) in enumerate(zip(players, data, strict=True)):
                told = end_round(player, {y: part.held_out}, config, process, round_)
                rows[y] |= {"seconds": seconds[y], "held_out": told.get(y)}
            seconds = [0.0] * len(data)
            on_round(round_, rows)
    return Trained({y: player.published() for y, player in enumerate(players)}, each_step.rounds)
