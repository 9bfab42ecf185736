"""Networks and numbers as Flower records, and the checks on what arrives.

What crosses the wire, and nothing else:

- server to client: the settings of the run and of the round (`ORDER`), and the peers' networks, each a record
  that `peers` names;
- client to server: its class (`HELLO`), then its network (`network`) and numbers (`NUMBERS`).
"""

import math
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

Network = dict[str, Tensor]
"""A network's state by names."""

HELLO = ("class", "partitions")
ORDER = ("settings", "run", "attempt", "round", "checkpointed", "peers", "weights")
NUMBERS = ("class", "attempt", "round", "step", "samples", "loss", "mutual", "gradient-norm", "seconds")
OPTIONAL_NUMBERS = ("held-out-loss", "count")


class Rejected(ValueError):
    """Something that arrived cannot be used; says why in one line."""


def pack_network(network: Network) -> ArrayRecord:
    """A network's state as an ArrayRecord: named arrays in NumPy's own format, no pickle."""
    return ArrayRecord({name: Array(tensor.detach().cpu().numpy()) for name, tensor in network.items()})


def unpack_network(record: ArrayRecord, like: Network, norm_bound: float) -> Network:
    """The network in `record`, on the CPU, checked against `like` before anything is decoded.

    Raises:
        Rejected: other names, shapes or dtypes than `like`, an encoding other than NumPy's, content that does
            not decode to what it announces, values that are not finite, or a norm above `norm_bound` times
            that of `like` (at least 1).
    """
    if set(record) != set(like):
        missing, extra = sorted(set(like) - set(record)), sorted(set(record) - set(like))
        raise Rejected(f"names differ: missing {missing[:3]}, unexpected {extra[:3]}")
    network = {}
    for name, expected in like.items():
        array, want = record[name], (tuple(expected.shape), str(expected.dtype).removeprefix("torch."))
        if (tuple(array.shape), array.dtype) != want or array.stype != "numpy.ndarray":
            raise Rejected(f"{name} is {array.dtype}{list(array.shape)}, not {want[1]}{list(want[0])}")
        # A header of NumPy's format takes 128 bytes; more than 1024 beyond the values is something else.
        if len(array.data) > expected.nbytes + 1024:
            raise Rejected(f"{name} holds {len(array.data)} bytes for {expected.nbytes} bytes of values")
        try:
            values = array.numpy()
        except (ValueError, EOFError, OSError) as error:
            raise Rejected(f"{name} does not decode: {error}") from None
        if (values.shape, str(values.dtype)) != want:
            raise Rejected(f"{name} announces {want[1]}{list(want[0])} and holds {values.dtype}{list(values.shape)}")
        network[name] = torch.from_numpy(values)
    check_values(network, like, norm_bound)
    return network


def norm(network: Network) -> float:
    """The Euclidean norm over all parameters."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in network.values()))


def check_values(network: Network, like: Network, norm_bound: float) -> None:
    """Raises `Rejected` for values that are not finite, or a norm above `norm_bound` times that of `like`."""
    for name, tensor in network.items():
        if not tensor.isfinite().all():
            raise Rejected(f"{name} holds values that are not finite")
    size, limit = norm(network), norm_bound * max(1.0, norm(like))
    if size > limit:
        raise Rejected(f"norm {size:.3g} exceeds norm-bound's {limit:.3g}")


def pack_numbers(numbers: dict[str, int | float]) -> MetricRecord:
    """The reply's numbers, exactly those listed above."""
    unknown = set(numbers) - set(NUMBERS) - set(OPTIONAL_NUMBERS)
    if unknown or not set(NUMBERS) <= set(numbers):
        raise ValueError(f"a reply holds the numbers {NUMBERS}, not {sorted(numbers)}")
    return MetricRecord({name: value for name, value in numbers.items()})


def unpack_numbers(content: RecordDict) -> dict[str, int | float]:
    """The numbers of a reply.

    Raises:
        Rejected: the record, or one of its numbers, is missing, unexpected, not a number or not finite.
    """
    record = content.metric_records.get("numbers")
    if record is None:
        raise Rejected("the reply holds no numbers")
    unknown, missing = set(record) - set(NUMBERS) - set(OPTIONAL_NUMBERS), set(NUMBERS) - set(record)
    if unknown or missing:
        raise Rejected(f"numbers differ: missing {sorted(missing)[:3]}, unexpected {sorted(unknown)[:3]}")
    for name, value in record.items():
        if isinstance(value, list) or not math.isfinite(value):
            raise Rejected(f"{name} = {value} is not a finite number")
    for name in ("class", "attempt", "round", "step", "samples"):
        if not isinstance(record[name], int):
            raise Rejected(f"{name} = {record[name]} is not a whole number")
    return dict(record)


def pack_order(**order: Any) -> ConfigRecord:
    """The settings of one round for one client, exactly those in `ORDER`."""
    if set(order) != set(ORDER):
        raise ValueError(f"an order holds {ORDER}, not {sorted(order)}")
    return ConfigRecord(order)


def size_of(content: RecordDict) -> int:
    """Bytes of the arrays in a message's content: what its networks cost on the wire."""
    return sum(record.count_bytes() for record in content.array_records.values())
