"""Federated averaging as a method to compare with: Flower's own FedAvg and FedProx, and a run folder.

One class-conditional network for all; each class's client trains it on its own samples.
"""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedProx
from torch import Tensor

from fedmutual.config import RunConfig
from fedmutual.data import num_classes, sample_shape
from fedmutual.networks import build_conditional
from fedmutual.records import size_of
from fedmutual.run_folder import SHARED, HistoryLine, NetworkOfRound
from server.journal import Journal
from server.orders import OnRound
from server.roster import RunFailed, reason_of
from server.strategy import worst_gradient_norm

ITERATE = "iterate"
"""In a checkpoint: the parameters that the next round starts from; `SHARED` is their average over rounds."""


@dataclass
class GlobalModel:
    """The networks that all classes share: `SHARED`, which is sampled from, and `ITERATE`."""

    shape: tuple[int, ...]
    entries: Mapping[str, NetworkOfRound]

    @property
    def parameters(self) -> int:
        """Numbers in the network that is sampled from."""
        return sum(tensor.numel() for tensor in self.entries[SHARED].network.values())

    def restore(self, networks: Mapping[Any, NetworkOfRound]) -> None:
        """Take over the networks of a checkpoint."""
        self.entries = dict(networks)


class Recorded(FedAvg):
    """What a strategy of Flower's lacks here, mixed into it: history, checkpoints, resuming, and an order of its own.

    The averaging is Flower's. Samples come from the exponential average over rounds of what it yields, with the
    decay ema^local-steps: the `ema` of the other methods at the only moments when there is one network.
    """

    on_round: OnRound

    def open(self, config: RunConfig, for_clients: Mapping[str, Any]) -> None:
        """Make or reopen the run folder; `for_clients` are settings that clients are sent in place of the run's own."""
        self.config, self.classes = config, num_classes(config.data)
        self.network = build_conditional(config, sample_shape(config.data), self.classes)
        initial = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        start = {name: parameter.detach().clone() for name, parameter in self.network.named_parameters()}
        entries = {SHARED: NetworkOfRound(initial, 0), ITERATE: NetworkOfRound(start, 0)}
        self.model = GlobalModel(sample_shape(config.data), entries)
        self.journal = Journal(config, self.model)
        self.done = self.journal.round
        self.for_clients = for_clients

    def parameters(self) -> ArrayRecord:
        """What the next round starts from."""
        return ArrayRecord(self.model.entries[ITERATE].network)

    def train(self, grid: Grid, on_round: OnRound) -> None:
        """Run the rounds that are left; `on_round` is called with the lines of each."""
        self.on_round = on_round
        settings = json.dumps({**self.config.settings(), **self.for_clients})
        self.start(
            grid,
            self.parameters(),
            num_rounds=self.config.rounds - self.done,
            timeout=self.config.federation.timeout,
            train_config=ConfigRecord({"settings": settings}),
        )

    def summary(self) -> None:
        """Nothing to say: the run folder holds the settings."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Flower's orders, with rounds counted from the run's first one."""
        self.started = time.monotonic()
        orders = list(super().configure_train(self.done + server_round, arrays, config, grid))
        self.sent = size_of(orders[0].content)
        return orders

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Flower's average of the replies, taken in the order of the classes, so that it rounds the same always.

        Raises:
            RunFailed: a client's reply is an error or missing, and the arm would no longer be comparable.
        """
        round_, replies = self.done + server_round, list(replies)
        for reply in replies:
            if reply.has_error():
                raise RunFailed(f"round {round_}: a client failed: {reason_of(reply)}")
        if len(replies) < self.classes:
            raise RunFailed(f"round {round_}: {len(replies)} of {self.classes} clients replied in time")
        replies.sort(key=_class_of)
        arrays, metrics = super().aggregate_train(round_, replies)
        if arrays is None:
            raise RunFailed(f"round {round_}: Flower made no average of the replies")
        self._keep(arrays.to_torch_state_dict(), round_)
        seconds = time.monotonic() - self.started
        rows: list[Any] = [self._line(round_, reply, seconds) for reply in replies]
        self.journal.append(rows)
        if round_ % self.config.federation.checkpoint_every == 0 or round_ == self.config.rounds:
            self.journal.checkpoint(self.model, round_, worst_gradient_norm(rows))
        self.on_round(rows)
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing: held-out losses come with the training replies."""
        return []

    def _keep(self, mean: dict[str, Tensor], round_: int) -> None:
        step = round_ * self.config.local_steps - 1
        decay = min(self.config.optimiser.ema, (1 + step) / (10 + step)) ** self.config.local_steps
        before = self.model.entries[SHARED].network
        average = {name: torch.lerp(tensor, before[name], decay) for name, tensor in mean.items()}
        shared, iterate = NetworkOfRound({**before, **average}, round_), NetworkOfRound(mean, round_)
        self.model.entries = {SHARED: shared, ITERATE: iterate}

    def _line(self, round_: int, reply: Message, round_seconds: float) -> HistoryLine:
        numbers: Any = reply.content["numbers"]
        return HistoryLine(
            round=round_,
            class_=numbers["class"],
            loss=numbers["loss"],
            grad_norm=numbers["gradient-norm"],
            held_out=numbers.get("held-out-loss"),
            seconds=numbers["seconds"],
            bytes_down=self.sent,
            bytes_up=size_of(reply.content),
            round_seconds=round_seconds,
        )


class RecordedFedAvg(Recorded):
    """McMahan et al., 2017: the mean of the clients' networks, weighted by their numbers of samples."""


class RecordedFedProx(Recorded, FedProx):
    """Li et al., 2020: the same mean; the clients add `proximal-mu` / 2 ||w - w_server||²."""


def _class_of(reply: Message) -> int:
    return int(cast(int, reply.content.metric_records["numbers"]["class"]))


def prepare_fedavg(config: RunConfig, for_clients: Mapping[str, Any] | None = None) -> Recorded:
    """Strategy and run folder; `for_clients` are settings that clients are sent in place of the run's own.

    Raises:
        UserError: settings that cannot work, or a run folder that is taken.
    """
    strategy = RecordedFedAvg(**_everyone(config))
    strategy.open(config, for_clients or {})
    return strategy


def prepare_fedprox(config: RunConfig, for_clients: Mapping[str, Any] | None = None) -> Recorded:
    """As `prepare_fedavg`."""
    strategy = RecordedFedProx(**_everyone(config), proximal_mu=config.rivals.proximal_mu)
    strategy.open(config, for_clients or {})
    return strategy


def _everyone(config: RunConfig) -> dict[str, Any]:
    classes = num_classes(config.data)
    return {"min_train_nodes": classes, "min_available_nodes": classes}


def serve(grid: Grid, strategy: Recorded, on_round: OnRound = lambda rows: None) -> None:
    """Train for `rounds` rounds, or what is left of them.

    Raises:
        RunFailed: a client's reply is an error or missing.
    """
    journal = strategy.journal
    try:
        strategy.train(grid, on_round)
    except BaseException:
        journal.write_run(status="stopped")
        raise
    journal.write_run(status="done")
