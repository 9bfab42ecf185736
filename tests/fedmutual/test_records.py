"""What arrives is hostile until checked: networks and numbers by hypothesis over records."""

import io
import math
import pickle

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedmutual.networks.mlp import MLP
from fedmutual.records import (
    NUMBERS,
    Rejected,
    check_values,
    network_in,
    norm,
    norm_limit,
    pack_network,
    pack_numbers,
    pack_order,
    rounded_names,
    size_of,
    unpack_network,
    unpack_numbers,
)

LIKE = {"w": torch.ones(2, 3), "b": torch.zeros(3), "k": torch.tensor(1.0)}
GOOD = {"class": 1, "attempt": 1, "round": 2, "step": 6, "loss": 0.5, "mutual": 0.1}
GOOD |= {"gradient-norm": 1.0, "seconds": 0.1}


def record_with(**changes):
    arrays = {name: Array(tensor.numpy()) for name, tensor in LIKE.items()}
    arrays |= changes
    return ArrayRecord({name: array for name, array in arrays.items() if array is not None})


def raw(data, dtype="float32", shape=(2, 3), stype="numpy.ndarray"):
    return Array(dtype=dtype, shape=shape, stype=stype, data=data)


def header_of(shape):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def saved(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_record_is_read_over_its_own_bytes(dtype):
    network = {name: torch.randn(tensor.shape, dtype=dtype) for name, tensor in LIKE.items()}
    record = pack_network(network)
    read = network_in(record, network)
    torch.testing.assert_close(read, network, rtol=0, atol=0)
    for name, tensor in read.items():
        whole = np.frombuffer(record[name].data, np.uint8)
        assert tensor.data_ptr() == whole.ctypes.data + whole.nbytes - tensor.nbytes


def test_named_tensors_cross_as_bfloat16_in_half_the_bytes_and_the_others_as_they_are():
    network = {"w": torch.randn(300, 50), "rates": torch.logspace(0, 3, 16), "k": torch.tensor(1 / 3)}
    record = pack_network(network, {"w", "k"})
    for received in (unpack_network(record, network, 1e6, {"w", "k"}), network_in(record, network, {"w", "k"})):
        assert torch.equal(received["w"], network["w"].bfloat16().float())
        assert torch.equal(received["k"], network["k"].bfloat16().float())
        assert torch.equal(received["rates"], network["rates"])
    assert len(record["w"].data) < 0.51 * len(pack_network(network)["w"].data)


def test_a_network_in_full_where_bfloat16_is_agreed_is_refused_and_the_other_way_round():
    with pytest.raises(Rejected, match=r"w is float32\[2, 3\], not int16\[2, 3\]"):
        unpack_network(pack_network(LIKE), LIKE, 100.0, {"w"})
    with pytest.raises(Rejected, match=r"w is int16\[2, 3\], not float32\[2, 3\]"):
        unpack_network(pack_network(LIKE, {"w"}), LIKE, 100.0)


def test_parameters_are_rounded_and_buffers_are_not():
    network = MLP((1, 8, 8), 16, 2, 100.0)
    assert rounded_names(network, "same") == frozenset()
    assert set(network.state_dict()) - rounded_names(network, "bfloat16") == {"rates"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_survives_the_wire_bit_for_bit(dtype):
    network = {name: torch.randn(tensor.shape, dtype=dtype) for name, tensor in LIKE.items()}
    received = unpack_network(pack_network(network), network, 100.0)
    torch.testing.assert_close(received, network, rtol=0, atol=0)


def test_the_norm_is_that_of_all_parameters_and_its_limit_that_of_the_untrained_network():
    network = {"a": torch.full((2, 2), 3.0), "b": torch.full((4,), 4.0, dtype=torch.bfloat16)}
    assert norm(network) == pytest.approx(10.0, rel=1e-12)
    assert norm_limit(network, 7.0) == pytest.approx(70.0)
    assert norm_limit({"a": torch.zeros(3)}, 7.0) == 7.0
    check_values(network, norm(network))
    with pytest.raises(Rejected, match="norm 10 exceeds"):
        check_values(network, 9.99)


def test_a_norm_that_overflows_is_too_large_and_one_spoilt_value_is_named():
    huge = {"a": torch.full((4,), 1e200, dtype=torch.float64)}
    with pytest.raises(Rejected, match="norm inf exceeds"):
        check_values(huge, 1e9)
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(Rejected, match="b holds values that are not finite"):
            check_values({"a": torch.ones(3), "b": torch.tensor([0.0, value])}, math.inf)


HOSTILE = {
    "a missing name": (record_with(b=None), "names differ"),
    "a name too many": (record_with(evil=Array(np.zeros(3, np.float32))), "names differ"),
    "another shape": (record_with(w=Array(np.zeros((3, 2), np.float32))), r"w is float32\[3, 2\]"),
    "another dtype": (record_with(w=Array(np.zeros((2, 3)))), "w is float64"),
    "integers": (record_with(w=Array(np.zeros((2, 3), np.int64))), "w is int64"),
    "not a number": (record_with(w=Array(np.full((2, 3), np.nan, np.float32))), "not finite"),
    "infinity": (record_with(w=Array(np.full((2, 3), np.inf, np.float32))), "not finite"),
    "an exploding norm": (record_with(w=Array(np.full((2, 3), 1e6, np.float32))), "norm-bound"),
    "another encoding": (record_with(w=raw(b"", stype="torch.save")), "w is encoded as 'torch.save'"),
    "nothing": (record_with(w=raw(b"")), "does not decode"),
    "rubbish": (record_with(w=raw(b"\x93NUMPY" + b"\xff" * 60)), "does not decode"),
    "a cut array": (record_with(w=raw(saved(np.ones((2, 3), np.float32))[:-4])), "20 bytes of values"),
    "a pickle": (record_with(w=raw(pickle.dumps(np.ones((2, 3), np.float32)))), "does not decode"),
    "an array of objects": (record_with(w=raw(saved(np.array([[{}] * 3] * 2), allow_pickle=True))), "w"),
    "a lie about the shape": (record_with(w=raw(saved(np.ones(6, np.float32)))), "announces"),
    "a lie about the dtype": (record_with(w=raw(saved(np.ones((2, 3), np.int32)))), "announces"),
    "another order": (record_with(w=raw(saved(np.asfortranarray(np.ones((2, 3), np.float32))))), "announces"),
    "bytes beyond the values": (record_with(w=raw(saved(np.ones((2, 3), np.float32)) + b"0" * 4096)), "bytes"),
    "ten gigabytes in the header": (record_with(w=raw(header_of((50_000, 50_000)))), "announces"),
    "ten gigabytes": (record_with(w=Array("float32", (50_000, 50_000), "numpy.ndarray", b"")), "w is"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_network_is_rejected_with_its_reason(case):
    record, says = HOSTILE[case]
    with pytest.raises(Rejected, match=says) as caught:
        unpack_network(record, LIKE, 100.0)
    assert "\n" not in str(caught.value)


@given(
    data=st.binary(max_size=200),
    shape=st.lists(st.integers(0, 4), max_size=3),
    dtype=st.sampled_from(["float32", "float64", "object", "", "U9"]),
)
def test_no_bytes_get_in_or_raise_anything_else(data, shape, dtype):
    with pytest.raises(Rejected):
        unpack_network(record_with(w=raw(data, dtype, tuple(shape))), LIKE, 100.0)


@given(data=st.data())
def test_a_flipped_byte_is_rejected_or_stays_within_the_checks(data):
    content = bytearray(saved(np.ones((2, 3), np.float32)))
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        network = unpack_network(record_with(w=raw(bytes(content))), LIKE, 100.0)
    except Rejected:
        return
    assert all(tensor.isfinite().all() for tensor in network.values())
    assert network["w"].shape == (2, 3)
    assert norm(network) <= 100 * norm(LIKE)


def content(**changes):
    numbers = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    return RecordDict({"numbers": MetricRecord(numbers)})


def test_numbers_survive_the_wire():
    assert unpack_numbers(RecordDict({"numbers": pack_numbers(GOOD)})) == GOOD
    assert set(GOOD) == set(NUMBERS)
    assert unpack_numbers(content(count=5))["count"] == 5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"loss": None}, "missing"),
        ({"secret": 1.0}, "unexpected"),
        ({"loss": math.nan}, "not a finite"),
        ({"loss": math.inf}, "not a finite"),
        ({"loss": [1.0, 2.0]}, "not a finite"),
        ({"round": 1.5}, "not a whole"),
        ({"class": [1]}, "not a finite"),
    ],
)
def test_bad_numbers_are_rejected(changes, says):
    with pytest.raises(Rejected, match=says):
        unpack_numbers(content(**changes))


def test_a_reply_without_numbers_is_rejected():
    with pytest.raises(Rejected, match="no numbers"):
        unpack_numbers(RecordDict({"numbers": ConfigRecord({"a": 1})}))


def test_nothing_unlisted_can_be_packed():
    with pytest.raises(ValueError, match="holds"):
        pack_numbers({**GOOD, "sample": 1.0})
    with pytest.raises(ValueError, match="holds"):
        pack_order(round=1)


def test_size_counts_the_arrays_of_a_message():
    record = pack_network(LIKE)
    values = sum(tensor.nbytes for tensor in LIKE.values())
    assert values < size_of(RecordDict({"a": record, "b": record})) / 2 <= values + 3 * 129
