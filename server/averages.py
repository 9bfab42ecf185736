"""The methods of federated averaging: Flower's own strategies, SCAFFOLD, and networks of which a part is averaged."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvgM, FedProx, FedYogi
from torch import Tensor

from fedmutual.config import RunConfig
from fedmutual.data import num_classes
from fedmutual.learning.control_variates import CONTROL
from fedmutual.saved_networks import NetworkOfRound
from server.averaging import ITERATE, MEMORY, Recorded, class_of
from server.flower import FedOpt

MOMENTUM = 0.9
"""Of fedavgm, as Hsu, Qi and Brown, 2019, use it most."""


class RecordedFedAvg(Recorded):
    """McMahan et al., 2017: the mean of the clients' networks, weighted by their numbers of samples."""


class RecordedFedProx(Recorded, FedProx):
    """Li et al., 2020: the same mean; the clients add `proximal-mu` / 2 ||w - w_server||²."""


class RecordedFedAvgM(Recorded, FedAvgM):
    """Hsu, Qi and Brown, 2019: the server takes the step to the mean with momentum."""

    def memory(self) -> dict[str, dict[str, Tensor]]:
        vector = self.momentum_vector or []
        return {"momentum": {str(index): torch.from_numpy(part) for index, part in enumerate(vector)}}

    def recall(self, entries: Mapping[int | str, Mapping[str, Tensor]]) -> None:
        if kept := entries.get(MEMORY + "momentum"):
            self.momentum_vector = [kept[str(index)].numpy() for index in range(len(kept))]


class Adaptive(Recorded, FedOpt):
    """Reddi et al., 2021: the server takes the step to the mean as a gradient for an optimiser of its own."""

    def memory(self) -> dict[str, dict[str, Tensor]]:
        moments = {"m": self.m_t or {}, "v": self.v_t or {}}
        return {name: {key: torch.from_numpy(part) for key, part in kept.items()} for name, kept in moments.items()}

    def recall(self, entries: Mapping[int | str, Mapping[str, Tensor]]) -> None:
        if MEMORY + "m" in entries:
            kept = {name: entries[MEMORY + name] for name in ("m", "v")}
            numpy = {name: {key: part.numpy() for key, part in moment.items()} for name, moment in kept.items()}
            self.m_t, self.v_t = numpy["m"], numpy["v"]


class RecordedFedAdam(Adaptive, FedAdam):
    """`Adaptive` by Adam."""


class RecordedFedYogi(Adaptive, FedYogi):
    """`Adaptive` by Yogi."""


