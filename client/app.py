"""The ClientApp: says which class it is, and takes local steps against the peers it is sent.

The only things that leave are the network, or the part of it that `publish` says, and the numbers listed in
`fedmutual.records`. The client's own machine decides where its data and its state lie: the node settings `data` (npz or
folder), `data-path`, `store` and `device` win over what the server sends, and so do `epsilon` and `delta`, what may be
spent of the data. A node setting `publish` is the only way in which this client takes part, and `split` the lowest
noise at which it publishes.
"""

import time
from functools import lru_cache
from logging import ERROR, INFO, WARNING
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.logger import log
from torch import nn

from client.loaded_peers import LoadedPeers
from client.noise import Noise, paid_noise
from client.spending import paid_versions
from client.store import Busy, LostState, Numbers, StaleRound, Store
from fedmutual.checkpoint import Unwritable
from fedmutual.config import Data, RunConfig
from fedmutual.data import ClassData, Source, num_classes, open_source
from fedmutual.data.fingerprint import FILE, Fingerprint, fingerprint, refuse_changed, write_fingerprints
from fedmutual.device import dtype_of, pick_device
from fedmutual.diffusion import make_process
from fedmutual.errors import UserError
from fedmutual.learning.igd import Diverged, local_steps
from fedmutual.learning.keeping import end_round
from fedmutual.learning.peers import Peers
from fedmutual.learning.player import Player
from fedmutual.learning.weighing import helpers, weighed
from fedmutual.networks import build
from fedmutual.networks.split import sent
from fedmutual.privacy.ledger import RECEIPT
from fedmutual.privacy.versions import Versions
from fedmutual.records import (
    Network,
    Rejected,
    check_values,
    norm_limit,
    pack_asked,
    pack_network,
    pack_numbers,
    peer_classes,
    rounded_names,
    unpack_order,
)

NODE_SETTINGS = ("data", "data-path", "store", "device", "epsilon", "delta")

HELD = 16
"""Classes whose samples a process holds for the rounds that it serves."""

app = ClientApp()

_loaded = LoadedPeers()


