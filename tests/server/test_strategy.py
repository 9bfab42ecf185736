"""Rounds over the real client code, with everything that can go wrong in between."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Error, Message, MessageType, RecordDict

import client.app
import server.resending
from fedmutual.checkpoint import Unwritable
from fedmutual.errors import UserError
from fedmutual.learning.peers import draw_peers
from fedmutual.run_folder import read_history
from fedmutual.saved_networks import checkpoint_path
from fedmutual.seeds import generator
from server.app import prepare, serve
from server.flower import CLIENT_DIED, SIMULATED_CLIENT_DIED
from server.roster import RunFailed
from simulations.runs.networks import read_networks
from tests.support.federation import LocalGrid, assert_same, federate, networks


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Orders are sent anew at once: no process has to be started first."""
    monkeypatch.setattr(server.resending, "PAUSE", 0.0)


def is_order(message, round_):
    return message.metadata.message_type == MessageType.TRAIN and message.content["order"]["round"] == round_


def at(round_, y, answer):
    """A fault that strikes class y in one round."""

    def fault(order, reply):
        if not is_order(order, round_):
            return reply
        hit = reply.has_content() and reply.content["numbers"]["class"] == y
        return answer(order, reply) if hit else reply

    return fault


def line_of(config, round_, y):
    return next(row for row in read_history(Path(config.federation.out)) if (row["round"], row["class"]) == (round_, y))


def poisoned(value):
    def answer(order, reply):
        record = reply.content.array_records["network"]
        name = next(iter(record))
        array = record[name].numpy().copy()
        array[0] = value
        arrays = {**record, name: Array(array)}
        content = RecordDict({"network": ArrayRecord(arrays), "numbers": reply.content["numbers"]})
        return Message(content, reply_to=order)

    return answer


def changed(**numbers):
    def answer(order, reply):
        for name, value in numbers.items():
            reply.content["numbers"][name] = value
        return reply

    return answer


