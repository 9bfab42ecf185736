"""Networks and numbers as Flower records, and the checks on what arrives.

What crosses the wire, and nothing else:

- server to client: the settings of the run and of the round (`ORDER`), and the peers' networks, each a record
  that `peers` names;
- client to server: its class (`HELLO`), then its network (`network`) and numbers (`NUMBERS`), and with `ask-for-peers`
  the classes that it asks for (`ASKED`).

What arrives was written by another machine. It is accepted whole or refused whole, with one line that says why.
"""

import json
import math
import re
import sys
import warnings
from collections.abc import Collection
from io import BytesIO
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.lib.format import read_array_header_1_0, read_magic
from torch import Tensor, nn

Network = dict[str, Tensor]
"""A network's state by names."""

HELLO = ("class", "partitions")
ORDER = ("settings", "run", "attempt", "round", "checkpointed", "reported", "peers", "weights")
NUMBERS = ("class", "attempt", "round", "step", "loss", "mutual", "gradient-norm", "seconds")
OPTIONAL_NUMBERS = ("held-out-loss", "count")
ASKED = ("classes",)
PRIVATE_NUMBERS = ("class", "attempt", "round", "step", "seconds", "epsilon")
"""Those of a reply under DP-SGD, where a number that was measured on samples would be beyond the proof."""


REASON = 300
"""The longest reason of another machine, in characters, that a log or a history records."""

HEADER = 10 + 2**16
"""Bytes that a header of NumPy's format, version 1.0, takes at most."""

RUN = re.compile("[0-9a-f]{16}")
"""The identity of a run. A client names a folder by it, so that nothing else will do."""


def one_line(text: str) -> str:
    """Somebody else's words as they may enter a log: one line, printable, no longer than `REASON`."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[: 10 * REASON]).split())[:REASON]


class Rejected(ValueError):
    """Something that arrived cannot be used; says why in one line."""

    def __init__(self, reason: str):
        super().__init__(one_line(reason))


def rounded_names(network: nn.Module, wire_dtype: str) -> frozenset[str]:
    """The tensors of a network that cross the wire as bfloat16 by the setting `wire-dtype`: its parameters, or none.

    Buffers stay as they are: they are the same in every class, and rounded frequencies of a time would be others.
    """
    return frozenset(name for name, _ in network.named_parameters()) if wire_dtype == "bfloat16" else frozenset()


def pack_network(network: Network, rounded: Collection[str] = ()) -> ArrayRecord:
    """A network's state as an ArrayRecord: named arrays in NumPy's own format, C order, no pickle.

    NumPy has no bfloat16: the tensors named in `rounded` cross as the bits of it, in integers of two bytes.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in network.items()}
    stored |= {name: stored[name].to(torch.bfloat16).view(torch.int16) for name in rounded}
    return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in stored.items()})


def network_in(record: ArrayRecord, like: Network, rounded: Collection[str] = ()) -> Network:
    """The network in a record of `pack_network`, over the record's own bytes: to be read, and not written to."""
    network = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        for name, expected in like.items():
            values = np.frombuffer(record[name].data, record[name].dtype, offset=_header(record[name]))
            tensor = torch.from_numpy(values.reshape(expected.shape))
            network[name] = tensor.view(torch.bfloat16).to(expected.dtype) if name in rounded else tensor
    return network


def _header(array: Array) -> int:
    """Bytes of the header of one of our own arrays, behind which all are values."""
    return len(array.data) - math.prod(array.shape) * np.dtype(array.dtype).itemsize


def unpack_network(record: ArrayRecord, like: Network, limit: float, rounded: Collection[str] = ()) -> Network:
    """The network in `record`, on the CPU, checked against `like` before anything is decoded.

    The tensors named in `rounded` cross as bfloat16, see `pack_network`.

    Raises:
        Rejected: other names, shapes or dtypes than `like`, an encoding other than NumPy's, content that does
            not decode to what it announces, values that are not finite, or a norm above `limit`, see `norm_limit`.
    """
    _check_names("names", set(record), set(like))
    network = {}
    for name, expected in like.items():
        if name in rounded:
            bits = _decode(name, record[name], torch.empty(expected.shape, dtype=torch.int16, device="meta"))
            network[name] = bits.view(torch.bfloat16).to(expected.dtype)
        else:
            network[name] = _decode(name, record[name], expected)
    check_values(network, limit)
    return network


