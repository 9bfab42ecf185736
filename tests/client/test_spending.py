"""Federations whose classes send what an epsilon bounds: what it depends on, what a kill costs, and what is refused."""

import shutil
from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict

from client import app, spending
from fedmutual.data import ClassData
from fedmutual.networks.owned import class_folder
from fedmutual.privacy.ledger import RECEIPT, Ledger
from fedmutual.privacy.versions import Versions, draw_versions, sent_epsilon
from fedmutual.run_folder import read_audit, read_facts, read_history
from server.roster import RunFailed
from tests.support.federation import LocalGrid, Stopped, assert_same, networks, stopping_in
from tests.support.federation import federate as federate_over

EPSILON = 20.06
"""Of one version at the last time before .5 of 25, for digits, at delta = 1e-5."""


@pytest.fixture
def budget(small):
    """Settings of a small federation of two that sends networks of noised versions alone."""
    proved = {"publish": "noise-budget", "published_width": 8, "evaluate_every": 0, "keep": "best", "min_clients": 1}
    return lambda **changes: small(**{**proved, **changes})


def federate(config, grid=None):
    return federate_over(config, grid or LocalGrid(range(2)))


def store_of(config):
    return Path(config.federation.store)


def run_of(config):
    return read_facts(Path(config.federation.out)).run


def one_client(**node):
    """A grid with the client of class 0 alone, whose machine has node settings."""
    grid = LocalGrid([])
    grid.contexts[1] = Context(1, 1, {"partition-id": 0, **node}, RecordDict(), {})
    return grid


def refused(config, grid=None):
    """The one reason for which no client takes part."""
    with pytest.raises(RunFailed, match="no client got through"):
        federate(config, grid)
    (reason,) = {line.reason for line in read_history(Path(config.federation.out)) if line.status == "error"}
    assert "\n" not in reason
    return reason


def replies_of(config, monkeypatch, place, change):
    """All that clients send in a run whose noised versions are given, whatever the samples are that `change` makes."""
    real = app.own_data

    def given(config, data):
        rng = torch.Generator().manual_seed(len(data))
        return Versions(torch.randn(1, *data.shape, generator=rng), draw_versions(config, data).level)

    def changed(*asked):
        data = real(*asked)
        return ClassData(change(data.train), change(data.held_out))

    grid = LocalGrid(range(2))
    with monkeypatch.context() as patched:
        patched.setattr(spending, "draw_versions", given)
        patched.setattr(app, "own_data", changed)
        app.own_fingerprint.cache_clear()
        federate(config.but(out=str(place / "run"), store=str(place / "store")), grid)
    app.own_fingerprint.cache_clear()
    return {reply.content["numbers"]["class"]: reply.content for reply in grid.replies if "numbers" in reply.content}


@pytest.mark.parametrize("change", [lambda x: -x.flip(0), lambda x: x * torch.inf], ids=["other", "infinite"])
def test_all_that_is_sent_is_a_function_of_the_noised_versions(budget, monkeypatch, tmp_path, change):
    """Every array and number of every reply of the last round, bit for bit; only the seconds may tell otherwise."""
    config = budget()
    one = replies_of(config, monkeypatch, tmp_path / "one", lambda x: x)
    other = replies_of(config, monkeypatch, tmp_path / "other", change)
    assert len(one) == len(other) == 2
    for y in one:
        assert set(one[y]) == {"network", "numbers"}
        assert all(one[y]["network"][name].data == array.data for name, array in other[y]["network"].items())
        told, same = ({**content["numbers"], "seconds": 0} for content in (one[y], other[y]))
        assert told == same
        assert set(told) == {"class", "attempt", "round", "step", "loss", "mutual", "gradient-norm", "seconds"}


