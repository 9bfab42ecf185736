"""Hostile replies, peers, orders and objects by hypothesis: taken when exactly valid, else refused in one line."""

import json
import math
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from client.app import train
from fedmutual.config import RunConfig
from fedmutual.errors import UserError
from fedmutual.records import (
    NUMBERS,
    OPTIONAL_NUMBERS,
    REASON,
    Rejected,
    norm,
    one_line,
    pack_network,
    pack_order,
    unpack_order,
)
from server.app import prepare, round_in_words
from server.bank import Bank
from server.intake import ROOM, build
from server.roster import Roster, reason_of
from tests.support.federation import SMALL, LocalGrid, federate
from tests.support.hostile import KINDS, Part, announcing, bomb, parts_of, saved, zipped

CONFIG = RunConfig.of(SMALL, {"width": 8, "depth": 1})
Y, ATTEMPT, ROUND = 3, 2, 5


def bank():
    """A bank whose class 3 has a good network of round 4."""
    made = Bank(CONFIG, (1, 8, 8), 10)
    made.accept(Y, ATTEMPT, ROUND - 1, answer(made, round=ROUND - 1))
    return made


def answer(to, **numbers):
    stated = {"class": Y, "attempt": ATTEMPT, "round": ROUND, "step": 3, "loss": 0.5, "mutual": 0.1}
    stated |= {"gradient-norm": 1.0, "seconds": 0.1, **numbers}
    return RecordDict({"network": pack_network(to.like), "numbers": MetricRecord(stated)})


BANK = bank()
NAMES = list(BANK.like)

# Values, from plain to mad

integers = st.integers(-(2**70), 2**70) | st.sampled_from([0, 1, Y, ATTEMPT, ROUND, 2**63, 10**400, -1])
floats = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, 5e-324, 1.7e308])
metrics = integers | floats | st.lists(integers, max_size=3) | st.lists(floats, max_size=3)
words = st.text(max_size=300) | st.sampled_from(["", "\x1b[2J", "../../etc/passwd", "a\nb", "\ud800", "w" * 10_000])
scalars = st.booleans() | integers | floats | words | st.binary(max_size=20)
configs = scalars | st.lists(integers, max_size=4) | st.lists(words, max_size=4) | st.lists(floats, max_size=4)
dtypes = (
    st.sampled_from(["float32", "float64", "float16", "int8", "bool", "complex64", "object", "<U9", "V8", ""]) | words
)
shapes = st.lists(st.integers(-1, 2**40), max_size=4).map(tuple)


CONTENTS = ["whole", "flipped", "cut", "longer", "bytes", "values", "shape", "dtype", "header", "pickle", "zip"]


@st.composite
def contents(draw, fitting, kind):
    """The bytes of an array: those of `fitting`, or spoilt in the way `kind` says."""
    data = bytearray(saved(fitting))
    match kind:
        case "flipped":
            for place in draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=8)):
                data[place] ^= draw(st.integers(1, 255))
            return data
        case "cut":
            return data[: draw(st.integers(0, len(data)))]
        case "longer":
            return data + draw(st.binary(min_size=1, max_size=64))
        case "whole":
            return data
    made = {
        "bytes": lambda: draw(st.binary(max_size=200)),
        "values": lambda: saved(np.full_like(fitting, draw(st.floats(width=32)))),
        "shape": lambda: saved(fitting[..., None]),
        "dtype": lambda: saved(fitting.astype(draw(st.sampled_from(["f8", "i4", ">f4", "c8", "?", "S3"])))),
        "header": lambda: announcing(draw(shapes)) + bytes(draw(st.integers(0, 64))),
        "pickle": lambda: saved(np.array([{}, []], dtype=object), allow_pickle=True),
        "zip": lambda: zipped(10_000),
    }
    return made[kind]()


