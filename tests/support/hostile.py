"""A node with a registered key and no manners: Flower's own wire, on which it sends what it likes."""

import io
import json
import pickle
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.constant import HEAD_BODY_DIVIDER, HEAD_VALUE_DIVIDER
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_body,
    get_object_id,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.supernode.fleet_http_connection import http_request_response

Network = dict[str, np.ndarray]


def parts_of(message: Message) -> dict[str, bytes]:
    """{id: content} of a message and all its parts, as Flower itself makes them."""
    return {key: part.deflate() for key, part in get_all_nested_objects(message).items()}


@dataclass
class Part:
    """One object of a message as it travels: a head that names its kind and its children, and a body.

    `names` are those under which a record keeps its children; bodies of records are made of them.
    """

    kind: str
    children: list["Part"] = field(default_factory=list)
    body: bytes = b""
    names: list[str] | None = None

    @classmethod
    def of(cls, thing: InflatableObject) -> "Part":
        if isinstance(thing, ArrayRecord | RecordDict):
            return cls(type(thing).__name__, [cls.of(child) for child in thing.values()], names=list(thing))
        children = [cls.of(child) for child in (thing.children or {}).values()]
        return cls(type(thing).__name__, children, get_object_body(thing.deflate(), type(thing)))

    @property
    def content(self) -> bytes:
        body = self.body
        if self.names is not None:
            body = json.dumps(dict(zip(self.names, (part.id for part in self.children), strict=True))).encode()
        head = HEAD_VALUE_DIVIDER.join(
            [self.kind, ",".join(dict.fromkeys(p.id for p in self.children)), str(len(body))]
        )
        return head.encode() + HEAD_BODY_DIVIDER + body

    @property
    def id(self) -> str:
        return get_object_id(self.content)

    @property
    def tree(self) -> ObjectTree:
        unique = {part.id: part for part in self.children}
        return ObjectTree(object_id=self.id, children=[part.tree for part in unique.values()])

    def contents(self) -> dict[str, bytes]:
        result = {key: content for part in self.children for key, content in part.contents().items()}
        return {**result, self.id: self.content}

    def first(self, kind: str) -> "Part":
        """The first part of that kind, this one or below it."""
        return next(result for part in self.walk() if (result := part).kind == kind)

    def walk(self):
        yield self
        for part in self.children:
            yield from part.walk()


def reply(order: Message, network: Network, **changes) -> Message:
    """What an honest client sends: a network, and the numbers of one that has trained; `changes` are to the numbers."""
    stated = order.content["order"]
    numbers = {
        "class": 0,
        "attempt": stated["attempt"],
        "round": stated["round"],
        "step": 3,
        "loss": 0.5,
        "mutual": 0.1,
    }
    numbers |= {"gradient-norm": 1.0, "seconds": 0.1, **changes}
    record = ArrayRecord({name: Array(array) for name, array in network.items()})
    numbers = {name: value for name, value in numbers.items() if value is not None}
    return Message(RecordDict({"network": record, "numbers": MetricRecord(numbers)}), reply_to=order)


def with_array(message: Message, array: Array) -> Message:
    """`message` with another first array in its network."""
    record = message.content["network"]
    message.content["network"] = ArrayRecord({**record, next(iter(record)): array})
    return message


