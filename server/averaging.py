"""Federated averaging as a method to compare with: strategies of Flower's, with a run folder.

What a strategy lacks for that is `Recorded`, mixed into it; `server.averages` has the methods.
"""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from fedmutual.config import RunConfig
from fedmutual.data import num_classes, sample_shape
from fedmutual.learning.averaged import Part, averaged_parameters, build_averaged
from fedmutual.records import size_of
from fedmutual.run_folder import HistoryLine
from fedmutual.saved_networks import SHARED, NetworkOfRound
from server.journal import Journal
from server.orders import OnRound
from server.resending import Resending
from server.roster import Roster, RunFailed, reason_of
from server.strategy import worst_gradient_norm

ITERATE = "iterate"
"""In a checkpoint: what the next round starts from; `SHARED` is the average over rounds of its parameters."""

MEMORY = "memory-"
"""Before the name of what a strategy itself remembers from round to round, in a checkpoint."""


@dataclass
class GlobalModel:
    """What the server holds: `ITERATE`, the networks that are sampled from, and what the strategy remembers.

    parameters: numbers in the networks that are sampled from.
    """

    shape: tuple[int, ...]
    parameters: int
    entries: dict[int | str, NetworkOfRound]

    def restore(self, networks: Mapping[Any, NetworkOfRound]) -> None:
        """Take over the networks of a checkpoint."""
        self.entries = dict(networks)