FAULTS = {
    "no reply": (lambda order, reply: None, "missing", "no reply in time"),
    "an error": (lambda order, reply: Message(Error(2, "<class 'X'>:<'broken'>"), reply_to=order), "error", "broken"),
    "no reason": (lambda order, reply: Message(Error(8), reply_to=order), "error", "error code 8"),
    "not a number": (poisoned(np.nan), "rejected", "not finite"),
    "an exploding norm": (poisoned(1e9), "rejected", "norm-bound"),
    "another class": (changed(**{"class": 4}), "rejected", "class is 4, and the order was for 3"),
    "an older round": (changed(round=1), "rejected", "round is 1"),
    "an older attempt": (changed(attempt=0), "rejected", "attempt is 0"),
    "no network": (
        lambda order, reply: Message(RecordDict({"numbers": reply.content["numbers"]}), reply_to=order),
        "rejected",
        "not one network",
    ),
    "nothing at all": (lambda order, reply: Message(RecordDict(), reply_to=order), "rejected", "no numbers"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_bad_reply_is_told_and_the_last_good_network_stays(small, case):
    answer, status, reason = FAULTS[case]
    config = small(rounds=3)
    grid = LocalGrid(range(10), at(2, 3, answer))
    bank = federate(config, grid)
    line = line_of(config, 2, 3)
    assert (line["status"], line_of(config, 1, 3)["status"], line_of(config, 3, 3)["status"]) == (status, "ok", "ok")
    assert reason in line["reason"]
    rounds_seen = {
        order.content["order"]["round"]: order.content.array_records["peer-3"]["outer.bias"].numpy()
        for order in grid.orders
        if "peer-3" in order.content.array_records
    }
    np.testing.assert_array_equal(rounds_seen[3], rounds_seen[2])  # what it made in round 1 is what peers still see
    assert {y: entry.round for y, entry in bank.entries.items()} == dict.fromkeys(range(10), 3)


def test_a_doubled_reply_counts_once(small):
    config = small(rounds=2)
    grid = LocalGrid(range(10), at(2, 3, lambda order, reply: [reply, reply]))
    federate(config, grid)
    assert line_of(config, 2, 3)["status"] == "ok"
    assert len([row for row in read_history(Path(config.federation.out)) if row["round"] == 2]) == 10


def test_a_class_that_never_reported_is_nobodys_peer(small):
    config = small(rounds=3)

    def silent(order, reply):
        train = order.metadata.message_type == MessageType.TRAIN
        return None if train and order.metadata.dst_node_id == 1003 else reply

    grid = LocalGrid(range(10), silent)
    bank = federate(config, grid)
    assert 3 not in bank.entries
    for order in grid.orders[20:]:
        assert "peer-3" not in order.content.array_records
    assert [line_of(config, r, 3)["status"] for r in (1, 2, 3)] == ["missing"] * 3


def test_a_late_joiner_is_greeted_and_becomes_a_peer(small):
    config = small(rounds=3, min_clients=9)
    joined = []

    def join(order, reply):
        if order.metadata.message_type == MessageType.TRAIN and not joined:
            joined.append(grid.join(9))
        return reply

    grid = LocalGrid(range(9), join)
    bank = federate(config, grid)
    assert [line_of(config, r, 9)["status"] for r in (1, 2, 3)] == ["idle", "ok", "ok"]
    assert line_of(config, 1, 9)["reason"] == "its client is not there"
    third = [order for order in grid.orders if order.content.config_records and order.content["order"]["round"] == 3]
    assert all("peer-9" in o.content.array_records for o in third if o.metadata.dst_node_id != joined[0])
    assert bank.entries[9].round == 3


def test_partial_participation_draws_other_clients_each_round_and_the_same_ones_again(small, tmp_path):
    config = small(rounds=6, participation=0.3)
    federate(config)
    taking_part = {
        r: tuple(
            row["class"]
            for row in read_history(Path(config.federation.out))
            if row["round"] == r and row["status"] == "ok"
        )
        for r in range(1, 7)
    }
    assert all(len(classes) == 3 for classes in taking_part.values())
    assert len(set(taking_part.values())) > 3
    again = small(rounds=6, participation=0.3, out=str(tmp_path / "b"), store=str(tmp_path / "c"))
    federate(again, LocalGrid(range(10), seed=9))
    assert_same(*(dict(sorted(read_networks(Path(c.federation.out))[1].items())) for c in (config, again)))


def test_two_nodes_that_claim_one_class_do_not_both_train(small):
    grid = LocalGrid([*range(10), 4])
    config = small()
    federate(config, grid)
    trained = [o.metadata.dst_node_id for o in grid.orders if o.metadata.message_type == MessageType.TRAIN]
    assert len(trained) == 20
    assert len({node for node in trained if grid.contexts[node].node_config["partition-id"] == 4}) == 1


@pytest.mark.parametrize("y", [10, -1])
def test_a_class_out_of_range_is_left_out(small, y):
    grid = LocalGrid([*range(9), y])
    federate(small(min_clients=9), grid)
    assert not any(o.metadata.dst_node_id == 1009 for o in grid.orders if o.metadata.message_type == MessageType.TRAIN)


def test_a_federation_of_the_wrong_size_is_refused_with_its_remedy(small):
    grid = LocalGrid([])
    for y in range(2):
        grid.join(y, **{"num-partitions": 2})
    with pytest.raises(UserError, match="num-supernodes=10"):
        federate(small(), grid)


def test_one_client_with_a_wrong_size_is_left_out_and_the_others_train(small):
    grid = LocalGrid([])
    grid.join(9, **{"num-partitions": 2})
    for y in range(9):
        grid.join(y)
    assert sorted(federate(small(min_clients=9), grid).entries) == list(range(9))


def test_a_client_without_a_class_is_left_out_and_told_how_to_get_one(small, caplog):
    grid = LocalGrid(range(9))
    grid.contexts[7] = Context(1, 7, {}, RecordDict(), {})
    federate(small(min_clients=9, rounds=4), grid)
    stated = [record.getMessage() for record in caplog.records if "node 7 is left out" in record.getMessage()]
    assert set(stated) == {"node 7 is left out: this client has no class: start it with --node-config 'partition-id=0'"}
    assert len(stated) == 3, "it is not asked for ever"


def test_a_node_that_answers_with_an_error_is_asked_again(small):
    failures = {1004: 2, 1007: 1}

    def stumble(order, reply):
        node = order.metadata.dst_node_id
        if order.metadata.message_type == MessageType.QUERY and failures.get(node, 0):
            failures[node] -= 1
            return Message(Error(2, "<class 'X'>:<'not yet'>"), reply_to=order)
        return reply

    assert set(federate(small(), LocalGrid(range(10), stumble)).entries) == set(range(10))


def test_clients_that_all_fail_to_introduce_themselves_end_the_run_with_their_reason(small):
    grid = LocalGrid(range(10))
    for context in grid.contexts.values():
        del context.node_config["partition-id"]
    with pytest.raises(RunFailed, match="0 of 10 clients joined: this client has no class"):
        federate(small(), grid)


def test_a_class_can_be_taken_over_when_its_node_has_left(small):
    config, left = small(rounds=4), []
    grid = LocalGrid([*range(10), 4])

    def leave(order, reply):
        train = order.metadata.message_type == MessageType.TRAIN
        if train and order.content["order"]["round"] == 2 and reply.content["numbers"]["class"] == 4 and not left:
            left.append(order.metadata.dst_node_id)
            del grid.contexts[order.metadata.dst_node_id]
        return reply

    grid.fault = leave
    federate(config, grid)
    heirs = {o.metadata.dst_node_id for o in grid.orders if o.metadata.message_type == MessageType.TRAIN}
    assert heirs == set(grid.contexts) | set(left)
    assert [line_of(config, r, 4)["status"] for r in (1, 2, 3, 4)] == ["ok"] * 4


def test_too_few_clients_end_the_run_when_time_is_up(small):
    with pytest.raises(RunFailed, match="3 of 10 clients joined"):
        federate(small(timeout=0.5), LocalGrid(range(3)))


def test_a_run_in_which_nobody_gets_through_stops_at_once_and_says_why(small):
    config = small(device="cuda") if not torch.cuda.is_available() else small(data_path="/nowhere", data="npz")
    with pytest.raises(RunFailed, match="no client got through: device = cuda"):
        federate(config)
    assert json.loads((Path(config.federation.out) / "run.json").read_text())["status"] == "stopped"


def test_a_run_outlasts_two_lost_rounds_and_not_three(small, tmp_path):
    def lose(rounds):
        def fault(order, reply):
            train = order.metadata.message_type == MessageType.TRAIN
            return None if train and order.content["order"]["round"] in rounds else reply

        return LocalGrid(range(10), fault)

    federate(small(rounds=5), lose({2, 3}))
    with pytest.raises(RunFailed, match="round 4: no client got through: no reply in time"):
        federate(small(rounds=6, out=str(tmp_path / "b"), store=str(tmp_path / "c")), lose({2, 3, 4}))


def test_a_round_tells_bytes_and_seconds_and_losses(small):
    config = small()
    federate(config)
    for row in read_history(Path(config.federation.out)):
        assert row["status"] == "ok"
        assert row["bytes_down"] == pytest.approx(9 * row["bytes_up"])
        assert 0 < row["seconds"] < row["round_seconds"]
        assert row["loss"] > 0 < row["grad_norm"]
        assert row["mutual"] >= 0 < row["held_out"]


def test_held_out_losses_come_when_asked(small):
    config = small(rounds=4, evaluate_every=2)
    federate(config)
    stated = {row["round"]: row["held_out"] is not None for row in read_history(Path(config.federation.out))}
    assert stated == {1: False, 2: True, 3: False, 4: True}


def test_a_taken_folder_is_refused_and_left_as_it_is(small):
    config = small()
    federate(config)
    before = (Path(config.federation.out) / "history.jsonl").read_bytes()
    with pytest.raises(UserError, match="already holds a run"):
        prepare(config)
    assert (Path(config.federation.out) / "history.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"beta": 0.5}, "beta would change"),
        ({"seed": 1, "width": 8}, "seed, width would change"),
        ({"rounds": 9}, "schedule = cosine"),
        ({"out": "elsewhere"}, "no run to resume"),
    ],
)
def test_a_run_is_resumed_only_as_what_it_was(small, tmp_path, change, says):
    federate(small())
    change = {**change, **({"out": str(tmp_path / "elsewhere")} if "out" in change else {})}
    with pytest.raises(UserError, match=says):
        prepare(small(resume=True, **change))


def resumed_without_the_fourth_checkpoint(config):
    """The bank of a run whose newest checkpoint, of round 4, was cut short before it was resumed."""
    newest = checkpoint_path(Path(config.federation.out), 4)
    newest.write_bytes(newest.read_bytes()[:-9])
    strategy = prepare(config.but(resume=True))
    assert strategy.journal.round == 3
    serve(LocalGrid(range(10)), strategy)
    return strategy.bank


def test_a_damaged_checkpoint_costs_one_round(small, tmp_path):
    config = small(rounds=4)
    expected = networks(federate(small(rounds=4, out=str(tmp_path / "b"), store=str(tmp_path / "c"))))
    federate(config)
    # The clients still held what round 3 left, because checkpoint 4 did not exist for them yet.
    assert_same(networks(resumed_without_the_fourth_checkpoint(config)), expected)


def test_a_full_disk_stops_the_run_in_one_line_and_costs_no_round(small, tmp_path):
    """The kernel's own word on a full disk: /dev/full stands where the history is."""
    config = small(rounds=4)
    expected = networks(federate(small(rounds=4, out=str(tmp_path / "b"), store=str(tmp_path / "c"))))
    history, aside = Path(config.federation.out) / "history.jsonl", tmp_path / "aside"

    def fill(order, reply):
        if is_order(order, 3) and not aside.exists():
            history.rename(aside)
            history.symlink_to("/dev/full")
        return reply

    with pytest.raises(Unwritable, match=r"history\.jsonl cannot be written: No space left on device"):
        federate(config, LocalGrid(range(10), fill))
    history.unlink()
    history.write_text(aside.read_text() + '{"round": 3, "cla')  # as much as there was room for
    assert_same(networks(federate(config.but(resume=True))), expected)
    lines = [(line["round"], line["class"]) for line in read_history(Path(config.federation.out))]
    assert lines == [(round_, y) for round_ in range(1, 5) for y in range(10)]


@pytest.mark.parametrize(
    ("code", "node_config"),
    [
        *((code, {}) for code in CLIENT_DIED),
        *((code, {"num-partitions": 10}) for code in SIMULATED_CLIENT_DIED),
    ],
)
def test_a_client_whose_process_dies_gets_its_order_again_and_the_round_counts_once(small, tmp_path, code, node_config):
    """It dies after it has saved: Flower replies for it, and it answers the new order from its store."""
    expected = networks(federate(small(rounds=3, out=str(tmp_path / "b"), store=str(tmp_path / "c"))))
    deaths = []

    def die(order, reply):
        if is_order(order, 2) and len(deaths) < 3:
            deaths.append(reply)
            return Message(Error(code, "in Flower's words"), reply_to=order)
        return reply

    config, grid = small(rounds=3), LocalGrid([], die)
    for y in range(10):
        grid.join(y, **node_config)
    assert_same(networks(federate(config, grid)), expected)
    assert {line["status"] for line in read_history(Path(config.federation.out))} == {"ok"}
    assert [line["step"] for line in read_history(Path(config.federation.out))] == [3] * 10 + [6] * 10 + [9] * 10


def test_checkpoints_are_kept_for_the_last_rounds_and_the_best_one(small):
    config = small(rounds=5, checkpoint_every=1)
    strategy = prepare(config)
    serve(LocalGrid(range(10)), strategy)
    kept = sorted(int(path.stem[-6:]) for path in (Path(config.federation.out) / "checkpoints").iterdir())
    worst = {r: max(line_of(config, r, y)["grad_norm"] for y in range(10)) for r in range(1, 6)}
    best = min(worst, key=worst.get)
    assert strategy.journal.best == (best, worst[best])
    assert kept == sorted({best, 4, 5})
    assert read_networks(Path(config.federation.out), "best")[0] == best
    with pytest.raises(UserError, match="no checkpoint of round 17"):
        read_networks(Path(config.federation.out), "17")


def test_a_damaged_checkpoint_that_clients_were_told_of_costs_one_round_too(small, tmp_path):
    """Checkpoint 4 is damaged while the clients, who were told of it, hold what rounds 4 and 5 left."""
    config = small(rounds=6)
    expected = networks(federate(small(rounds=6, out=str(tmp_path / "b"), store=str(tmp_path / "c"))))

    class Stop(BaseException):
        pass

    def stop(order, reply):
        if order.metadata.message_type == MessageType.TRAIN and order.content["order"]["round"] == 5:
            stopped.append(order)
            if len(stopped) == 10:
                raise Stop
        return reply

    stopped = []
    with pytest.raises(Stop):
        federate(config, LocalGrid(range(10), stop))
    assert_same(networks(resumed_without_the_fourth_checkpoint(config)), expected)


def test_a_client_whose_store_is_gone_does_not_start_over_its_class(small):
    config = small(schedule="constant")
    made = networks(federate(config))[4]
    shutil.rmtree(next(Path(config.federation.store).glob("*/class-004")))
    bank = federate(config.but(rounds=4, resume=True))
    assert {line_of(config, r, 4)["reason"] for r in (3, 4)} == {
        "this client's state of round 2 is gone: restore its store"
    }
    assert_same({4: bank.entries[4].network}, {4: made})
    assert line_of(config, 4, 5)["status"] == "ok"


def test_a_client_that_diverges_keeps_its_last_good_state(small, monkeypatch):
    """Its network leaves the norm bound in round 2 and is not saved, so that round 3 starts from round 1's."""
    config, steps = small(rounds=3), client.app.local_steps

    def explode(player, data, peers, config, process, y, round_, *secret):
        measured = steps(player, data, peers, config, process, y, round_, *secret)
        if (y, round_) == (3, 2):
            player.average[0].fill_(1e9)
        return measured

    monkeypatch.setattr(client.app, "local_steps", explode)
    federate(config)
    assert [line_of(config, r, 3)["status"] for r in (1, 2, 3)] == ["ok", "error", "ok"]
    assert "exceeds norm-bound" in line_of(config, 2, 3)["reason"]


def test_what_may_speak_of_samples_stays_in_the_clients_log(small, monkeypatch):
    def careless(*arguments):
        raise RuntimeError("shape [34, 64] of patient_smith.png")

    monkeypatch.setattr(client.app, "local_steps", careless)
    with pytest.raises(RunFailed, match="RuntimeError at this client: its own log says more") as caught:
        federate(small())
    assert "34" not in str(caught.value)


def test_partial_participation_draws_from_those_who_are_there(small):
    """Three of ten are there; a share of 0.3 must not miss them."""
    config = small(rounds=5, participation=0.3, min_clients=3)
    federate(config, LocalGrid([2, 5, 7]))
    rows = read_history(Path(config.federation.out))
    assert all(
        {row["class"] for row in rows if (row["round"], row["status"]) == (r, "ok")} == {2, 5, 7} for r in range(1, 6)
    )


def test_more_clients_than_classes_cannot_be_waited_for(small):
    config = small(min_clients=11)
    with pytest.raises(UserError, match="min-clients = 11"):
        prepare(config)
    assert not Path(config.federation.out).exists()


@pytest.mark.parametrize("damage", [b"", b"{", b"{}"])
def test_a_damaged_identity_of_a_run_is_one_line(small, damage):
    config = small()
    federate(config)
    (Path(config.federation.out) / "run.json").write_bytes(damage)
    with pytest.raises(UserError, match=r"run\.json is missing or damaged"):
        prepare(config.but(resume=True))


def test_without_a_round_of_all_classes_none_is_best(small):
    config = small(participation=0.5)
    federate(config)
    with pytest.raises(UserError, match="use --round last"):
        read_networks(Path(config.federation.out), "best")


def test_peers_are_drawn_by_their_weights_without_themselves():
    assert draw_peers("uniform", 1, [0, 1, 2, 3, 4], 0, 0, 1) == ([0, 2, 3, 4], [0.25] * 4)
    assert draw_peers("uniform", 1, [0, 1, 2, 3, 4], 9, 0, 1)[0] == [0, 2, 3, 4]
    assert draw_peers("uniform", 1, [1], 0, 0, 1) == ([], [])
    drawn = [draw_peers("uniform", 0, range(5), 2, 0, round_) for round_ in range(400)]
    assert all(len(set(peers)) == 2 and 0 not in peers and weights == [0.5, 0.5] for peers, weights in drawn)
    assert drawn[:20] == [draw_peers("uniform", 0, range(5), 2, 0, round_) for round_ in range(20)]
    counts = [sum(y in peers for peers, _ in drawn) for y in range(1, 5)]
    assert all(160 < count < 240 for count in counts)


@pytest.mark.parametrize("candidates", [range(50), [2, 3, 5, 7, 11, 13], range(10, 1000)])
def test_a_draw_is_that_from_a_list_of_all_candidates(candidates):
    """Runs of earlier versions, which made the list for every class, go on with the draws that they would have had."""
    for y in (0, 7, 49, 999):
        for round_ in range(1, 20):
            others = [candidate for candidate in candidates if candidate != y]
            rng = generator(3, y, round_, "peers")
            drawn = torch.multinomial(torch.tensor([1 / len(others)] * len(others)), 4, generator=rng).tolist()
            assert draw_peers("uniform", y, candidates, 4, 3, round_) == (sorted(others[i] for i in drawn), [0.25] * 4)
