"""Peers that clients ask for: half of the places are theirs, the rest go by chance, and bad wishes are refused."""

from pathlib import Path

import pytest
from flwr.app import ArrayRecord, ConfigRecord, MessageType, MetricRecord, RecordDict

from fedmutual.config import RunConfig
from fedmutual.learning.peers import draw_peers
from fedmutual.records import ASKED, Rejected, pack_asked, unpack_asked
from fedmutual.run_folder import HistoryLine, read_history
from server.wishes import Wishes, asked_in
from tests.support.federation import LocalGrid, Stopped, assert_same, federate, networks, stopping_in

ASKING = {
    **{"beta_rule": "auto", "peers_per_round": 4, "ask_for_peers": True, "caution": 0.0, "batch": 64},
    **{"local_steps": 10, "rounds": 4, "schedule": "constant"},
}
"""Settings beside those of `small` under which peers are weighed in every second round."""


def config(**settings):
    of = {"beta-rule": "auto", "peers-per-round": 4, "ask-for-peers": True}
    return RunConfig.of(of, {key.replace("_", "-"): value for key, value in settings.items()})


def wishes(*asked):
    return Wishes(HistoryLine.of({"round": 1, "class": y, "asked": list(of)}) for y, of in asked)


def test_those_that_are_asked_for_are_sent_and_the_others_drawn_evenly():
    counts = dict.fromkeys(range(12), 0)
    for round_ in range(600):
        peers, weights = wishes((3, [7, 5])).peers(config(), 3, range(12), round_)
        assert weights == [0.25] * 4
        assert peers == sorted(set(peers))
        for z in peers:
            counts[z] += 1
    assert counts[7] == counts[5] == 600
    assert counts[3] == 0
    others = [counts[z] for z in range(12) if z not in (3, 5, 7)]
    assert all(90 < count < 180 for count in others), "1200 places for nine"


def test_who_asks_for_none_is_sent_what_is_drawn():
    for count in (0, 4, 9, 20):
        settings, candidates = config(peers_per_round=count), list(range(10))
        drawn = draw_peers("uniform", 3, candidates, count, settings.seed, 5)
        assert wishes((3, []), (4, [1])).peers(settings, 3, candidates, 5) == drawn
        if count >= 9:
            assert wishes((3, [1, 2])).peers(settings, 3, candidates, 5) == drawn, "all are sent as it is"


def test_one_that_is_not_there_leaves_its_place_to_chance():
    peers, _ = wishes((3, [7, 5])).peers(config(), 3, [0, 1, 2, 3, 5, 8], 1)
    assert len(peers) == 4
    assert 5 in peers
    assert 7 not in peers


def test_the_last_reply_that_was_taken_counts():
    lines = [
        {"round": 1, "class": 0, "asked": [1, 2]},
        {"round": 2, "class": 0, "status": "missing"},
        {"round": 1, "class": 1, "asked": [3]},
        {"round": 2, "class": 1},
    ]
    assert Wishes(map(HistoryLine.of, lines)).asked == {0: [1, 2], 1: []}
    with pytest.raises(TypeError):
        HistoryLine.of({"round": 1, "class": 0, "asked": ["x"]})


def test_wishes_survive_the_wire():
    assert pack_asked([]) == {}
    assert unpack_asked(RecordDict()) == []
    assert unpack_asked(RecordDict(pack_asked([4, 2]))) == [4, 2]
    assert asked_in(RecordDict(pack_asked([4, 2])), config(), 3, 10) == [4, 2]


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (MetricRecord({"classes": [1, 1]}), "list of different"),
        (MetricRecord({"classes": 1}), "list of different"),
        (MetricRecord({"classes": [1.0]}), "not a whole number"),
        (MetricRecord({"classes": [-1]}), "not a whole number"),
        (MetricRecord({"classes": [1], "more": 2}), "unexpected"),
        (MetricRecord({}), "missing"),
        (MetricRecord({"classes": [1, 2, 4]}), "asks for 3 peers, and may ask for 2"),
        (MetricRecord({"classes": [3]}), "the others are the classes"),
        (MetricRecord({"classes": [10]}), "the others are the classes"),
        (ConfigRecord({"classes": [1]}), "no record of numbers"),
        (ArrayRecord(), "no record of numbers"),
    ],
)
def test_bad_wishes_are_refused(record, says):
    with pytest.raises(Rejected, match=says):
        asked_in(RecordDict({"asked": record}), config(), 3, 10)


def test_who_may_not_ask_is_refused():
    with pytest.raises(Rejected, match="may ask for 0"):
        asked_in(RecordDict(pack_asked([1])), config(ask_for_peers=False), 3, 10)


def sent(grid, y, round_):
    """The peers of class y's order of a round, by number."""
    orders = [order for order in grid.orders if order.metadata.message_type == MessageType.TRAIN]
    (own,) = (
        order.content
        for order in orders
        if order.content["order"]["round"] == round_
        and grid.contexts[order.metadata.dst_node_id].node_config["partition-id"] == y
    )
    return {int(name.removeprefix("peer-")) for name in own.array_records}


def test_clients_ask_for_those_that_helped_and_a_resumed_run_remembers(small, tmp_path):
    """Nothing crosses but the listed record, each wish is granted in the next round, and a stop changes nothing."""
    through = small(**ASKING, out=str(tmp_path / "b"), store=str(tmp_path / "c"))
    grid = LocalGrid(range(10))
    expected = networks(federate(through, grid))
    wished = 0
    for reply in (reply for reply in grid.replies if reply.metadata.message_type == MessageType.TRAIN):
        numbers = reply.content["numbers"]
        assert set(reply.content) - {"asked"} == {"network", "numbers"}
        if "asked" in reply.content and numbers["round"] < 4:
            assert set(reply.content["asked"]) == set(ASKED)
            asked = set(reply.content["asked"]["classes"])
            assert len(asked) <= 2
            assert asked <= sent(grid, numbers["class"], numbers["round"] + 1)
            wished += 1
    assert wished >= 10
    config = small(**ASKING)
    with pytest.raises(Stopped):
        federate(config, LocalGrid(range(10), stopping_in(3)))
    assert_same(networks(federate(config.but(resume=True), LocalGrid(range(10), seed=1))), expected)
    told, again = (
        [(line.round, line.class_, line.asked) for line in read_history(Path(of.federation.out))]
        for of in (through, config)
    )
    assert told == again
