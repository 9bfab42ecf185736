"""Federations under DP-SGD: what is sent, what is paid, and what a kill or a server that asks twice gets."""

import shutil
from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict

from client import app, noise
from fedmutual.privacy.ledger import Ledger
from fedmutual.records import PRIVATE_NUMBERS
from fedmutual.run_folder import read_facts, read_history
from server.roster import RunFailed
from tests.support.federation import LocalGrid, Stopped, assert_same, federate, networks, stopping_in


@pytest.fixture
def private(small):
    """Settings of a small federation of two under DP-SGD."""
    proved = {"publish": "dp-sgd", "evaluate_every": 0, "min_clients": 1, "noise_multiplicity": 2}
    return lambda **changes: small(**{**proved, **changes})


def two(seed=0, fault=lambda order, reply: reply):
    return LocalGrid(range(2), fault, seed)


def entries(config, y=0):
    return Ledger(Path(config.federation.store), y).entries()


def refused(config, **node):
    """The one reason for which the client of class 0, whose machine has node settings, does not take part."""
    grid = LocalGrid([])
    grid.contexts[1] = Context(1, 1, {"partition-id": 0, **node}, RecordDict(), {})
    with pytest.raises(RunFailed, match="no client got through"):
        federate(config, grid)
    (reason,) = {line.reason for line in read_history(Path(config.federation.out)) if line.status == "error"}
    assert "\n" not in reason
    return reason


def test_nothing_is_sent_but_the_network_and_numbers_that_no_sample_has_moved(private):
    config, grid = private(), two()
    federate(config, grid)
    replies = [reply.content for reply in grid.replies if "numbers" in reply.content]
    assert len(replies) == 4
    for content in replies:
        assert set(content) == {"network", "numbers"}
        assert set(content["numbers"]) == set(PRIVATE_NUMBERS)
    for line in read_history(Path(config.federation.out)):
        assert line.loss is line.mutual is line.grad_norm is line.held_out is line.count is None


def test_a_run_states_the_epsilon_of_each_class_and_the_largest(private):
    config = private(head_count=40)
    federate(config, two())
    last = {line.class_: line.epsilon for line in read_history(Path(config.federation.out)) if line.round == 2}
    for y in range(2):
        paid = entries(config, y)
        assert [entry.parameters["round"] for entry in paid] == [1, 2]
        assert last[y] == (paid[0].cost + paid[1].cost).epsilon(1e-5)
    facts = read_facts(Path(config.federation.out))
    assert (facts.epsilon, facts.delta) == (max(last[0], last[1]), 1e-5)
    assert last[0] < last[1]  # which has fewer samples


def test_a_run_that_was_stopped_and_resumed_ends_where_an_unbroken_one_does_and_pays_no_more(private, tmp_path):
    """Both go on from one round: two runs from the start have secrets of their own."""
    config = private(rounds=1, schedule="constant")
    federate(config, two())
    for place in ("run", "clients"):
        shutil.copytree(tmp_path / place, tmp_path / "other" / place)
    other = config.but(out=str(tmp_path / "other" / "run"), store=str(tmp_path / "other" / "clients"))
    through = federate(config.but(resume=True, rounds=3), two())
    with pytest.raises(Stopped):
        federate(other.but(resume=True, rounds=3), two(fault=stopping_in(3)))
    resumed = federate(other.but(resume=True, rounds=3), two(seed=1))
    assert_same(networks(through), networks(resumed))
    assert [len(entries(each, y)) for each in (config, other) for y in range(2)] == [3] * 4


