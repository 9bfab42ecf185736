"""A simulation's networks are lent to its clients: Ray's object store holds each once, and orders carry references.

Flower hands every order to Ray whole, and Ray pickles it. Ten clients with nine peers each would have ninety copies
made of ten networks in a round, all of them by the server's process, and each client would hold its copies beside
the networks that it makes of them.
"""

from concurrent.futures import ThreadPoolExecutor

import ray
from flwr.app import ArrayRecord
from ray.util import register_serializer

from server.flower import Views, record_of, views_of

_REFERENCE = "_lent_as"
_putter = ThreadPoolExecutor(1, "lending")
"""Puts records into the store, one at a time. Ray keeps notes of what it pickles by thread: after a put while it
pickles an order it would hold the references of that order for ever."""


def lend_records() -> None:
    """From now on this process gives Ray, which has to run, a record by reference.

    What clients send back is pickled as usual: each network once.
    """
    register_serializer(ArrayRecord, serializer=lend, deserializer=borrow)


def lend(record: ArrayRecord) -> "ray.ObjectRef[Views]":
    """What stands for `record` in an order. The store holds it for as long as the record, an order or a client does."""
    return _putter.submit(_put, record).result()


def _put(record: ArrayRecord) -> "ray.ObjectRef[Views]":
    if _REFERENCE not in vars(record):
        vars(record)[_REFERENCE] = ray.put(views_of(record))
    reference: ray.ObjectRef[Views] = vars(record)[_REFERENCE]
    return reference


def borrow(reference: "ray.ObjectRef[Views]") -> ArrayRecord:
    """The record, whose bytes are read where they lie in the store."""
    return record_of(ray.get(reference))
