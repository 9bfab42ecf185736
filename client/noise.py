"""The noise of a client's rounds of DP-SGD: paid for before the data are used, and the same for what is done again.

The key of a round's noise is made from a secret of the run in this store, and from all that the round is computed from:
the player's state, the samples, the peers' networks and the settings. So an order that comes again after a kill is
carried out bit for bit as before, and paid once. A server that orders a round again with other peers gets other noise,
which is paid for as well: what the same noise hides in two answers, their difference shows.
"""

import hmac
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from client.loaded_peers import digest_of as digest_of_record
from client.spending import pay
from client.store import Store, pack
from fedmutual.checkpoint import digest_of, write_atomic
from fedmutual.config import RunConfig
from fedmutual.data.fingerprint import Fingerprint
from fedmutual.device import pick_device
from fedmutual.errors import UserError
from fedmutual.learning.player import Player
from fedmutual.privacy.cost import NOTHING
from fedmutual.privacy.dp_sgd import cost, sampling_rate
from fedmutual.privacy.ledger import Expenditure, total
from fedmutual.privacy.secret import KEY, SecretStream
from fedmutual.run_folder import versions

FILE = "noise.key"
"""In the folder of a run and class: its secret."""

NO_PART = {
    *("resume", "out", "store", "device", "timeout", "data-path", "download", "checkpoint-every", "max-reply-mb"),
    *("epsilon", "delta", "rounds"),
}
"""Settings that may change in a run and enter no step, but for `rounds`, which a cosine schedule sees."""


class Noise(NamedTuple):
    """Of one round: the stream that it is drawn from, and the epsilon at the server's delta of the run up to it."""

    stream: SecretStream
    epsilon: float


def paid_noise(
    store: Store,
    root: Path,
    order: dict[str, Any],
    peers: Sequence[ArrayRecord],
    y: int,
    player: Player,
    data: Tensor,
    own: Fingerprint,
    config: RunConfig,
) -> Noise:
    """The noise of the round that `order` asks of class y, whose samples `data: [n, *dims]` have the fingerprint `own`.

    A run is refused at its first round where that and all that are to come would exceed what may be spent.

    Raises:
        UserError: the round cannot be paid, or the secret is damaged.
        Unwritable: the secret or the ledger could not be saved; nothing is spent.
    """
    secret = _secret(store)
    seen = _all_that_enters(order, peers, player, data, config).encode()
    steps = config.local_steps
    parameters = {
        "round": order["round"],
        "steps": steps,
        "rate": sampling_rate(config, own.size),
        "noise-multiplier": config.publishing.noise_multiplier,
        "clip": config.optimiser.clip,
    }
    key = f"round {order['round']} {hmac.digest(secret, b'key ' + seen, 'sha256').hex()[:32]}"
    bill = cost(config, own.size, steps)
    asked = Expenditure(order["run"], key, "DP-SGD", parameters, "add-or-remove-one", bill, own)
    left = config.rounds - order["round"]
    ahead = cost(config, own.size, steps * left) if left > 0 else NOTHING
    entries = pay(root, y, asked, config, ahead)
    spent = total([entry for entry in entries if entry.run == order["run"]])
    delta = RunConfig.of(order["settings"]).publishing.delta
    return Noise(SecretStream(hmac.digest(secret, b"noise " + seen, "sha256")), spent.epsilon(delta))


def _secret(store: Store) -> bytes:
    """The secret of the run in this store, made at its first round; after the loss of one all is paid anew."""
    path = store.folder / FILE
    if not path.exists():
        write_atomic(path, os.urandom(KEY))
    secret = path.read_bytes()
    if len(secret) != KEY:
        raise UserError("this client's secret is damaged: restore its store")
    return secret


def _all_that_enters(
    order: dict[str, Any], peers: Sequence[ArrayRecord], player: Player, data: Tensor, config: RunConfig
) -> str:
    """Of a round: what moves a bit of it moves this, the arithmetic included.

    On a GPU no two passes need round alike, so that no order of another attempt is one that was carried out.
    """
    settings = {key: value for key, value in config.settings().items() if key not in NO_PART}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in pack(player).items()}
    device = pick_device(config.compute)
    entering = {
        "settings": settings,
        "rounds": config.rounds if config.optimiser.schedule == "cosine" else 0,
        "round": order["round"],
        "peers": [digest_of_record(record) for record in peers],
        "weights": order["weights"],
        "state": digest_of(state, str(player.step)),
        "data": digest_of({"data": data.detach().cpu().contiguous()}, ""),  # in their order, to the last bit
        "arithmetic": [
            str(device),
            torch.get_num_threads(),
            torch.backends.cpu.get_cpu_capability(),
            platform.machine(),
        ],
        "versions": versions(),
        "attempt": order["attempt"] if device.type == "cuda" else 0,
    }
    return json.dumps(entering, sort_keys=True)
