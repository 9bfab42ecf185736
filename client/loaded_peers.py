"""The peers' networks as a process holds them: decoded and loaded once, however many clients it serves.

In a simulation one process serves many clients in turn, and they are sent largely the same peers.
"""

import copy
import hashlib
from collections.abc import Sequence

import torch
from flwr.app import ArrayRecord
from torch import nn

from fedmutual.config import RunConfig
from fedmutual.learning.peers import freeze
from fedmutual.networks.split import sent_part
from fedmutual.records import Network, check_values, rounded_names, unpack_network

Key = tuple[str, RunConfig, torch.device]


class LoadedPeers:
    """The networks of the last order, by a digest of their bytes, so that one that changed is never taken for another.

    Only the networks of one order are held: no more memory than that order needs. Those that it does not need are
    filled anew with its networks, since to make one takes longer than to fill it.
    """

    def __init__(self) -> None:
        self.networks: dict[Key, nn.Module] = {}

    def load(
        self, records: Sequence[ArrayRecord], own: nn.Module, initial: Network, limit: float, config: RunConfig
    ) -> list[nn.Module]:
        """The networks in `records`, checked against `initial` and `limit`, frozen on the device of `own`, until the
        next call.

        Raises:
            Rejected: one fails a check of `unpack_network`. The values of those held are checked too, for the
                limit of their norm is this client's own.
        """
        device = next(own.parameters()).device
        rounded = rounded_names(own, config.federation.wire_dtype)
        keys = [(digest_of(record), config, device) for record in records]
        spare = [network for key, network in self.networks.items() if key not in keys and key[1:] == (config, device)]
        self.networks = {key: network for key, network in self.networks.items() if key in keys}
        for key, record in zip(keys, records, strict=True):
            if key in self.networks:
                check_values(self.networks[key].state_dict(), limit)
                continue
            checked = unpack_network(record, initial, limit, rounded)
            network = spare.pop() if spare else freeze(copy.deepcopy(sent_part(own)), config.compute.autocast)
            network.load_state_dict(checked)  # which rounds to the type that the network runs in
            self.networks[key] = network
        return [self.networks[key] for key in keys]


def digest_of(record: ArrayRecord) -> str:
    """SHA-256 over the names, the announced types and shapes, and the bytes, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(record):
        array = record[name]
        digest.update(f"{name!r} {array.dtype!r} {array.shape!r} {array.stype!r} {len(array.data)}".encode())
        digest.update(array.data)
    return digest.hexdigest()
