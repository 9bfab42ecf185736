"""`ridge`: isolated training with weight decay, each class's chosen by its own held-out samples.

The simplest regulariser of a class with few samples, and so the control that mutual learning has to beat. The
choice is the plain minimum of the held-out denoising loss over `GRID`; no test sample takes part.
"""

from torch import Tensor

from fedmutual.baselines import Data, OnRound, Rows, Trained, ignore
from fedmutual.baselines.isolated import held_out, train_alone
from fedmutual.config import RunConfig
from fedmutual.errors import UserError

GRID = (0.0, 0.1, 0.3, 1.0, 3.0)
"""Weight decays: with a learning rate of 1e-3 that falls to 0 over 4000 steps, the last shrinks a parameter that no
gradient holds by exp(-6)."""


def ridge(config: RunConfig, data: Data, on_round: OnRound = ignore) -> Trained:
    """Raises `UserError` where a class has no held-out samples to choose by."""
    if not all(len(part.held_out) for part in data):
        raise UserError("ridge chooses its weight decay by held-out samples: set held-out above 0")
    networks: dict[int | str, dict[str, Tensor]] = {}
    lines: list[Rows] = []
    chosen, losses = [], []
    for y, part in enumerate(data):
        candidates = [(decay, *train_alone(config.but(weight_decay=decay), part, y)) for decay in GRID]
        losses.append([held_out(config, player, part, y) for _, player, _ in candidates])
        decay, player, rows = candidates[losses[-1].index(min(losses[-1]))]
        networks[y] = player.published()
        lines.append(rows)
        chosen.append(decay)
    for round_, row_of_each in enumerate(zip(*lines, strict=True), 1):
        on_round(round_, list(row_of_each))
    tuned = {"setting": "weight-decay", "grid": GRID}
    facts = {"tuned": tuned, "weight_decay_grid": GRID, "weight_decay_chosen": chosen, "held_out_losses": losses}
    return Trained(networks, config.rounds * config.local_steps, facts)
