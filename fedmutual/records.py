"""Networks and numbers as Flower records, and the checks on what arrives.

What crosses the wire, and nothing else:

- server to client: the settings of the run and of the round (`ORDER`), and the peers' networks, each a record
  that `peers` names;
- client to server: its class (`HELLO`), then its network (`network`) and numbers (`NUMBERS`).
"""

import math
from io import BytesIO
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.lib.format import read_array_header_1_0, read_magic
from torch import Tensor

Network = dict[str, Tensor]
"""A network's state by names."""

HELLO = ("class", "partitions")
ORDER = ("settings", "run", "attempt", "round", "checkpointed", "reported", "peers", "weights")
NUMBERS = ("class", "attempt", "round", "step", "loss", "mutual", "gradient-norm", "seconds")
OPTIONAL_NUMBERS = ("held-out-loss", "count")


class Rejected(ValueError):
    """Something that arrived cannot be used; says why in one line."""


def pack_network(network: Network) -> ArrayRecord:
    """A network's state as an ArrayRecord: named arrays in NumPy's own format, C order, no pickle."""
    return ArrayRecord({name: Array(tensor.detach().cpu().contiguous().numpy()) for name, tensor in network.items()})


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
    network = {name: _decode(name, record[name], expected) for name, expected in like.items()}
    check_values(network, like, norm_bound)
    return network


def _decode(name: str, array: Array, expected: Tensor) -> Tensor:
    """One array, whose header is compared with what is expected before memory is given to its values."""
    shape, dtype = tuple(expected.shape), str(expected.dtype).removeprefix("torch.")
    if (tuple(array.shape), array.dtype, array.stype) != (shape, dtype, "numpy.ndarray"):
        raise Rejected(f"{name} is {array.dtype}{list(array.shape)}, not {dtype}{list(shape)}")
    stream = BytesIO(array.data)
    try:
        if read_magic(stream) != (1, 0):
            raise ValueError("not version 1.0 of NumPy's format")
        header = read_array_header_1_0(stream)
    except Exception as error:  # hostile bytes make the header's parser raise nearly anything
        raise Rejected(f"{name} does not decode: {' '.join(str(error).split())[:80]}") from None
    if header != (shape, False, np.dtype(dtype)):
        raise Rejected(f"{name} announces {dtype}{list(shape)} and holds {header[2]}{list(header[0])}")
    values = stream.read()
    if len(values) != expected.nbytes:
        raise Rejected(f"{name} holds {len(values)} bytes of values, not {expected.nbytes}")
    return torch.from_numpy(np.frombuffer(values, dtype).reshape(shape).copy())


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
    for name in ("class", "attempt", "round", "step"):
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