def test_a_run_says_its_epsilon_and_pays_once_for_each_class(budget):
    config = budget()
    federate(config)
    epsilon = sent_epsilon(config, (1, 8, 8))
    assert epsilon == pytest.approx(EPSILON, abs=0.01)
    facts = read_facts(Path(config.federation.out))
    assert (facts.epsilon, facts.delta) == (epsilon, 1e-5)
    told = {(line.status, line.epsilon) for line in read_history(Path(config.federation.out))}
    assert told == {("ok", epsilon), ("idle", None)}
    for y in range(2):
        (entry,) = Ledger(store_of(config), y).entries()
        assert entry.cost.epsilon(1e-5) == epsilon
        assert (entry.run, entry.mechanism, entry.relation) == (facts.run, "noised versions", "replace-one")
        assert entry.parameters["norm"] == 8.0
        assert entry.data == app.own_fingerprint(config, y, torch.device("cpu"))


def test_a_run_that_was_stopped_and_resumed_ends_where_an_unbroken_one_does(budget, tmp_path):
    """Both go on from one round: two runs from the start have noise of their own."""
    config = budget(rounds=1, schedule="constant")
    federate(config)
    for place in ("run", "clients"):
        shutil.copytree(tmp_path / place, tmp_path / "other" / place)
    other = config.but(out=str(tmp_path / "other" / "run"), store=str(tmp_path / "other" / "clients"))
    through = federate(config.but(resume=True, rounds=4))
    with pytest.raises(Stopped):
        federate(other.but(resume=True, rounds=4), LocalGrid(range(2), stopping_in(3)))
    resumed = federate(other.but(resume=True, rounds=4), LocalGrid(range(2), seed=1))
    assert_same(networks(through), networks(resumed))
    assert [len(Ledger(store_of(each), 1).entries()) for each in (config, other)] == [1, 1]


def test_two_runs_have_noise_of_their_own(budget, tmp_path):
    config = budget(rounds=1)
    one = federate(config)
    other = federate(config.but(out=str(tmp_path / "second"), store=str(tmp_path / "others")))
    assert all(not torch.equal(one.entries[y].network[name], t) for y, name, t in weights(other))


def weights(bank):
    return [
        (y, name, t) for y, entry in bank.entries.items() for name, t in entry.network.items() if "outer.weight" in name
    ]


