"""`copy-head`: the largest class's network, trained alone, given to every class.

What a class would get by borrowing and learning nothing of its own.
"""

from torch import Tensor

from fedmutual.baselines import Data, OnRound, Trained, ignore
from fedmutual.baselines.isolated import train_alone
from fedmutual.config import RunConfig


def copy_head(config: RunConfig, data: Data, on_round: OnRound = ignore) -> Trained:
    head = max(range(len(data)), key=lambda y: len(data[y].train))
    player, rows = train_alone(config, data[head], head)
    for round_, row in enumerate(rows, 1):
        on_round(round_, [row])
    network, steps = player.published(), config.rounds * config.local_steps / len(data)
    copies: dict[int | str, dict[str, Tensor]] = {
        y: {name: tensor.clone() for name, tensor in network.items()} for y in range(len(data))
    }
    facts = {"copied_class": head, "parameters": sum(tensor.numel() for tensor in network.values())}
    return Trained(copies, steps, facts)
