"""Simultaneous individual gradient descent of all classes in one process: the paper's Algorithm 1, centralised.

What the federated run must equal when everyone takes part and all peers are sent.
"""

import copy

from torch import Tensor

from fedmutual.config import RunConfig
from fedmutual.learning.igd import Peers, Player, freeze, local_steps, make_process
from fedmutual.networks import build


def central_igd(config: RunConfig, data: list[Tensor]) -> list[Player]:
    """`config.rounds` exchanges of `config.local_steps` steps; `data[y]: [n_y, *dims]` on the CPU."""
    process = make_process(config)
    shape = tuple(data[0].shape[1:])
    players = [Player.start(build(config, shape, y), config) for y in range(len(data))]
    for round_ in range(1, config.rounds + 1):
        frozen = [copy.deepcopy(player.network) for player in players]
        for network, player in zip(frozen, players, strict=True):
            network.load_state_dict(player.published())
            freeze(network, config)
        for y, player in enumerate(players):
            others = [network for z, network in enumerate(frozen) if z != y]
            peers = Peers(others, [1 / len(others)] * len(others)) if config.beta else Peers()
            local_steps(player, data[y], peers, config, process, y, round_)
    return players