@st.composite
def arrays(draw):
    """An array as a client may describe it, with content that keeps or breaks what is described."""
    fitting = BANK.like[draw(st.sampled_from(NAMES))].numpy()
    data = draw(contents(fitting, draw(st.sampled_from(CONTENTS))))
    described = draw(st.sampled_from(["fitting", "mad"]))
    if described == "fitting":
        return Array(str(fitting.dtype), fitting.shape, "numpy.ndarray", bytes(data))
    return Array(
        draw(dtypes), draw(shapes), draw(st.sampled_from(["numpy.ndarray", "torch.save"]) | words), bytes(data)
    )


@st.composite
def networks(draw):
    """A network's record: the fitting one, with arrays changed, missing and extra."""
    record = {name: Array(tensor.numpy()) for name, tensor in BANK.like.items()}
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=3)):
        record[name] = draw(arrays())
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=1)):
        record.pop(name)
    for name in draw(st.lists(words, max_size=1)):
        record[name] = draw(arrays())
    return ArrayRecord(record)


@st.composite
def replies(draw):
    """A reply of which anything may be wrong, and nothing must be."""
    content = answer(BANK)
    if draw(st.booleans()):
        content["network"] = draw(networks())
    stated = dict(content["numbers"])
    stated |= draw(st.dictionaries(st.sampled_from([*NUMBERS, *OPTIONAL_NUMBERS]), metrics, max_size=2))
    stated |= draw(st.dictionaries(words, metrics, max_size=1) if draw(st.booleans()) else st.just({}))
    for name in draw(st.lists(st.sampled_from(NUMBERS), max_size=1)):
        stated.pop(name)
    content["numbers"] = MetricRecord(stated)
    extra = st.just(ArrayRecord()) | networks() | st.just(MetricRecord()) | st.builds(ConfigRecord, st.just({}))
    for name in draw(st.lists(st.sampled_from(["network", "numbers", "again"]) | words, max_size=1)):
        content[name] = draw(extra)
    for name in draw(st.lists(st.sampled_from(["network", "numbers"]), max_size=1)):
        content.pop(name, None)
    return content


def taken(function, *arguments):
    """What the function returns, or None if it refuses, which it does in one clear line and in no other way."""
    try:
        return function(*arguments)
    except Rejected as rejected:
        text = str(rejected)
    assert text.isprintable()
    assert 0 < len(text) <= REASON
    return None


def described(network):
    return {name: (tensor.shape, tensor.dtype) for name, tensor in network.items()}


@settings(deadline=None)
@given(content=replies())
def test_a_reply_is_exactly_valid_or_refused_and_then_changes_nothing(content):
    before = {y: (entry, {n: t.clone() for n, t in entry.network.items()}) for y, entry in BANK.entries.items()}
    numbers = taken(BANK.accept, Y, ATTEMPT, ROUND, content)
    if numbers is None:
        assert BANK.entries.keys() == before.keys()
        for y, (entry, tensors) in before.items():
            assert BANK.entries[y] is entry
            torch.testing.assert_close(entry.network, tensors, rtol=0, atol=0)
        return
    network, BANK.entries[Y] = BANK.entries[Y].network, before[Y][0]
    assert described(network) == described(BANK.like)
    assert all(t.isfinite().all() for t in network.values())
    assert norm(network) <= CONFIG.federation.norm_bound * max(1.0, norm(BANK.like))
    assert (numbers["class"], numbers["attempt"], numbers["round"]) == (Y, ATTEMPT, ROUND)
    assert all(0 <= value < math.inf for value in numbers.values())
    assert set(NUMBERS) <= set(numbers) <= {*NUMBERS, *OPTIONAL_NUMBERS}
    json.dumps(numbers, allow_nan=False)
    rows = [{"status": "ok", "round": 1, "class": Y, "round_seconds": 9.0, **numbers}]
    assert "\n" not in round_in_words(rows, CONFIG)