def saved(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def zipped(size: int) -> bytes:
    """An .npz whose one array of zeros takes a thousandth of the `size` bytes that it unpacks to."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", saved(np.zeros(size, np.uint8)))
    return buffer.getvalue()


def announcing(shape: tuple[int, ...]) -> bytes:
    """NumPy's header of a float32 array of that shape, and no array."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def like(network: Network, data: bytes, **changes) -> Array:
    """Any bytes under the description of the network's first array."""
    first = next(iter(network.values()))
    described = {"dtype": str(first.dtype), "shape": first.shape, "stype": "numpy.ndarray", **changes}
    return Array(**described, data=data)


POLL = 3.0
"""Seconds between two looks for orders: a SuperLink on SQLite serves one at a time."""

TEN_GB = (50_000, 50_000)


def poisoned(network: Network, value: float) -> Network:
    return {name: np.full_like(array, value) for name, array in network.items()}


def without(network: Network) -> Network:
    return dict(list(network.items())[1:])


def retyped(network: Network, dtype: type) -> Network:
    return {name: array.astype(dtype) for name, array in network.items()}


def bomb(order: Message, network: Network) -> Part:
    """An array that names one piece of five megabytes two thousand times: 10 GB out of 5 MB."""
    part = Part.of(with_array(reply(order, network), like(network, bytes(5_000_000))))
    array = part.first("Array")
    array.body = json.dumps({**json.loads(array.body), "arraychunk_ids": [0] * 2000}).encode()
    return part


def garbled(order: Message, network: Network) -> Part:
    part = Part.of(reply(order, network))
    part.first("Array").body = b"{]"
    return part


def childless(order: Message, network: Network) -> Part:
    """A record that says it has arrays, and brings none."""
    part = Part.of(reply(order, network))
    record = part.first("ArrayRecord")
    record.body, record.names, record.children = b'{"w": "' + b"0" * 64 + b'"}', None, []
    return part


def rootless(order: Message, network: Network) -> Part:
    """A message that is no message."""
    return Part.of(reply(order, network).content)


def impostor(order: Message, network: Network) -> Part:
    """A reply that says of itself that another node sent it, as the answer to another order."""
    part = Part.of(reply(order, poisoned(network, 0.5), **{"class": 0}))
    proto = ProtoMessage.FromString(part.body)
    proto.metadata.src_node_id, proto.metadata.reply_to_message_id = 7, "0" * 64
    part.body = proto.SerializeToString(deterministic=True)
    return part


def extra(order: Message, network: Network, name: str, record) -> Message:
    message = reply(order, network)
    message.content[name] = record
    return message


def numbers(**changes) -> Callable[[Message, Network], Message]:
    return lambda order, network: reply(order, network, **changes)


def array(make: Callable[[Network], Array]) -> Callable[[Message, Network], Message]:
    return lambda order, network: with_array(reply(order, network), make(network))


def whole(make: Callable[[Network], Network]) -> Callable[[Message, Network], Message]:
    return lambda order, network: reply(order, make(network))


KINDS: dict[str, tuple[Callable[[Message, Network], Message | Part], str]] = {
    "a name missing": (whole(without), "names differ: missing"),
    "names too many": (whole(lambda n: {**n, "evil": np.zeros(3, np.float32)}), "unexpected ['evil']"),
    "no array at all": (whole(lambda n: {}), "names differ"),
    "another shape": (whole(lambda n: {name: a[..., None] for name, a in n.items()}), "is float32["),
    "another dtype": (whole(lambda n: retyped(n, np.float64)), "is float64["),
    "whole numbers": (whole(lambda n: retyped(n, np.int64)), "is int64["),
    "not a number": (whole(lambda n: poisoned(n, np.nan)), "not finite"),
    "infinity": (whole(lambda n: poisoned(n, np.inf)), "not finite"),
    "a huge norm": (whole(lambda n: poisoned(n, 1e30)), "norm-bound"),
    "a cut array": (array(lambda n: like(n, saved(next(iter(n.values())))[:-4])), "bytes of values"),
    "rubbish": (array(lambda n: like(n, b"\x93NUMPY" + b"\xff" * 60)), "does not decode"),
    "a pickle": (array(lambda n: like(n, pickle.dumps(next(iter(n.values()))))), "does not decode"),
    "an array of objects": (array(lambda n: like(n, saved(np.array([{}, {}])))), "announces"),
    "a zip bomb": (array(lambda n: like(n, zipped(100_000_000))), "does not decode"),
    "another encoding": (array(lambda n: like(n, b"", stype="torch.save")), "is encoded as 'torch.save'"),
    "10 GB in NumPy's header": (array(lambda n: like(n, announcing(TEN_GB))), "announces"),
    "10 GB in the description": (array(lambda n: like(n, b"", shape=TEN_GB)), "is float32[50000, 50000]"),
    "10 GB of one piece, repeated": (bomb, "MB of max-reply-mb"),
    "40 MB in pieces": (
        array(lambda n: like(n, np.random.default_rng(0).bytes(40_000_000))),
        "MB of max-reply-mb",
    ),
    "a million numbers": (numbers(loss=[float(i) for i in range(1_000_000)]), "MB of max-reply-mb"),
    "a list of numbers": (numbers(loss=[1.0, 2.0]), "not a finite number"),
    "a loss that is no number": (numbers(loss=float("nan")), "not a finite number"),
    "negative seconds": (numbers(seconds=-1.0), "not a finite number from 0"),
    "half a round": (numbers(round=1.5), "not a whole number"),
    "a number missing": (numbers(mutual=None), "missing ['mutual']"),
    "a number too many": (numbers(secret=1.0), "unexpected ['secret']"),
    "another's class": (numbers(**{"class": 1}), "class is 1, and the order was for"),
    "a later round": (numbers(round=99), "round is 99, and the order was for"),
    "an older attempt": (numbers(attempt=0), "attempt is 0, and the order was for"),
    "a record of words": (lambda o, n: extra(o, n, "note", ConfigRecord({"path": "/data/a.png"})), "not one network"),
    "a second network": (
        lambda o, n: extra(o, n, "again", ArrayRecord({"w": Array(np.zeros(1))})),
        "not one network",
    ),
    "nothing": (lambda o, n: Message(RecordDict(), reply_to=o), "no numbers"),
    "a garbled object": (garbled, "cannot be read: JSONDecodeError"),
    "a record without its arrays": (childless, "cannot be read: ValueError"),
    "no message": (rootless, "cannot be read: TypeError"),
    "another's name": (impostor, "class is 0, and the order was for"),
    "an error in many lines": (lambda o, n: Message(Error(2, "a\n\x1b[2J" + "b" * 100_000), reply_to=o), "b" * 100),
}
"""Kinds of replies that must not get in: (how it is made from the order and a fitting network, what is said of it)."""


class HostileNode(threading.Thread):
    """Joins with a key as a SuperNode does, and answers the order of each round by its script.

    `script` maps rounds to kinds; in other rounds its reply is good: a peer's network as its own. `sent` keeps the
    networks of good replies by round.
    """

    def __init__(self, superlink: str, authority: Path, key: Path, y: int, script: dict[int, str]):
        super().__init__(daemon=True)
        self.superlink, self.authority, self.key, self.y, self.script = superlink, authority, key, y, script
        self.sent: dict[int, Network] = {}
        self.first: Part | None = None
        self.ended = threading.Event()
        self.hello = {"class": y, "partitions": 0}

    def run(self) -> None:
        private = load_ssh_private_key(self.key.read_bytes(), None)
        keys = (private, private.public_key())
        while not self.ended.is_set():  # a SuperLink too busy to answer ends a connection
            with http_request_response(self.superlink, False, self.authority.read_bytes(), keys) as connection:
                self._serve(connection)

    def _serve(self, connection) -> None:
        _, receive, send, _, _, pull, push, confirm = connection
        while not self.ended.wait(POLL):
            received = receive()
            if received is None:
                continue
            message, tree = received
            order, run = _inflate(message, tree, pull), message.metadata.run_id
            confirm(run, message.metadata.message_id)
            part, withheld = self.answer(order)
            announced = Message(RecordDict(), reply_to=order)
            announced.metadata.__dict__["_message_id"] = part.id
            wanted, session = send(announced, part.tree, 0.1)
            for object_id, content in part.contents().items():
                if object_id in wanted and not withheld:
                    push(run, session, object_id, content)

    def answer(self, order: Message) -> tuple[Part, bool]:
        """The reply, and whether to announce it and send nothing."""
        if order.metadata.message_type == MessageType.QUERY:
            return Part.of(Message(RecordDict({"hello": MetricRecord(self.hello)}), reply_to=order)), False
        round_ = order.content["order"]["round"]
        network = {name: a.numpy() for name, a in next(iter(order.content.array_records.values())).items()}
        kind = self.script.get(round_)
        if kind == "a replayed reply":
            return self.first, False
        if kind in KINDS:
            made = KINDS[kind][0](order, network)
            if isinstance(made, Message) and made.has_content() and "numbers" in made.content:
                stated = made.content["numbers"]
                stated["class"] = self.y if stated.get("class") == 0 else stated["class"]
        else:
            made, self.sent[round_] = reply(order, network, **{"class": self.y}), network
        part = made if isinstance(made, Part) else Part.of(made)
        self.first = self.first or part
        return part, kind == "pieces that never come"


def _inflate(message: Message, tree: ObjectTree, pull: Callable[[int, str], bytes]) -> Message:
    ids = [part.object_id for part in iterate_object_tree(tree)]
    contents = pull_objects(ids, lambda object_id: pull(message.metadata.run_id, object_id))
    order = inflate_object_from_contents(message.metadata.message_id, contents)
    order.metadata.__dict__["_message_id"] = message.metadata.message_id
    return order
