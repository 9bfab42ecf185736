"""Flower's internals, behind one door: what is not in Flower's public packages is imported in this file alone.

Public are `flwr.app`, `flwr.clientapp`, `flwr.serverapp`, `flwr.simulation` and `flwr.common.logger`. The rest changes
between minor releases, and `tests/server/test_flower.py` names what a new release must still offer. Nothing is decided
here: what a reply may cost is in `server.intake`, what a machine is checked for in `simulations.deployment.doctor`.
"""

import json
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeGuard, cast

import httpx
import numpy as np
from flwr.app import Array, ArrayRecord, Message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE, ErrorCode
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.server.superlink.linkstate import linkstate_factory
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.serverapp import Grid
from flwr.serverapp.strategy.fedopt import FedOpt as FedOpt
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflate_object_from_contents,
)
from flwr.supercore.utils import get_flwr_home
from flwr.superlink.grid import HttpGrid

from fedmutual.errors import UserError

CLIENT_DIED = (int(ErrorCode.CLIENT_APP_CRASHED), int(ErrorCode.MESSAGE_UNAVAILABLE))
"""Codes of the errors that Flower sends for a client whose process has ended without a reply, or within one."""

SIMULATED_CLIENT_DIED = (*CLIENT_DIED, int(ErrorCode.UNKNOWN))
"""In a simulation also the code that covers whatever Ray says of a process that it has lost or is starting anew."""

CLOCK_AHEAD = int(SYSTEM_TIME_TOLERANCE)
"""Seconds by which a SuperNode's clock may be ahead of the SuperLink's before its messages are refused."""

CLOCK_BEHIND = int(TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE)
"""Seconds by which it may be behind."""

ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""What Flower's services are started with: they report to nobody and install nothing."""


# Grids


class GridOver(Grid):
    """A grid that passes everything on to another one; its subclasses change what they have to."""

    def __init__(self, grid: Grid):
        self.grid = grid

    def set_run(self, run: Any) -> None:
        self.grid.set_run(run)

    @property
    def run(self) -> Any:
        return self.grid.run

    def create_message(self, *arguments: Any, **options: Any) -> Message:
        return self.grid.create_message(*arguments, **options)

    def get_node_ids(self) -> Iterable[int]:
        return self.grid.get_node_ids()

    def get_nodes(self) -> Any:
        return self.grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self.grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.grid.send_and_receive(messages, timeout=timeout)


def is_remote(grid: Grid) -> TypeGuard[HttpGrid]:
    """Whether replies come from other machines, over a SuperLink's HTTP; those of a simulation are this machine's."""
    return isinstance(grid, HttpGrid)


# Replies as they lie in a SuperLink: objects by their ids, each a head (its kind and its children's ids) and a body

Announced = ObjectTree
"""The ids of what a reply is made of."""

PartPending = ObjectUnavailableError
"""A part of a reply is not there yet."""

PartLost = ObjectPullError
"""A part of a reply will not come any more."""

ARRAY, PIECE = Array.__qualname__, ArrayChunk.__qualname__
"""Kinds of parts: an array is a description, and names the pieces of its bytes."""

FETCHES = ("/v1/runtime/pull-messages", "/v1/runtime/pull-object")
"""Where replies and their parts are fetched."""


class Replies:
    """The replies at the SuperLink that a server's grid is connected to, fetched part by part.

    `before_body` is called with the size of every answer that holds a reply or a part of one, before it is read; what
    it raises is raised by the fetch.
    """

    def __init__(self, grid: HttpGrid, before_body: Callable[[int], None]):
        self._grid, self._client = grid, grid._runtime_client

        def weigh(response: httpx.Response) -> None:
            """Called by httpx between a response's head and its body."""
            if response.is_success and response.url.path in FETCHES:
                before_body(int(response.headers["content-length"]))

        self._client._client.event_hooks["response"].append(weigh)

    def announced(self, order_id: str) -> Announced | None:
        """What the reply to that order is made of, if there is one; Flower tells it once."""
        answer = self._client.PullMessages(PullAppMessagesRequest(message_ids=[order_id]))
        for reply, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
            if reply.metadata.reply_to_message_id == order_id:
                return tree
        return None

    def fetch(self, reply: Announced) -> dict[str, bytes]:
        """{id: content} of a reply and all its parts, the reply itself first: it is what a node sends last.

        Raises:
            PartPending, PartLost: a part is not there yet, or will not come.
        """
        pull = make_pull_object_fn_protobuf(self._client.PullObject, self._grid.node, self._grid.run.run_id)
        ids = dict.fromkeys(reversed([part.object_id for part in iterate_object_tree(reply)]))
        return {object_id: pull(object_id) for object_id in ids}

    def confirm(self, reply: Announced) -> None:
        """Let the SuperLink delete a reply."""
        request = ConfirmMessageReceivedRequest(
            node=self._grid.node, run_id=self._grid.run.run_id, message_object_id=reply.object_id
        )
        self._client.ConfirmMessageReceived(request)