class Scaffold(Recorded):
    """SCAFFOLD (`fedmutual.learning.control_variates`) with everyone in every round and a server's step of 1.

    The mean of the clients' networks is the next one, and the mean of their control variates the next c.
    """

    CONTROL = True

    def start_arrays(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        return parameters | {f"{CONTROL}/{name}": torch.zeros_like(tensor) for name, tensor in parameters.items()}


class Personal(Recorded):
    """A network a class, of which a part is averaged; each client publishes its own after the last round."""

    def initial(self) -> dict[int | str, NetworkOfRound]:
        return {}

    def count_parameters(self) -> int:
        return self.classes * super().count_parameters()

    def wanted(self, round_: int) -> tuple[bool, bool]:
        return True, round_ == self.config.rounds

    def average(self, round_: int, replies: list[Message]) -> dict[str, Tensor]:
        self.published = {class_of(reply): reply.content.pop("network", None) for reply in replies}
        return super().average(round_, replies)

    def keep(self, mean: dict[str, Tensor], round_: int, replies: list[Message]) -> None:
        for y, record in self.published.items():
            if isinstance(record, ArrayRecord):
                self.model.entries[y] = NetworkOfRound(dict(record.to_torch_state_dict()), round_)

    def norm_of(self, round_: int, rows: list[Any]) -> float:
        """Only the last checkpoint has a network of each class, and so it is the best."""
        return super().norm_of(round_, rows) if round_ == self.config.rounds else float("inf")


class FedPer(Personal):
    """Arivazhagan, Aggarwal, Singh and Choudhary, 2019: the body is averaged, first and last layers are a client's."""

    PART = "body"


class Finetuned(Personal):
    """FedAvg of a network without labels; for the last share `finetuning` of the rounds each client is on its own."""

    PART = "whole"

    @property
    def averaged_rounds(self) -> int:
        return self.config.rounds - round(self.config.rivals.finetuning * self.config.rounds)

    def wanted(self, round_: int) -> tuple[bool, bool]:
        return round_ <= self.averaged_rounds, round_ == self.config.rounds

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The average is sent for the last time in the first round without averaging."""
        known = self.done + server_round > self.averaged_rounds + 1
        return super().configure_train(server_round, ArrayRecord() if known else arrays, config, grid)

    def average(self, round_: int, replies: list[Message]) -> dict[str, Tensor]:
        if round_ <= self.averaged_rounds:
            return super().average(round_, replies)
        self.published = {class_of(reply): reply.content.pop("network", None) for reply in replies}
        return dict(self.model.entries[ITERATE].network)


def prepare_fedavg(config: RunConfig, for_clients: Mapping[str, Any] | None = None) -> Recorded:
    """Strategy and run folder; `for_clients` are settings that clients are sent in place of the run's own.

    Raises:
        UserError: settings that cannot work, or a run folder that is taken.
    """
    return _opened(RecordedFedAvg(**_everyone(config)), config, for_clients)


def prepare_fedprox(config: RunConfig, for_clients: Mapping[str, Any] | None = None) -> Recorded:
    """As `prepare_fedavg`."""
    strategy = RecordedFedProx(**_everyone(config), proximal_mu=config.rivals.proximal_mu)
    return _opened(strategy, config, for_clients)


def prepare_fedavgm(config: RunConfig, for_clients: Mapping[str, Any] | None = None) -> Recorded:
    """As `prepare_fedavg`."""
    rate = config.rivals.server_learning_rate or 1.0
    strategy = RecordedFedAvgM(**_everyone(config), server_learning_rate=rate, server_momentum=MOMENTUM)
    return _opened(strategy, config, for_clients)


def prepare_fedadam(config: RunConfig, for_clients: Mapping[str, Any] | None = None) -> Recorded:
    """As `prepare_fedavg`."""
    return _opened(RecordedFedAdam(**_everyone(config), **_server_rate(config)), config, for_clients)


def prepare_fedyogi(config: RunConfig, for_clients: Mapping[str, Any] | None = None) -> Recorded:
    """As `prepare_fedavg`."""
    return _opened(RecordedFedYogi(**_everyone(config), **_server_rate(config)), config, for_clients)


def prepare_scaffold(config: RunConfig, for_clients: Mapping[str, Any] | None = None) -> Recorded:
    """As `prepare_fedavg`."""
    return _opened(Scaffold(**_everyone(config)), config, for_clients)


def prepare_fedper(config: RunConfig, for_clients: Mapping[str, Any] | None = None) -> Recorded:
    """As `prepare_fedavg`."""
    return _opened(FedPer(**_everyone(config)), config, for_clients)


def prepare_finetuned(config: RunConfig, for_clients: Mapping[str, Any] | None = None) -> Recorded:
    """As `prepare_fedavg`."""
    return _opened(Finetuned(**_everyone(config)), config, for_clients)


def _everyone(config: RunConfig) -> dict[str, Any]:
    classes = num_classes(config.data)
    return {"min_train_nodes": classes, "min_available_nodes": classes, "weighted_by_key": "weight"}


def _server_rate(config: RunConfig) -> dict[str, Any]:
    rate = config.rivals.server_learning_rate
    return {"eta": rate} if rate else {}


def _opened(strategy: Recorded, config: RunConfig, for_clients: Mapping[str, Any] | None) -> Recorded:
    strategy.open(config, for_clients or {})
    return strategy
