"""One class's network trained alone: what the controls are made of.

The arm `isolated` of a comparison is the federated run with beta 0, which this equals.
"""

import time

from fedmutual.baselines import Rows
from fedmutual.config import RunConfig
from fedmutual.data import ClassData
from fedmutual.device import dtype_of
from fedmutual.diffusion import Process, make_process
from fedmutual.learning.held_out import held_out_loss
from fedmutual.learning.igd import local_steps
from fedmutual.learning.keeping import end_round, keeps_best
from fedmutual.learning.peers import Peers
from fedmutual.learning.player import Player
from fedmutual.networks import build
from fedmutual.privacy.versions import versions_for


def train_alone(config: RunConfig, data: ClassData, y: int, process: Process | None = None) -> tuple[Player, Rows]:
    """Class y's player after all rounds, and its line of each round.

    `process`: that of the settings, or a part of it, whose tables are on the device and in the dtype of the run.
    """
    device = data.train.device
    process = process or make_process(config.diffusion, device, dtype_of(config.compute))
    player = Player.start(build(config, tuple(data.train.shape[1:]), y).to(device), config.optimiser)
    rows, versions = [], versions_for(config, data.train)
    for round_ in range(1, config.rounds + 1):
        began = time.perf_counter()
        steps = local_steps(player, data.train, Peers(), config, process, y, round_, versions)
        seconds = time.perf_counter() - began
        rows.append({"class": y, "loss": steps.loss, "grad_norm": steps.gradient_norm, "seconds": seconds})
        if keeps_best(config, len(data.held_out)):
            end_round(player, {y: data.held_out}, config, process, round_)
    return player, rows


def held_out(config: RunConfig, player: Player, data: ClassData, y: int) -> float:
    """The denoising loss of a player's published network on class y's held-out samples."""
    device, compute = data.train.device, config.compute
    network = build(config, tuple(data.train.shape[1:]), y).to(device)
    network.load_state_dict(player.published())
    process = make_process(config.diffusion, device, dtype_of(compute))
    return held_out_loss(network, data.held_out, config.diffusion, compute.autocast, process, config.seed, y)