def test_what_a_peer_is_sent_is_what_was_checked_and_not_a_clients_bytes():
    """A header may be written in many ways, and say more than a shape."""
    content = answer(BANK)
    array = content["network"]["outer.bias"]
    name, shape = b"'descr': '<f4'", b"'shape': (64,)"
    assert name in array.data and shape in array.data  # noqa: PT018
    wordy = array.data.replace(b"'fortran_order': False,", b"'fortran_order':False, ").replace(b"64,), }", b"64 ,),}")
    content["network"]["outer.bias"] = Array(array.dtype, array.shape, array.stype, wordy)
    fresh = bank()
    fresh.accept(Y, ATTEMPT, ROUND, content)
    assert fresh.entries[Y].record["outer.bias"].data == array.data


BOMBS = {
    "a header of 10 GB": lambda: Array("float32", (64,), "numpy.ndarray", announcing((50_000, 50_000))),
    "a description of 10 GB": lambda: Array("float32", (50_000, 50_000), "numpy.ndarray", b""),
    "a zip of 10 MB that holds 10 GB": lambda: Array("float32", (64,), "numpy.ndarray", ZIP),
    "a header of a million dimensions": lambda: Array("float32", (64,), "numpy.ndarray", announcing((1,) * 15_000)),
    "a header of nested brackets": lambda: Array("float32", (64,), "numpy.ndarray", brackets()),
}
ZIP = zipped(100_000_000)


def brackets():
    header = b"{'descr': " + b"[" * 9000 + b"}\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize("kind", BOMBS)
def test_what_is_announced_costs_nothing_until_it_is_there(kind):
    content = answer(BANK)
    content["network"]["outer.bias"] = BOMBS[kind]()
    tracemalloc.start()
    try:
        with pytest.raises(Rejected, match=r"outer\.bias"):
            BANK.accept(Y, ATTEMPT, ROUND, content)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


# The objects that a message is made of

LIMIT = sum(tensor.nbytes for tensor in BANK.like.values()) + ROOM


ANY_RUN = "0" * 16
NEXT = {"attempt": ATTEMPT + 1, "checkpointed": 0}
"""An order by which a store would go back to its beginning."""


def order(**changes):
    """An order as our own server makes it, for class 3, with two peers."""
    stated = {"run": ANY_RUN, "attempt": ATTEMPT, "round": ROUND, "checkpointed": ROUND - 1, "reported": 0}
    stated |= {"settings": json.dumps(CONFIG.settings()), "peers": ["peer-0", "peer-1"], "weights": [0.5, 0.5]}
    peers = {f"peer-{y}": BANK.initial(y).record for y in (0, 1)}
    message = Message(RecordDict({"order": pack_order(**{**stated, **changes}), **peers}), 7, MessageType.TRAIN)
    message.metadata.__dict__["_message_id"] = "0" * 64
    return message


NETWORK = {name: tensor.numpy() for name, tensor in BANK.like.items()}
MESSAGE = Message(answer(BANK), reply_to=order())
ROOT = Part.of(MESSAGE)


def test_the_parts_of_a_reply_build_it_again():
    assert parts_of(MESSAGE) == ROOT.contents()
    assert build(ROOT.id, ROOT.contents(), LIMIT).content == MESSAGE.content