class Recorded(FedAvg):
    """What a strategy of Flower's lacks here, mixed into it: history, checkpoints, resuming, and an order of its own.

    The averaging is Flower's. Samples come from the exponential average over rounds of what it yields, with the
    decay ema^local-steps: the `ema` of the other methods at the only moments when there is one network.
    """

    PART: ClassVar[Part] = "network"
    CONTROL: ClassVar[bool] = False
    """Whether clients have control variates."""

    on_round: OnRound

    def open(self, config: RunConfig, for_clients: Mapping[str, Any]) -> None:
        """Make or reopen the run folder; `for_clients` are settings that clients are sent in place of the run's own."""
        self.config, self.classes = config, num_classes(config.data)
        shape = sample_shape(config.data)
        self.network = build_averaged(self.PART, config, shape, self.classes)
        averaged = averaged_parameters(self.PART, self.network)
        self.names = list(averaged)
        start = self.start_arrays({name: parameter.detach().clone() for name, parameter in averaged.items()})
        self.model = GlobalModel(shape, self.count_parameters(), {ITERATE: NetworkOfRound(start, 0), **self.initial()})
        self.journal = Journal(config, self.model)
        self.done = self.journal.round
        self.for_clients = for_clients
        self.recall({name: entry.network for name, entry in self.model.entries.items()})

    # What methods change

    def start_arrays(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the first round starts from."""
        return parameters

    def count_parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.network.state_dict().values())

    def initial(self) -> dict[int | str, NetworkOfRound]:
        """The networks that are sampled from, before the first round."""
        network = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        return {SHARED: NetworkOfRound(network, 0)}

    def memory(self) -> dict[str, dict[str, Tensor]]:
        """What the strategy needs for the next round beside `ITERATE`."""
        return {}

    def recall(self, entries: Mapping[int | str, Mapping[str, Tensor]]) -> None:
        """Take over a `memory` from the entries of a checkpoint, where there is one."""

    def average(self, round_: int, replies: list[Message]) -> dict[str, Tensor]:
        """What the next round starts from: Flower's average, in the type of the network."""
        arrays, _ = super().aggregate_train(round_, replies)
        if arrays is None:
            raise RunFailed(f"round {round_}: Flower made no average of the replies")
        dtype = next(self.network.parameters()).dtype
        return {name: tensor.to(dtype) for name, tensor in arrays.to_torch_state_dict().items()}

    def keep(self, mean: dict[str, Tensor], round_: int, replies: list[Message]) -> None:
        """Bring the networks that are sampled from up to date."""
        step = round_ * self.config.local_steps - 1
        decay = min(self.config.optimiser.ema, (1 + step) / (10 + step)) ** self.config.local_steps
        before = self.model.entries[SHARED].network
        average = {name: torch.lerp(mean[name], before[name], decay) for name in self.names}
        self.model.entries[SHARED] = NetworkOfRound({**before, **average}, round_)

    # Rounds

    def arrays(self) -> ArrayRecord:
        """What the next round starts from, in the order of the network, which Flower's momentum goes by."""
        iterate = self.model.entries[ITERATE].network
        return ArrayRecord({name: iterate[name] for name in [*self.names, *(iterate.keys() - set(self.names))]})

    def train(self, grid: Grid, on_round: OnRound) -> None:
        """Run the rounds that are left; `on_round` is called with the lines of each."""
        self.on_round = on_round
        settings = json.dumps({**self.config.settings(), **self.for_clients})
        order = ConfigRecord({"settings": settings, "run": self.journal.run, "attempt": self.journal.attempt})
        order["part"], order["control"] = self.PART, self.CONTROL
        self.start(
            grid,
            self.arrays(),
            num_rounds=self.config.rounds - self.done,
            timeout=self.config.federation.timeout,
            train_config=order,
        )

    def summary(self) -> None:
        """Nothing to say: the run folder holds the settings."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Flower's orders, with rounds counted from the run's first one."""
        self.started = time.monotonic()
        config["checkpointed"] = self.journal.round
        config["average"], config["publish"] = self.wanted(self.done + server_round)
        orders = list(super().configure_train(self.done + server_round, arrays, config, grid))
        self.sent = size_of(orders[0].content)
        return orders

    def wanted(self, round_: int) -> tuple[bool, bool]:
        """Whether clients reply with what is averaged, and with a network of their own."""
        return True, False

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the replies, taken in the order of the classes, so that it rounds the same always.

        Raises:
            RunFailed: a client's reply is an error or missing, and the arm would no longer be comparable.
        """
        round_ = self.done + server_round
        complete = self._all_of(round_, list(replies))
        seconds = time.monotonic() - self.started
        rows: list[Any] = [self._line(round_, reply, seconds) for reply in complete]
        mean = self.average(round_, complete)
        self.keep(mean, round_, complete)
        self.model.entries[ITERATE] = NetworkOfRound(mean, round_)
        self.model.entries |= {MEMORY + name: NetworkOfRound(kept, round_) for name, kept in self.memory().items()}
        self.journal.append(rows)
        if round_ % self.config.federation.checkpoint_every == 0 or round_ == self.config.rounds:
            self.journal.checkpoint(self.model, round_, self.norm_of(round_, rows))
        self.on_round(rows)
        return self.arrays(), None

    def norm_of(self, round_: int, rows: list[Any]) -> float:
        """By which the best checkpoint is told."""
        return worst_gradient_norm(rows)

    def _all_of(self, round_: int, replies: list[Message]) -> list[Message]:
        for reply in replies:
            if reply.has_error():
                raise RunFailed(f"round {round_}: a client failed: {reason_of(reply)}")
        if len(replies) < self.classes:
            raise RunFailed(f"round {round_}: {len(replies)} of {self.classes} clients replied in time")
        return sorted(replies, key=class_of)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing: held-out losses come with the training replies."""
        return []

    def _line(self, round_: int, reply: Message, round_seconds: float) -> HistoryLine:
        numbers: Any = reply.content["numbers"]
        return HistoryLine(
            round=round_,
            class_=numbers["class"],
            step=numbers["step"],
            loss=numbers["loss"],
            grad_norm=numbers["gradient-norm"],
            held_out=numbers.get("held-out-loss"),
            seconds=numbers["seconds"],
            bytes_down=self.sent,
            bytes_up=size_of(reply.content),
            round_seconds=round_seconds,
        )


def class_of(reply: Message) -> int:
    return int(cast(int, reply.content.metric_records["numbers"]["class"]))


def serve(grid: Grid, strategy: Recorded, on_round: OnRound = lambda rows: None) -> None:
    """Train for `rounds` rounds, or what is left of them; the order of a client that dies is sent again.

    Raises:
        RunFailed: a client's reply is an error or missing.
    """
    journal, roster = strategy.journal, Roster(strategy.classes)
    try:
        roster.wait_for(strategy.classes, grid, strategy.config.federation.timeout)
        strategy.train(Resending(grid, roster), on_round)
    except BaseException:
        journal.write_run(status="stopped")
        raise
    journal.write_run(status="done")