@pytest.mark.parametrize(("place", "step"), [(noise, "pay"), (app, "local_steps"), (app, "check_values")])
def test_a_client_that_is_killed_does_the_round_again_bit_for_bit_and_pays_once(private, monkeypatch, step, place):
    config = private(rounds=1, min_clients=1)
    sent = []
    real = app.local_steps

    def seen(player, *args):
        steps = real(player, *args)
        sent.append([parameter.detach().clone() for parameter in player.network.parameters()])
        return steps

    def kill(*args, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "local_steps", seen)
    grid = LocalGrid([0])
    with monkeypatch.context() as patched:
        patched.setattr(place, step, kill)
        with pytest.raises(KeyboardInterrupt):
            federate(config, grid)
    federate(config.but(resume=True), grid)
    assert len(sent) == (2 if step == "check_values" else 1)
    assert all(torch.equal(a, b) for a, b in zip(sent[0], sent[-1], strict=True))
    assert len(entries(config)) == 1


def test_a_round_that_is_ordered_again_with_other_peers_has_other_noise_and_is_paid_again(private, monkeypatch):
    """The difference of two answers under the same noise would show what it hides."""
    config, streams = private(rounds=2), []
    real = app.paid_noise

    def seen(store, root, order, peers, *args):
        told = real(store, root, order, peers, *args)
        streams.append((order["round"], told.stream.key))
        return told

    monkeypatch.setattr(app, "paid_noise", seen)
    with pytest.raises(Stopped):
        federate(config, LocalGrid([0, 1], stopping_in(2)))
    monkeypatch.setattr("server.bank.pack_network", altered(monkeypatch))
    federate(config.but(resume=True), LocalGrid([0, 1]))
    second = [key for round_, key in streams if round_ == 2]
    assert len(second) == len(set(second)) == len(streams) - 2
    assert sum(len(entries(config, y)) for y in range(2)) == len(streams)


def altered(monkeypatch):
    """A server's packing of networks that changes one number of each."""
    from server import bank

    real = bank.pack_network

    def pack(network, rounded=()):
        name = next(iter(network))
        return real({**network, name: network[name] + 1e-3}, rounded)

    return pack


def test_a_budget_that_the_run_would_exceed_is_refused_before_any_step(private, monkeypatch):
    monkeypatch.setattr(app, "local_steps", None)
    config = private(rounds=4)
    reason = refused(config, epsilon=10.0)
    assert (
        "may spend epsilon = 10 at delta = 1e-05 and has spent 0: DP-SGD to the end of the run would make it" in reason
    )
    assert not entries(config)


def test_runs_on_one_store_add_up(private, tmp_path):
    config = private(epsilon=7.0, rounds=1)
    federate(config, LocalGrid([0]))
    (first,) = entries(config)
    reason = refused(config.but(out=str(tmp_path / "again")))
    assert f"has spent {first.cost.epsilon(1e-5):.3g}: DP-SGD would make it" in reason
    federate(config.but(out=str(tmp_path / "more"), epsilon=40.0), LocalGrid([0]))
    assert len(entries(config)) == 2


def test_a_secret_that_is_damaged_stops_the_client_and_one_that_is_lost_is_paid_anew(private):
    config = private(rounds=1, schedule="constant")
    federate(config, LocalGrid([0]))
    (path,) = Path(config.federation.store).glob(f"*/class-000/{noise.FILE}")
    secret = path.read_bytes()
    path.write_bytes(secret[:-1])
    assert "this client's secret is damaged: restore its store" in refused(config.but(resume=True, rounds=2))
    path.unlink()
    federate(config.but(resume=True, rounds=2), LocalGrid([0]))
    assert path.read_bytes() != secret
    assert len(entries(config)) == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"keep": "best"}, "set keep = last"),
        ({"evaluate_every": 1}, "set evaluate-every = 0"),
        ({"share_counts": True}, "set share-counts = false"),
        ({"draws": "fixed"}, "set draws = fresh"),
        ({"beta_rule": "auto"}, "set beta-rule = scarcity"),
        ({"clip": 0.0}, "set clip above 0"),
        ({"local_steps": 0}, "set local-steps above 0"),
    ],
)
def test_what_the_proof_does_not_cover_is_refused(private, changes, says):
    with pytest.raises(Exception, match=says):
        private(**changes)
