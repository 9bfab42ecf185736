"""A simulation's networks are lent to its clients: Ray's object store holds each once, and orders carry references.

Flower hands every order to Ray whole, and Ray pickles it. Ten clients with nine peers each would have ninety copies
made of ten networks in a round, all of them by the server's process, and each client would hold its copies beside
the networks that it makes of them.
"""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import ray
from flwr.app import Array, ArrayRecord
from ray.util import register_serializer

from server.roster import RunFailed

PATIENCE = 120.0
"""Seconds that Ray gets to start."""

Lent = dict[str, tuple[str, tuple[int, ...], str, np.ndarray]]
"""A record in the store, {name: (dtype, shape, encoding, bytes)}: NumPy's arrays are read there without a copy."""

_REFERENCE = "_lent_as"
_putter = ThreadPoolExecutor(1, "lending")
"""Puts records into the store, one at a time. Ray keeps notes of what it pickles by thread: after a put in the midst of
an order it would hold the references of that order for ever."""


def lend_records() -> None:
    """From now on this process gives Ray a record by reference; called while Ray starts, in a thread of its own.

    What clients send back is pickled as ever: each network once.

    Raises:
        RunFailed: Ray does not start.
    """
    deadline = time.monotonic() + PATIENCE
    while not ray.is_initialized():
        if time.monotonic() > deadline:
            raise RunFailed(f"Ray has not started within {PATIENCE:.0f} s")
        time.sleep(0.05)
    register_serializer(ArrayRecord, serializer=_lend, deserializer=_borrow)


def _lend(record: ArrayRecord) -> "ray.ObjectRef[Lent]":
    """What stands for `record` in an order. The store holds it for as long as the record, an order or a client does."""
    return _putter.submit(_put, record).result()


def _put(record: ArrayRecord) -> "ray.ObjectRef[Lent]":
    if _REFERENCE not in vars(record):
        lent = {name: (a.dtype, a.shape, a.stype, np.frombuffer(a.data, np.uint8)) for name, a in record.items()}
        vars(record)[_REFERENCE] = ray.put(lent)
    return vars(record)[_REFERENCE]


def _borrow(reference: "ray.ObjectRef[Lent]") -> ArrayRecord:
    record = ArrayRecord()
    for name, (dtype, shape, stype, content) in ray.get(reference).items():
        record[name] = Array(dtype, shape, stype, b"")
        record[name].data = memoryview(content)
    return record
