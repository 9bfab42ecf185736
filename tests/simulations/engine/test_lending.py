import gc
import time

import pytest
import ray
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from ray.util import deregister_serializer

from fedmutual.records import pack_network, unpack_network
from simulations.engine.lending import lend, lend_records

pytestmark = pytest.mark.xdist_group("lending")  # its fixtures are made once

NETWORK = {"w": torch.randn(300, 500), "b": torch.zeros(7, dtype=torch.float64), "k": torch.tensor(3.0)}


@pytest.fixture(scope="module")
def store():
    """Ray, whose object store holds what is lent."""
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL")
    lend_records()
    yield
    deregister_serializer(ArrayRecord)
    ray.shutdown()


@ray.remote
class Client:
    def receive(self, order):
        """The peer's network as a client decodes it, what it weighs, and whether its bytes are a view of the store."""
        record = order.array_records["peer-1"]
        unpacked = unpack_network(record, NETWORK, 1e6)
        by_flower = {name: torch.tensor(array.numpy()) for name, array in record.items()}
        return unpacked, by_flower, record.count_bytes(), {type(array.data) for array in record.values()}


def test_a_network_arrives_bit_for_bit_without_a_copy_of_its_bytes(store):
    record = pack_network(NETWORK)
    unpacked, by_flower, size, types = ray.get(Client.remote().receive.remote(RecordDict({"peer-1": record})))
    torch.testing.assert_close(unpacked, NETWORK, rtol=0, atol=0)
    torch.testing.assert_close(by_flower, NETWORK, rtol=0, atol=0)
    assert size == record.count_bytes()
    assert types == {memoryview}


def test_a_record_is_stored_once_however_many_orders_carry_it_and_another_apart(store):
    record, other = pack_network(NETWORK), pack_network(NETWORK)
    client = Client.remote()
    for _ in range(3):
        ray.get(client.receive.remote(RecordDict({"peer-1": record})))
    assert lend(record) == lend(record) != lend(other)


def test_nothing_is_kept_in_the_store_once_its_orders_are_done(store):
    """Orders of fresh records, of one that was lent before, and of both: none leaves a reference behind."""
    client, lent = Client.remote(), pack_network(NETWORK)
    held = set()
    for records in ([pack_network(NETWORK) for _ in range(3)], [lent], [lent, pack_network(NETWORK)]):
        order = RecordDict({f"peer-{number}": record for number, record in enumerate(records, 1)})
        ray.get(client.receive.remote(order))
        held |= {lend(record).hex() for record in records}
    kept = lend(lent).hex()
    del records, order
    assert left_of(held, expected={kept}) == {kept}
    del lent
    assert left_of(held, expected=set()) == set()


def left_of(held, expected):
    """Those of the ids `held` that this process keeps in Ray's store; given time to become those expected."""
    worker = ray._private.worker.global_worker.core_worker
    deadline = time.monotonic() + 20
    while True:
        gc.collect()
        left = held & {key.decode() for key in worker.get_all_reference_counts()}
        if left == expected or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def test_a_record_stays_whole_where_it_is_lent_from(store):
    record = pack_network(NETWORK)
    lend(record)
    assert record == pack_network(NETWORK)
    assert all(isinstance(array, Array) and isinstance(array.data, bytes) for array in record.values())