@app.query()
def hello(message: Message, context: Context) -> Message:
    """Which class this client holds, and how many clients its node settings say there are (0: they do not say)."""
    partitions = int(context.node_config.get("num-partitions", 0))
    record = MetricRecord({"class": class_of(context), "partitions": partitions})
    return Message(RecordDict({"hello": record}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round: restore, step against frozen peers, save, reply with the network and the numbers.

    An order that was carried out before is answered from the store: nothing is trained twice, and a process that
    is killed between saving and replying loses no round.

    What a client raises is sent to the server as text. So errors that may speak of samples, such as how many
    there are or the name of a file, stay in the client's own log.
    """
    try:
        return _train(message, context)
    except (UserError, Rejected, Diverged, StaleRound, Busy, LostState):
        raise
    except Unwritable as error:
        log(ERROR, "%s", error)
        raise RuntimeError(f"this client could not save its state: {error.reason}") from None
    except Exception as error:
        log(ERROR, "training failed", exc_info=error)
        raise RuntimeError(f"{type(error).__name__} at this client: its own log says more") from None


def _train(message: Message, context: Context) -> Message:
    order = unpack_order(message.content)
    config = RunConfig.of(order["settings"], node_settings(context))
    check_consent(config, context)
    y, attempt, round_ = class_of(context), order["attempt"], order["round"]
    checkpointed, device = order["checkpointed"], pick_device(config.compute)
    data = own_data(config, y, device)
    player = Player.start(build(config, tuple(data.train.shape[1:]), y).to(device), config.optimiser)
    initial = {name: tensor.detach().cpu().clone() for name, tensor in player.network.state_dict().items()}
    public, bound = sent(initial), config.federation.norm_bound
    limit = norm_limit(public, bound)
    # All that arrived is checked before the store is touched.
    peers = _peers(message.content, order, config, player.network, public, limit)
    store = Store(store_root(config), order["run"], y)
    with store.locked(config.federation.timeout):
        own = own_fingerprint(config, y, device)
        keep_fingerprint(store, y, own)
        if not config.publishing.proved and (store.folder / RECEIPT).exists():
            raise UserError(f"this run has had a bound so far, and publish = {config.publishing.mode} has none")
        numbers = store.restore(player, attempt, round_, checkpointed)
        if not numbers and order["reported"]:
            raise LostState(f"this client's state of round {order['reported']} is gone: restore its store")
        if numbers.get("round") == round_:
            log(INFO, "round %d was done before: its reply is sent again", round_)
        else:
            versions, noise = None, None
            if config.publishing.mode == "noise-budget":
                versions = paid_versions(store, store_root(config), order["run"], y, data.train, own, config)
            if config.publishing.mode == "dp-sgd":
                seen = [message.content.array_records[name] for name in order["peers"]]
                noise = paid_noise(store, store_root(config), order, seen, y, player, data.train, own, config)
            measured = _round(player, data, peers, order["peers"], config, y, round_, versions, noise)
            numbers = {"class": y, "attempt": attempt, "round": round_, **measured}
            # A state that the server would refuse is not kept: the next round starts from the last good one.
            for network in (player.published(), player.network.state_dict()):
                check_values(sent(network), limit)
                if not config.publishing.proved:  # what is not sent must not decide whether something is
                    check_values(network, norm_limit(initial, bound))
            store.keep(player, numbers, checkpointed, whole=not config.publishing.in_parts)
    rounded = rounded_names(player.network, config.federation.wire_dtype)
    record = pack_network(sent(player.published()), rounded)
    helped = helpers(player, config.mutual.peers_per_round // 2) if config.federation.ask_for_peers else []
    reply = RecordDict({"network": record, "numbers": pack_numbers(numbers), **pack_asked(helped)})
    return Message(reply, reply_to=message)


def _round(
    player: Player,
    data: ClassData,
    peers: Peers,
    names: list[str],
    config: RunConfig,
    y: int,
    round_: int,
    versions: Versions | None,
    noise: Noise | None,
) -> Numbers:
    """Local steps against peers of these names, and the choice of what is published; the measures that may be sent."""
    process = make_process(config.diffusion, data.train.device, dtype_of(config.compute))
    started = time.perf_counter()
    if config.mutual.rule == "auto":
        peers = weighed(peers, peer_classes(names), player, data.held_out, config, process, y, round_)
    secret = noise.stream if noise else None
    steps = local_steps(player, data.train, peers, config, process, y, round_, versions, secret)
    if steps.left_out:
        log(WARNING, "round %d: %d steps of the private part were left out: not finite", round_, steps.left_out)
    seconds = time.perf_counter() - started
    if noise:  # losses and norms are of clean samples, and stay here
        log(INFO, "round %d: loss %.4g, mutual term %.4g", round_, steps.loss, steps.mutual)
        return {"step": player.step, "seconds": seconds, "epsilon": noise.epsilon}
    numbers = {
        "step": player.step,
        "loss": steps.loss,
        "mutual": steps.mutual,
        "gradient-norm": steps.gradient_norm,
        "seconds": seconds,
    }
    told = end_round(player, {y: data.held_out}, config, process, round_)
    if told:
        numbers["held-out-loss"] = told[y]
    if config.federation.share_counts:
        numbers["count"] = len(data.train)
    return numbers


def class_of(context: Context) -> int:
    """The class of this client: `partition-id` in its node settings.

    Raises:
        UserError: it is missing, or no whole number.
    """
    if "partition-id" not in context.node_config:
        raise UserError("this client has no class: start it with --node-config 'partition-id=0'")
    y = context.node_config["partition-id"]
    if not isinstance(y, int):
        raise UserError(f"partition-id = {y!r}: give the number of this client's class, from 0")
    return y


def check_consent(config: RunConfig, context: Context) -> None:
    """Raises `UserError` where the server asks for more of a network than this client's node settings allow."""
    own, asked = context.node_config, config.publishing
    start = asked.split if asked.in_parts else 0.0
    if "publish" in own and own["publish"] != asked.mode:
        raise UserError(f"this client takes part with publish = {own['publish']} alone, not with {asked.mode}")
    if "epsilon" in own and not float(own["epsilon"]) > 0:
        raise UserError(f"this client's epsilon = {own['epsilon']} would allow nothing: give one above 0, or none")
    if "epsilon" in own and not asked.proved:
        raise UserError(f"this client may spend epsilon = {own['epsilon']}, and publish = {asked.mode} has no bound")
    if "split" in own and start < float(own["split"]):
        raise UserError(f"this client publishes from split = {own['split']} on, and the server asks from {start:g}")


def node_settings(context: Context) -> dict[str, str]:
    """The settings that this client's own machine decides; with its `epsilon` goes its own `delta`, or the default."""
    own = {key: str(context.node_config[key]) for key in NODE_SETTINGS if key in context.node_config}
    return {"delta": str(RunConfig().publishing.delta), **own} if "epsilon" in own else own


def store_root(config: RunConfig) -> Path:
    """Where this client keeps its state."""
    return (
        Path(config.federation.store).expanduser()
        if config.federation.store
        else Path.home() / ".fedmutual" / "clients"
    )


@lru_cache(maxsize=HELD)
def own_data(config: RunConfig, y: int, device: torch.device) -> ClassData:
    """This client's samples on the device, in the run's dtype; kept for the rounds that this process serves.

    Raises:
        UserError: there is no class y, or its data have no path or cannot be used.
    """
    if config.data.source in ("npz", "folder") and not config.data.path:
        raise UserError('this client has no data: start it with data-path="/path/to/them" in --node-config')
    if y >= num_classes(config.data):
        raise UserError(f"partition-id = {y}, and the classes are 0..{num_classes(config.data) - 1}")
    try:
        data = opened_source(config.data, config.seed).load(y)
    except UserError as error:
        log(ERROR, "this client's data cannot be used: %s", error)
        raise UserError("this client's data cannot be used: its own log says why") from None
    dtype = dtype_of(config.compute)
    return ClassData(data.train.to(device, dtype), data.held_out.to(device, dtype))


@lru_cache(maxsize=1)
def opened_source(data: Data, seed: int) -> Source:
    """The data, opened once in a process, which in a simulation serves many clients.

    Where it serves more of them than it holds the samples of, it keeps what it reads, as they are stored: an archive
    would stream by as a whole for each.
    """
    source = open_source(data, seed)
    return open_source(data, seed, keep=True) if len(source.names) > HELD else source


@lru_cache(maxsize=HELD)
def own_fingerprint(config: RunConfig, y: int, device: torch.device) -> Fingerprint:
    """Of what this client trains on; stays on its machine."""
    return fingerprint(own_data(config, y, device).train)


def keep_fingerprint(store: Store, y: int, now: Fingerprint) -> None:
    """Keep the fingerprint of what this client trains on with its state, and compare with what was kept.

    Raises:
        UserError: the data have changed since the run began; only the client's own log says how.
    """
    try:
        refuse_changed(store.folder, {y: now}, [])
    except UserError as error:
        log(ERROR, "%s", error)
        raise UserError("this client's data have changed since the run began: its own log says more") from None
    if not (store.folder / FILE).exists():
        write_fingerprints(store.folder, {y: now})


def _peers(
    content: RecordDict, order: dict[str, Any], config: RunConfig, own: nn.Module, initial: Network, limit: float
) -> Peers:
    """The peers' networks, checked against an untrained one as the server checks replies, frozen beside `own`.

    Raises:
        Rejected: there are more than `peers-per-round`, or one fails a check of `unpack_network`.
    """
    if 0 < config.mutual.peers_per_round < len(order["peers"]):
        raise Rejected(
            f"the order holds {len(order['peers'])} peers, and peers-per-round = {config.mutual.peers_per_round}"
        )
    records = [content.array_records[name] for name in order["peers"]]
    return Peers(_loaded.load(records, own, initial, limit, config), order["weights"])