def _decode(name: str, array: Array, expected: Tensor) -> Tensor:
    """One array, whose header is compared with what is expected before memory is given to its values."""
    shape, dtype = tuple(expected.shape), str(expected.dtype).removeprefix("torch.")
    if array.stype != "numpy.ndarray":
        raise Rejected(f"{name} is encoded as {array.stype!r}, not as NumPy does")
    if (tuple(array.shape), array.dtype) != (shape, dtype):
        raise Rejected(f"{name} is {array.dtype}{list(array.shape)}, not {dtype}{list(shape)}")
    stream = BytesIO(array.data[:HEADER])
    try:
        if read_magic(stream) != (1, 0):
            raise ValueError("not version 1.0 of NumPy's format")
        header = read_array_header_1_0(stream)
    except Exception as error:  # hostile bytes make the header's parser raise nearly anything
        raise Rejected(f"{name} does not decode: {error}") from None
    if header != (shape, False, np.dtype(dtype)):
        raise Rejected(f"{name} announces {dtype}{list(shape)} and holds {header[2]}{list(header[0])}")
    values = memoryview(array.data)[stream.tell() :]
    if len(values) != expected.nbytes:
        raise Rejected(f"{name} holds {len(values)} bytes of values, not {expected.nbytes}")
    return torch.from_numpy(np.frombuffer(values, dtype).reshape(shape).copy())


def norm(network: Network) -> float:
    """The Euclidean norm over all parameters, summed in float64; not finite where one of them is not."""
    norms = [torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor in network.values()]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def norm_limit(like: Network, norm_bound: float) -> float:
    """The largest norm that is taken: `norm_bound` times that of the untrained network `like`, or times 1."""
    return norm_bound * max(1.0, norm(like))


def check_values(network: Network, limit: float) -> None:
    """Raises `Rejected` for values that are not finite, or a norm above `limit`."""
    size = norm(network)
    if not math.isfinite(size):  # a second pass over the values is only for those that are refused
        for name, tensor in network.items():
            if not tensor.isfinite().all():
                raise Rejected(f"{name} holds values that are not finite")
    if size > limit:
        raise Rejected(f"norm {size:.3g} exceeds norm-bound's {limit:.3g}")


def pack_numbers(numbers: dict[str, int | float]) -> MetricRecord:
    """The reply's numbers, exactly those listed above."""
    unknown = set(numbers) - set(NUMBERS) - set(OPTIONAL_NUMBERS)
    if set(numbers) != set(PRIVATE_NUMBERS) and (unknown or not set(NUMBERS) <= set(numbers)):
        raise ValueError(f"a reply holds the numbers {NUMBERS} or {PRIVATE_NUMBERS}, not {sorted(numbers)}")
    return MetricRecord({name: value for name, value in numbers.items()})


def unpack_numbers(content: RecordDict, private: bool = False) -> dict[str, int | float]:
    """The numbers of a reply; `private`: one under DP-SGD.

    Raises:
        Rejected: the record, or one of its numbers, is missing, unexpected, not a number, not finite or negative.
    """
    names = (PRIVATE_NUMBERS,) if private else (NUMBERS, OPTIONAL_NUMBERS)
    record = _numbers_in(content, "numbers", *names)
    for name in ("class", "attempt", "round", "step"):
        _check_whole(name, record[name])
    return record


def unpack_hello(content: RecordDict) -> tuple[int, int]:
    """(class, number of clients in its node settings) of a client that introduces itself.

    Raises:
        Rejected: other names than `HELLO`, or values that are no whole numbers from 0.
    """
    record = _numbers_in(content, "hello", HELLO)
    for name in HELLO:
        _check_whole(name, record[name])
    return int(record["class"]), int(record["partitions"])


def pack_asked(classes: list[int]) -> dict[str, MetricRecord]:
    """{"asked": the classes that a client asks for as its next peers}; nothing where it asks for none."""
    return {"asked": MetricRecord({"classes": classes})} if classes else {}


def unpack_asked(content: RecordDict) -> list[int]:
    """The classes that a reply asks for.

    Raises:
        Rejected: what is there is no list of different classes.
    """
    if "asked" not in content:
        return []
    record = content.metric_records.get("asked")
    if record is None:
        raise Rejected("asked is no record of numbers")
    _check_names("asked", set(record), set(ASKED))
    classes: Any = record["classes"]
    if not isinstance(classes, list) or len(set(classes)) < len(classes):
        raise Rejected(f"asked = {classes} is not a list of different classes")
    for z in classes:
        _check_whole("a class that is asked for", z)
    return classes