@pytest.mark.parametrize("step", ["save", "draw_versions", "pay", "local_steps"])
def test_a_kill_before_the_first_state_is_kept_costs_neither_budget_nor_noise(budget, monkeypatch, step):
    """Of a client that is killed before, at and after the payment; then the order comes again."""
    config, place = budget(epsilon=EPSILON + 0.01), app if step == "local_steps" else spending
    path = "*/class-000/versions.safetensors"

    def kill(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(place, step, kill)
        with pytest.raises(KeyboardInterrupt):
            federate(config, one_client())
    before = [file.read_bytes() for file in store_of(config).glob(path)]
    assert len(before) == (step in ("pay", "local_steps"))
    federate(config.but(resume=True), one_client())
    after = [file.read_bytes() for file in store_of(config).glob(path)]
    assert after == (before or after)
    assert len(Ledger(store_of(config), 0).entries()) == 1


def test_what_may_be_spent_binds_all_runs_on_a_store(budget, tmp_path):
    config = budget(epsilon=30.0, rounds=1)
    federate(config)
    again = config.but(out=str(tmp_path / "again"))
    reason = refused(again)
    assert "may spend epsilon = 30 at delta = 1e-05 and has spent 20.1: noised versions would make it 32.1" in reason
    assert len(Ledger(store_of(config), 0).entries()) == 1
    federate(config.but(out=str(tmp_path / "more"), epsilon=33.0))
    assert len(Ledger(store_of(config), 0).entries()) == 2
    assert "has spent 32.1" in refused(again.but(out=str(tmp_path / "last"), epsilon=33.0))


@pytest.mark.parametrize(
    ("asked", "own", "says"),
    [
        ({"epsilon": 100.0}, {"epsilon": 8.0}, "may spend epsilon = 8 at delta = 1e-05 and has spent 0"),
        ({"epsilon": 100.0, "delta": 0.9}, {"epsilon": 8}, "may spend epsilon = 8 at delta = 1e-05 and has spent 0"),
        ({}, {"epsilon": 8.0, "delta": 1e-3}, "may spend epsilon = 8 at delta = 0.001 and has spent 0"),
        ({"publish": "noise-split"}, {"epsilon": 8.0}, "may spend epsilon = 8.0, and publish = noise-split has no"),
    ],
)
def test_a_clients_own_limit_wins(budget, asked, own, says):
    reason = refused(budget(rounds=1, **asked), one_client(**own))
    assert says in reason
    assert not budget().federation.store or not list(store_of(budget()).glob("ledger-*.json"))


def harmed(config, harm):
    folder, store = class_folder(store_of(config), run_of(config), 0), store_of(config)
    if harm == "ledger lost":
        (store / "ledger-000.json").unlink()
    elif harm == "ledger cut":
        path = store / "ledger-000.json"
        path.write_bytes(path.read_bytes()[:-9])
    elif harm == "receipt lost":
        (folder / RECEIPT).unlink()
    elif harm == "versions lost":
        (folder / spending.FILE).unlink()
    elif harm == "versions cut":
        path = folder / spending.FILE
        path.write_bytes(path.read_bytes()[:-9])
    elif harm == "versions of another run":
        spending.save(folder / spending.FILE, {"samples": torch.zeros(1, 3, 1, 8, 8)}, {"level": 3})


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        ("ledger lost", "ledger-000.json is missing"),
        ("ledger cut", "ledger-000.json is damaged"),
        ("receipt lost", "spent.json is missing"),
        ("versions lost", "versions.safetensors is missing and has been paid for"),
        ("versions cut", "versions.safetensors is damaged"),
        ("versions of another run", "a run keeps its settings"),
    ],
)
def test_a_store_and_a_ledger_that_do_not_fit_stop_the_client(budget, harm, says, caplog):
    """The server reads that it cannot tell; what is wrong, with its paths, is in the client's own log."""
    config = budget(schedule="constant")
    federate(config, one_client())
    harmed(config, harm)
    with pytest.raises(RunFailed):
        federate(config.but(resume=True, rounds=3), one_client())
    last = read_history(Path(config.federation.out))[-10]
    assert "cannot tell what it has spent of its data: its own log says why" in last.reason
    assert "class-000" not in last.reason
    assert says in caplog.text


def test_a_server_gets_no_second_versions_by_other_settings(budget, caplog):
    """It could ask for less noise halfway; the run's own settings are those that were paid for."""
    config = budget(schedule="constant")
    federate(config, one_client())

    class Lying(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None):
            orders = list(messages)
            for order in orders:
                if "order" in order.content:
                    record = order.content["order"]
                    record["settings"] = str(record["settings"]).replace('"noised-versions": 1', '"noised-versions": 9')
            return super().send_and_receive(orders, timeout=timeout)

    grid = Lying([])
    grid.contexts = one_client().contexts
    with pytest.raises(RunFailed):
        federate(config.but(resume=True, rounds=3), grid)
    assert "a run keeps its settings" in caplog.text
    assert len(Ledger(store_of(config), 0).entries()) == 1


def test_an_audit_sets_a_lower_bound_against_the_claim(budget, command_line):
    """Networks after six steps tell nothing, and of some forty pairs little could be refuted."""
    config = budget(rounds=1)
    federate(config)
    run = Path(config.federation.out)
    code, out, _ = command_line("audit", run)
    (row,) = (row for row in read_audit(run, 10) if row.metric == "epsilon")
    assert code == 0
    assert (row.class_, row.part, row.t) == ("all", "published", 0.55)
    assert 0 <= row.value < 3
    assert row.members == sum(len(app.own_data(config, y, torch.device("cpu")).train) for y in range(2))
    assert f"of {row.members} pairs PIA told {row['right']} apart. The run claims 20.1." in " ".join(out.split())
    command_line("audit", run, "--whole")
    assert not [row for row in read_audit(run, 10) if row.metric == "epsilon"]