@settings(deadline=None)
@given(data=st.data())
def test_objects_build_a_message_or_are_refused(data):
    """Bytes of any object flipped, cut or replaced; what still builds goes the way of every reply."""
    contents = ROOT.contents()
    for part in data.draw(st.lists(st.sampled_from(sorted(contents)), min_size=1, max_size=3, unique=True)):
        content = bytearray(contents[part])
        how = data.draw(st.sampled_from(["flip", "cut", "swap", "gone", "bytes"]))
        if how == "flip":
            for place in data.draw(st.lists(st.integers(0, min(len(content), 400) - 1), min_size=1, max_size=6)):
                content[place] = data.draw(st.integers(0, 255))
        elif how == "cut":
            content = content[: data.draw(st.integers(0, len(content)))]
        elif how == "swap":
            content = contents[data.draw(st.sampled_from(sorted(contents)))]
        elif how == "bytes":
            content = data.draw(st.binary(max_size=300))
        contents[part] = bytes(content)
        if how == "gone" and part != ROOT.id:
            del contents[part]
            break
    message = taken(build, ROOT.id, contents, LIMIT)
    if message and message.has_error():
        assert one_line(reason_of(message)) == reason_of(message)
    elif message:
        assert taken(BANK.accept, Y, ATTEMPT, ROUND - 1, message.content) is None  # it has replied for that round


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("an error in many lines", "another's name")])
def test_every_kind_that_nodes_try_is_refused_in_this_process_too(kind):
    make, says = KINDS[kind]
    made = make(order(), NETWORK)
    part = made if isinstance(made, Part) else Part.of(made)
    contents = part.contents()
    tracemalloc.start()
    try:
        with pytest.raises(Rejected, match=re.escape(says)):
            BANK.accept(0, ATTEMPT, ROUND, build(part.id, contents, LIMIT).content)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_a_piece_may_be_named_twice_where_the_whole_fits():
    """Flower sends equal pieces once: an array of zeros is honest."""
    content = answer(BANK)
    part = Part.of(Message(content, reply_to=order()))
    assert build(part.id, part.contents(), LIMIT).content == content
    repeated = bomb(order(), NETWORK)
    with pytest.raises(Rejected, match="takes more than the 100 MB of max-reply-mb"):
        build(repeated.id, repeated.contents(), 100_000_000)


# Orders, at the client

CHANGES = st.dictionaries(
    st.sampled_from(["settings", "run", "attempt", "round", "checkpointed", "reported", "peers", "weights"]),
    configs,
    min_size=1,
    max_size=2,
)


@settings(deadline=None)
@given(changes=CHANGES, gone=st.lists(st.sampled_from(["round", "peers", "order", "peer-0"]), max_size=1))
def test_an_order_is_one_of_ours_or_refused(changes, gone):
    content = order(**changes).content
    for name in gone:
        (content if name in content else content["order"]).pop(name)
    stated = taken(unpack_order, content)
    if stated is None:
        return
    assert isinstance(stated["settings"], dict)
    assert stated["attempt"] >= 1 <= stated["round"]
    assert stated["checkpointed"] >= 0 and stated["reported"] >= 0  # noqa: PT018
    assert sorted(stated["peers"]) == sorted(content.array_records)
    assert len(stated["weights"]) == len(stated["peers"])
    assert sum(stated["weights"]) == pytest.approx(1 if stated["peers"] else 0)
    assert all(w >= 0 for w in stated["weights"])
    assert len(Path(stated["run"]).parts) == 1


BAD_ORDERS = {
    "settings that are no JSON": ({"settings": "{"}, "not JSON"),
    "settings that are a list": ({"settings": "[]"}, "not names with values"),
    "settings in too many brackets": ({"settings": "[" * 100_000}, "not JSON"),
    "an unknown setting": ({"settings": '{"evil": 1}'}, "unknown setting 'evil'"),
    "a setting of a wrong type": ({"settings": '{"rounds": "many"}'}, "setting rounds = 'many'"),
    "a setting that is not finite": ({"settings": '{"beta": NaN}'}, "setting beta = nan"),
    "a run outside of the store": ({"run": "../../../tmp/evil"}, "not the identity of a run"),
    "a negative round": ({"round": -1}, "round = -1 is not a whole number from 1"),
    "half a round": ({"round": 1.5}, "round = 1.5 is not a whole number"),
    "an attempt of 0": ({"attempt": 0}, "attempt = 0"),
    "an unknown peer": ({"peers": ["peer-0", "peer-9"]}, "missing ['peer-9']"),
    "a peer too many": ({"peers": ["peer-0"], "weights": [1.0]}, "unexpected ['peer-1']"),
    "a peer named twice": ({"peers": ["peer-0", "peer-1", "peer-1"], "weights": [0.5, 0.25, 0.25]}, "each once"),
    "peers that are a word": ({"peers": "peer-0"}, "not a list of names"),
    "weights that are not finite": ({"weights": [math.nan, 1.0]}, "weights are not a list"),
    "a negative weight": ({"weights": [-0.5, 1.5]}, "weights are not a list"),
    "weights of another sum": ({"weights": [0.5, 0.6]}, "2 weights of sum 1.1"),
    "too few weights": ({"weights": [1.0]}, "1 weights of sum 1 for 2 peers"),
    "more peers than were agreed": (
        {"settings": json.dumps({**CONFIG.settings(), "peers-per-round": 1})},
        "holds 2 peers, and peers-per-round = 1",
    ),
}