def head_of(content: bytes) -> tuple[str, list[str]]:
    """(kind, ids of the children) of a part."""
    kind, children, _ = get_object_head_values_from_object_content(content)
    return kind, children


def pieces_of(array: bytes, children: list[str]) -> list[str]:
    """The ids of the pieces that make up an array, in their order; it may name one many times."""
    return [children[index] for index in json.loads(get_object_body(array, Array))["arraychunk_ids"]]


def message_of(message_id: str, contents: dict[str, bytes]) -> Message:
    """The message that its parts, {id: content}, make up. Of bytes from strangers it raises nearly anything."""
    message = inflate_object_from_contents(message_id, contents)
    if not isinstance(message, Message):
        raise TypeError(f"a {type(message).__name__} is no reply")
    return message


# Records without copies of their bytes

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

Views = dict[str, tuple[str, tuple[int, ...], str, Bytes]]
"""A record's arrays: {name: (dtype, shape, encoding, bytes)}."""


def views_of(record: ArrayRecord) -> Views:
    """A record's arrays, over the record's own bytes."""
    return {name: (a.dtype, tuple(a.shape), a.stype, np.frombuffer(a.data, np.uint8)) for name, a in record.items()}


def record_of(views: Views) -> ArrayRecord:
    """The record of these arrays, over the same bytes: Flower reads any buffer where it expects `bytes`."""
    record = ArrayRecord()
    for name, (dtype, shape, stype, content) in views.items():
        record[name] = Array(dtype, shape, stype, b"")
        record[name].data = cast(bytes, content.data)
    return record


# The engine of a simulation


@contextmanager
def pool_of_clients(pool: Callable[..., Any]) -> Iterator[None]:
    """Flower's Ray backend makes its pool of processes by `pool` for as long as the block lasts.

    In the end it gives the pool up, and leaves Ray to whoever has started it.
    """
    from flwr.server.superlink.fleet.vce.backend import raybackend  # which imports Ray

    def terminate(backend: raybackend.RayBackend) -> None:
        if backend.pool:
            backend.pool.terminate_all_actors()

    with _replaced(raybackend, "BasicActorPool", pool), _replaced(raybackend.RayBackend, "terminate", terminate):
        yield


class IndexedState(InMemoryLinkState):
    """Flower's state of a simulation, in which orders are found by their node, and replies by their order.

    Ten times a second Flower's own looks through all orders once for every node, and through all orders for replies:
    what a message costs grows with the number of clients, and with a thousand of them that takes a core.
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._undelivered: dict[int, deque[str]] = defaultdict(deque)  # node -> ids of its orders

    def store_message_ins(self, message: Message) -> str | None:
        """Take an order, and file it under its node."""
        with self.lock:
            message_id = super().store_message_ins(message)
            if message_id:
                self._undelivered[message.metadata.dst_node_id].append(message_id)
        return message_id

    def get_message_ins(self, node_id: int, limit: int | None, *, run_id: int | None = None) -> list[Message]:
        """At most `limit` orders that the node was not given yet; a simulation has one run."""
        given: list[Message] = []
        with self.lock:
            waiting = self._undelivered[node_id]
            while waiting and (limit is None or len(given) < limit):
                message = self.message_ins_store.get(waiting.popleft())
                if message is not None:  # else its time was up
                    message.metadata.delivered_at = datetime.now(UTC).isoformat()
                    given.append(message)
        return given

    def get_message_res(self, message_ids: set[str], run_id: int) -> list[Message]:
        """The replies to those of the orders that have one."""
        with self.lock:
            replied = self.message_ins_id_to_message_res_id.keys() & message_ids
        return super().get_message_res(replied, run_id) if replied else []


@contextmanager
def indexed_messages() -> Iterator[None]:
    """Flower keeps the messages of a simulation that starts in the block in an `IndexedState`."""
    with _replaced(linkstate_factory, "InMemoryLinkState", IndexedState):
        yield


@contextmanager
def _replaced(holder: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, before)


# The configuration of the command line `flwr`


@dataclass(frozen=True)
class Connection:
    """A SuperLink as `flwr` knows it: a name, `host:port` (or `:local:` for a simulation), and how it is trusted."""

    name: str
    address: str | None = None
    root_certificates: str | None = None
    insecure: bool = False


def read_connection(name: str) -> Connection:
    """The connection of that name in Flower's config.toml.

    Raises:
        UserError: there is none, or it is not as Flower wants it.
    """
    # Flower's command line is not imported by a server.
    from flwr.cli.flower_config import parse_superlink_connection, read_flower_config

    path = get_flwr_home() / "config.toml"
    if not path.exists():  # Flower would write one
        raise UserError(f"{path} is missing: name the connection there, as [superlink.{name}] with its address")
    superlinks = read_flower_config()[0].get("superlink", {})
    known = [key for key, value in superlinks.items() if isinstance(value, dict)]
    if name not in known:
        raise UserError(f"no connection {name!r} in {path}: there are {', '.join(known) or 'none'}")
    try:
        connection = parse_superlink_connection(superlinks[name], name)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return Connection(name, connection.address, connection.root_certificates, connection.insecure)
