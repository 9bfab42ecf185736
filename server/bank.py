"""The server's state: one network a class, the round it was made in, and what may replace it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import ArrayRecord, RecordDict
from torch import Tensor

from fedmutual.config import RunConfig
from fedmutual.errors import UserError
from fedmutual.networks import build
from fedmutual.networks.split import sent
from fedmutual.records import (
    Network,
    Rejected,
    network_in,
    norm_limit,
    pack_network,
    rounded_names,
    unpack_network,
    unpack_numbers,
)
from fedmutual.saved_networks import NetworkOfRound
from server.intake import ROOM


@dataclass(frozen=True)
class Entry:
    """A class's network as it was accepted, once: ready to be sent, and read there for the mean and for checkpoints."""

    record: ArrayRecord
    round: int
    like: Network
    rounded: frozenset[str]

    @property
    def network(self) -> Network:
        """Over the bytes of the record, so that it is not to be written to."""
        return network_in(self.record, self.like, self.rounded)


class Bank:
    """{class: network, round it was made in}; nothing enters unchecked, and a rejected reply changes nothing.

    Of networks that are published in part it holds that part, and refuses any other.
    parameters: numbers in all classes' networks together, with the parts that stay at their owners.
    reply_limit: bytes that one reply may take on its way in, `max-reply-mb` or what a network of this run needs.

    Raises:
        UserError: no network of this run is as small as `max-reply-mb`.
    """

    def __init__(self, config: RunConfig, shape: tuple[int, ...], classes: int):
        self.config, self.shape, self.classes = config, shape, classes
        self.entries: dict[int, Entry] = {}
        untrained = build(config, shape, 0)
        self.like: Network = sent(untrained.state_dict())
        self.parameters = classes * sum(tensor.numel() for tensor in untrained.state_dict().values())
        self.rounded = rounded_names(untrained, config.federation.wire_dtype)
        self.norm_limit = norm_limit(self.like, config.federation.norm_bound)
        size, limit = sum(tensor.nbytes for tensor in self.like.values()), int(config.federation.max_reply_mb * 1e6)
        if 0 < limit < size:
            raise UserError(
                f"max-reply-mb = {config.federation.max_reply_mb:g} and a network takes {size / 1e6:.2g} MB: raise it"
            )
        self.reply_limit = limit or size + ROOM

    def initial(self, y: int) -> Entry:
        """Class y's network before training, which every holder of the seed can work out."""
        return self._entry(sent(build(self.config, self.shape, y).state_dict()), 0)

    def accept(self, y: int, attempt: int, round_: int, content: RecordDict) -> dict[str, int | float]:
        """Take the reply of class y to the order of this round; returns its numbers.

        Raises:
            Rejected: it answers another order, or its network fails a check of `unpack_network`.
        """
        numbers = unpack_numbers(content, self.config.publishing.mode == "dp-sgd")
        for name, expected in (("class", y), ("attempt", attempt), ("round", round_)):
            if numbers[name] != expected:
                raise Rejected(f"{name} is {numbers[name]}, and the order was for {expected}")
        if y in self.entries and self.entries[y].round >= round_:
            raise Rejected(f"class {y} has already replied for round {round_}")
        if set(content) - {"asked"} != {"network", "numbers"} or "network" not in content.array_records:
            raise Rejected(f"the reply holds {sorted(content)[:3]}, not one network and its numbers")
        network = unpack_network(content.array_records["network"], self.like, self.norm_limit, self.rounded)
        # Packed anew: peers are sent what was checked, not the bytes that a client wrote.
        self.entries[y] = self._entry(network, round_)
        return numbers

    def restore(self, networks: Mapping[Any, NetworkOfRound]) -> None:
        """Fill the bank from a checkpoint: {class: (network, round it was made in)}."""
        for y, (network, round_) in networks.items():
            self.entries[y] = self._entry(network, round_)

    def mean(self, peers: Sequence[Entry], weights: Sequence[float]) -> ArrayRecord:
        """The network of mean parameters, sum_k w_k theta_k: the mean of the peers where features are shared."""
        networks = [peer.network for peer in peers]
        stacked = {name: torch.stack([network[name] for network in networks]) for name in self.like}
        mean = {name: _weighted(tensor, weights) for name, tensor in stacked.items()}
        return pack_network(mean, self.rounded)

    def _entry(self, network: Network, round_: int) -> Entry:
        return Entry(pack_network(network, self.rounded), round_, self.like, self.rounded)


def _weighted(stacked: Tensor, weights: Sequence[float]) -> Tensor:
    return torch.tensordot(stacked.new_tensor(weights), stacked, dims=1)