PEER = re.compile(r"peer-(\d{1,9})", re.ASCII)


def peer_classes(names: list[str]) -> list[int]:
    """The classes of an order's peers by the names of their records, `peer-7`; of a mean network -1.

    Raises:
        Rejected: a name that no server of ours gives.
    """
    matches = [PEER.fullmatch(name) for name in names]
    classes = [int(match[1]) if match else -1 for match in matches]
    if len(set(classes)) < len(classes) or (-1 in classes and names != ["peer-mean"]):
        raise Rejected(f"peers {names[:3]} are not named by different classes")
    return classes


def _numbers_in(
    content: RecordDict, name: str, needed: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, int | float]:
    """The finite numbers from 0 in the record of that name, which holds those `needed` and perhaps `optional` ones."""
    record = content.metric_records.get(name)
    if record is None:
        raise Rejected(f"the reply holds no {name}")
    _check_names(name, set(record), set(needed), set(optional))
    numbers: dict[str, int | float] = {}
    for key, value in record.items():
        # Whole numbers may be too large for math.isfinite; every comparison with NaN is false.
        if isinstance(value, list) or not 0 <= value <= sys.float_info.max:
            raise Rejected(f"{key} = {value} is not a finite number from 0")
        numbers[key] = value
    return numbers


def _check_names(what: str, present: set[str], needed: set[str], optional: Collection[str] = frozenset()) -> None:
    missing, extra = sorted(needed - present), sorted(present - needed - set(optional))
    if missing or extra:
        raise Rejected(f"{what} differ: missing {missing[:3]}, unexpected {extra[:3]}")


def _check_whole(name: str, value: Any, least: int = 0) -> None:
    if type(value) is not int or value < least:
        raise Rejected(f"{name} = {value!r} is not a whole number from {least}")


def pack_order(**order: Any) -> ConfigRecord:
    """The settings of one round for one client, exactly those in `ORDER`."""
    if set(order) != set(ORDER):
        raise ValueError(f"an order holds {ORDER}, not {sorted(order)}")
    return ConfigRecord(order)


def unpack_order(content: RecordDict) -> dict[str, Any]:
    """The settings of one round, those of the run decoded: {setting: value}. The networks are not looked at here.

    Raises:
        Rejected: names, types or values that no server of ours sends, weights that are not those of a mean over
            the peers, or records other than the peers'.
    """
    record = content.config_records.get("order")
    if record is None:
        raise Rejected("the message holds no order")
    _check_names("the order's entries", set(record), set(ORDER))
    order: dict[str, Any] = dict(record)
    for name, least in (("attempt", 1), ("round", 1), ("checkpointed", 0), ("reported", 0)):
        _check_whole(name, order[name], least)
    if not (isinstance(order["run"], str) and RUN.fullmatch(order["run"])):
        raise Rejected(f"run = {order['run']!r} is not the identity of a run")
    try:
        order["settings"] = json.loads(order["settings"])
    except (TypeError, ValueError, RecursionError):
        raise Rejected("the order's settings are not JSON") from None
    if not isinstance(order["settings"], dict):
        raise Rejected("the order's settings are not names with values")
    peers, weights = order["peers"], order["weights"]
    if not (isinstance(peers, list) and all(isinstance(peer, str) for peer in peers)):
        raise Rejected("peers are not a list of names")
    _check_names("records", set(content), {"order", *peers})
    if len(peers) != len(content.array_records):
        raise Rejected("peers are not the names of networks, each once")
    if not (isinstance(weights, list) and all(isinstance(w, float) and 0 <= w <= 1 for w in weights)):
        raise Rejected("weights are not a list of numbers from 0 to 1")
    if len(weights) != len(peers) or (peers and not math.isclose(sum(weights), 1, abs_tol=1e-6)):
        raise Rejected(f"{len(weights)} weights of sum {sum(weights):.6g} for {len(peers)} peers")
    return order


def size_of(content: RecordDict) -> int:
    """Bytes of the arrays in a message's content: what its networks cost on the wire."""
    return sum(record.count_bytes() for record in content.array_records.values())
