"""Federations whose classes publish a part of their networks: what is sent, who can draw, and what a kill costs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from flwr.app import Context, Message, MessageType, RecordDict

from fedmutual.networks import build
from fedmutual.networks.owned import class_folder, read_owned
from fedmutual.networks.split import PRIVATE, sent
from fedmutual.records import pack_network
from fedmutual.run_folder import read_facts, read_history
from server.roster import RunFailed
from simulations.experiments.arm import _drop_states
from simulations.runs.membership import audit_run
from simulations.runs.networks import class_networks, read_networks
from simulations.runs.peer_gain import weigh_peers
from tests.support.federation import LocalGrid, Stopped, assert_same, federate, networks, stopping_in


@pytest.fixture
def split(small):
    """Settings of a small federation that publishes a narrow network of high noise."""
    return lambda **changes: small(**{"publish": "noise-split", "published_width": 8, **changes})


def owned(config, y, round_):
    store, out = Path(config.federation.store), Path(config.federation.out)
    return read_owned(class_folder(store, read_facts(out).run, y), round_)


def test_the_private_part_is_in_no_message(split):
    """Every array of every message, in both directions, by name, shape and content."""
    config, grid = split(), LocalGrid(range(10))
    federate(config, grid)
    parameters = {name: tuple(t.shape) for name, t in sent(build(config, (1, 8, 8), 0).state_dict()).items()}
    secrets = [t for y in range(10) for name, t in owned(config, y, 2).items() if name.startswith(PRIVATE + "outer")]
    assert len(secrets) == 20
    records = 0
    for message in grid.orders + grid.replies:
        for record in message.content.array_records.values():
            records += 1
            assert {name: tuple(array.shape) for name, array in record.items()} == parameters
            assert not any(t.numpy().tobytes() in array.data for array in record.values() for t in secrets)
    assert records == 2 * 10 * 9 + 2 * 10


def test_what_was_sent_is_the_published_part_of_what_the_owner_keeps(split):
    config = split()
    bank = federate(config)
    whole = {y: owned(config, y, 2) for y in range(10)}
    assert_same(networks(bank), {y: sent(network) for y, network in whole.items()})
    assert_same(networks(bank), dict(sorted(read_networks(Path(config.federation.out))[1].items())))
    round_, drawn_from = class_networks(Path(config.federation.out), "last", torch.device("cpu"))
    assert round_ == 2
    assert_same({y: network.state_dict() for y, network in drawn_from.items()}, whole)


def test_a_run_that_was_stopped_and_resumed_ends_where_an_unbroken_one_does(split, tmp_path):
    settings = {"rounds": 5, "schedule": "constant", "checkpoint_every": 2}
    through = split(**settings, out=str(tmp_path / "through"), store=str(tmp_path / "b"))
    federate(through)

    config = split(**settings)
    with pytest.raises(Stopped):
        federate(config, LocalGrid(range(10), stopping_in(4)))
    federate(config.but(resume=True), LocalGrid(range(10), seed=1))
    assert_same(*({y: owned(each, y, 5) for y in range(10)} for each in (config, through)))


def test_without_the_stores_nobody_draws_and_the_line_says_why_and_what_to_do(split, command_line, tmp_path):
    config = split(samples=4)
    federate(config)
    run, store = Path(config.federation.out), Path(config.federation.store)
    shutil.copytree(store, tmp_path / "owners")
    shutil.rmtree(store)
    for command in (["sample", run, "--out", tmp_path / "s"], ["evaluate", run], ["audit", run, "--whole"]):
        code, _, err = command_line(*command)
        assert code == 2
        assert len(err.strip().splitlines()) == 1, err
        assert "the part that it published, for t / T from 0.5 on, which draws no samples" in err
        assert "-s store=DIR" in err
    here = ["-s", f"store={tmp_path / 'owners'}"]
    assert command_line("sample", run, "--out", tmp_path / "s", "-n", 3, *here)[1].startswith(
        "3 samples of each of 10 "
    )
    folders = {y: class_folder(tmp_path / "owners", read_facts(run).run, y) for y in range(10)}
    for y in range(1, 10):
        shutil.rmtree(folders[y])
    assert command_line("sample", run, "--out", tmp_path / "s", *here)[1].startswith("64 samples of each of 1 classes")
    (folders[0] / "network-000002.safetensors").unlink()
    code, _, err = command_line("sample", run, "--out", tmp_path / "s", *here)
    assert (code, "holds no whole network of round 2: there are those of 1" in err) == (2, True)


def test_an_audit_attacks_what_is_sent_and_on_request_the_whole(split, command_line):
    config = split(samples=12)
    federate(config)
    run = Path(config.federation.out)
    code, out, _ = command_line("audit", run)
    rows = json.loads((run / "audit.json").read_text())["rows"]
    assert code == 0
    assert out.startswith(f"{run}, the part of each network that is sent:")
    assert {row["part"] for row in rows} == {"published"}
    assert {row["t"] for row in rows if row["t"]} == {0.51, 0.525, 0.55, 0.6, 0.7, 0.85, 0.95}
    code, out, _ = command_line("audit", run, "--whole")
    rows = json.loads((run / "audit.json").read_text())["rows"]
    assert out.startswith(f"{run}, whole networks, which are not sent:")
    assert {row["part"] for row in rows} == {"whole"}
    assert min(row["t"] for row in rows if row["t"]) == 0.02


def test_whole_networks_are_attacked_as_far_as_they_are_there(split, caplog):
    config = split(samples=0)
    federate(config)
    run = Path(config.federation.out)
    (class_folder(Path(config.federation.store), read_facts(run).run, 9) / "network-000002.safetensors").unlink()
    audited = {row.class_ for row in audit_run(run, whole=True)}
    assert audited == {*range(9), "worst", "mean"}
    assert "no whole network of round 2: there are those of 1: name one by --round; class 9 is left out" in caplog.text


def test_the_published_part_alone_needs_no_store_to_be_attacked(split):
    config = split(samples=12)
    federate(config)
    run = Path(config.federation.out)
    before = audit_run(run)
    shutil.rmtree(config.federation.store)
    assert audit_run(run) == before


def test_peers_are_weighed_where_they_know_something(split):
    """Below the split a peer was sent nothing, so that there is nothing to weigh."""
    config = split(held_out=5)
    federate(config)
    rows = weigh_peers(Path(config.federation.out))
    assert {row["t"] for row in rows} == {0.7, 0.9}
    assert [row["class"] for row in rows] == [y for y in [*range(10), "rarest", "mean"] for _ in range(2)]


def test_a_network_in_two_parts_is_not_exported(split, command_line, tmp_path):
    config = split()
    federate(config)
    code, _, err = command_line("export", config.federation.out, tmp_path / "pipeline", "--class", "0")
    assert code == 2
    assert "one of which never leaves its owner: train with publish = network to export" in err


def test_whole_networks_outlive_the_states_that_a_comparison_drops(split, small, tmp_path):
    config = split(samples=4)
    federate(config)
    store = Path(config.federation.store)
    _drop_states(store)
    assert not list(store.rglob("round-*"))
    assert len(class_networks(Path(config.federation.out), "last", torch.device("cpu"))[1]) == 10
    other = small(out=str(tmp_path / "other"), store=str(tmp_path / "others"))
    federate(other)
    _drop_states(tmp_path / "others")
    assert not (tmp_path / "others").exists()


@pytest.mark.parametrize(
    ("asked", "own", "says"),
    [
        (
            {"publish": "network"},
            {"publish": "noise-split"},
            "takes part with publish = noise-split alone, not with network",
        ),
        ({"split": 0.3}, {"split": 0.5}, "publishes from split = 0.5 on, and the server asks from 0.3"),
        (
            {"publish": "network", "split": 0.5, "published_width": 0},
            {"split": 0.5},
            "publishes from split = 0.5 on, and the server asks from 0",
        ),
    ],
)
def test_a_client_sends_no_more_than_its_own_settings_allow(split, asked, own, says):
    """The settings come from the server: what may leave is the owner's to say."""
    config, grid = split(**asked), LocalGrid([])
    grid.contexts[1] = Context(1, 1, {"partition-id": 0, **own}, RecordDict(), {})
    config = config.but(min_clients=1)
    with pytest.raises(RunFailed, match="no client got through"):
        federate(config, grid)
    reasons = {line["reason"] for line in read_history(Path(config.federation.out)) if line["status"] == "error"}
    assert [says in reason for reason in reasons] == [True]
    assert not Path(config.federation.store).exists()
    assert not grid.replies[-1].has_content()


def test_a_reply_with_the_private_part_is_refused_by_the_server(split):
    """A client of another version, or one that errs: its whole network is not let in."""
    config = split(rounds=1)

    def whole(order: Message, reply: Message) -> Message:
        if order.metadata.message_type == MessageType.TRAIN and reply.content["numbers"]["class"] == 3:
            reply.content["network"] = pack_network(owned(config, 3, 1))
        return reply

    bank = federate(config, LocalGrid(range(10), whole))
    assert 3 not in bank.entries
    (line,) = (line for line in read_history(Path(config.federation.out)) if line["class"] == 3)
    assert line["status"] == "rejected"
    assert "unexpected ['private." in line["reason"]