def bad_peer(array):
    made = order(**NEXT)
    made.content["peer-1"]["outer.bias"] = array
    return made


BAD_PEERS = {
    "not a number": (Array(np.full(64, np.nan, np.float32)), "not finite"),
    "a huge norm": (Array(np.full(64, 1e30, np.float32)), "norm-bound"),
    "another shape": (Array(np.zeros(63, np.float32)), "is float32[63]"),
    "another dtype": (Array(np.zeros(64)), "is float64"),
    "a pickle": (Array("float32", (64,), "numpy.ndarray", b"\x80\x04N."), "does not decode"),
    "10 GB announced": (Array("float32", (64,), "numpy.ndarray", announcing((50_000, 50_000))), "announces"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A client that has trained a round: its context, the run, its store."""
    root = tmp_path_factory.mktemp("trained")
    grid = LocalGrid([])
    node = grid.join(Y, store=str(root / "store"))
    federate(CONFIG.but(out=str(root / "run"), rounds=1, min_clients=1), grid)
    return grid.contexts[node], grid.orders[-1].content["order"]["run"], root / "store"


def files(store):
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def refused(trained, message):
    """What the real client says to an order of a new attempt, which it would carry out; its store stays as it is."""
    context, run, store = trained
    if message.content["order"]["run"] == ANY_RUN:
        message.content["order"]["run"] = run
    before = files(store)
    assert before
    with pytest.raises((Rejected, UserError)) as caught:
        train(message, context)
    assert files(store) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_order_that_the_next_tests_spoil_is_carried_out(trained):
    context, run, _ = trained
    reply = train(order(run=run, checkpointed=0), context)
    assert reply.content["numbers"]["round"] == ROUND


@pytest.mark.parametrize("case", BAD_ORDERS)
def test_a_client_refuses_a_bad_order_and_its_store_stays(trained, case):
    changes, says = BAD_ORDERS[case]
    assert says in refused(trained, order(**{**NEXT, **changes}))


@pytest.mark.parametrize("case", BAD_PEERS)
def test_a_client_refuses_a_bad_peer_and_its_store_stays(trained, case):
    array, says = BAD_PEERS[case]
    assert says in refused(trained, bad_peer(array))


# Greetings, and words


@settings(deadline=None)
@given(hello=st.dictionaries(st.sampled_from(["class", "partitions"]) | words, metrics, max_size=3))
def test_a_greeting_names_a_class_or_is_left_out(hello):
    roster = Roster(10)
    asked = Message(RecordDict(), 7, MessageType.QUERY)
    roster.asked[7] = 1
    roster._introduce(Message(RecordDict({"hello": MetricRecord(hello)}), reply_to=asked), set())
    assert set(roster.held.values()) <= set(range(10))
    assert roster.held or roster.refusal
    assert all(size >= 1 for size in roster.wrong_sizes.values())
    assert one_line(roster.refusal) == roster.refusal


@given(text=st.text(max_size=2000))
def test_others_words_become_one_short_line(text):
    line = one_line(text)
    assert len(line) <= REASON
    assert not line or line.isprintable()


def test_a_limit_below_a_network_is_refused_before_anything_starts(small):
    with pytest.raises(UserError, match=r"max-reply-mb = 0\.001 and a network takes"):
        prepare(small(max_reply_mb=0.001))
    prepare(small(max_reply_mb=1.0))
