"""Methods to compare with, one a file, each `method(config, data, on_round) -> Trained`.

`data[y]` is class y's `ClassData`, on the device and in the dtype of the run. Every method takes as many
gradient steps for each class, at the same batch, as the federated run of `config` does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fedmutual.data import ClassData

Data = Sequence[ClassData]

Rows = list[dict[str, Any]]

OnRound = Callable[[int, Rows], None]
"""(round, one line {"class": y, ...} a class, as in the history)."""


def ignore(round_: int, rows: Rows) -> None:
    """An `OnRound` that keeps nothing."""


@dataclass(frozen=True)
class Trained:
    """What a method ends with.

    networks: {class: its network}, or {"shared": one conditional network}; gradient_steps: for each class, on
    average; facts: what else run.json should hold.
    """

    networks: dict[int | str, dict[str, Tensor]]
    gradient_steps: float
    facts: dict[str, Any] = field(default_factory=dict)
