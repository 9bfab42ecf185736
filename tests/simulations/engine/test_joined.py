"""A Ray cluster of two nodes, each of processes of its own, started by `ray start` as a person starts them."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import ray
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.app import hello, train
from fedmutual.errors import UserError
from fedmutual.run_folder import read_history
from simulations.engine import joined
from simulations.engine.joined import Cluster
from simulations.engine.simulation import MUTUAL, Simulation
from simulations.runs.networks import read_networks
from tests.support.federation import assert_same, federate, networks
from tests.support.ray_nodes import Nodes

pytestmark = pytest.mark.xdist_group("cluster")


@pytest.fixture(scope="module")
def nodes():
    started = Nodes()
    try:
        started.add()
        yield started
    finally:
        started.close()


def test_cores_and_gpus_are_read_from_the_cluster_and_bounded(nodes, small):
    cluster = Cluster(nodes.address)
    assert ([node.cores for node in cluster.nodes], cluster.cores, cluster.gpus) == ([1, 1], 2, 0)
    assert Simulation(small(), cpus=9, ray=nodes.address).at_once == 2
    with pytest.raises(UserError, match="--gpus 1, and there are 0 to use on the cluster"):
        Simulation(small(), gpus=1, ray=nodes.address)
    with pytest.raises(UserError, match="device = cuda, and no node of the cluster has a GPU"):
        Simulation(small(device="cuda"), ray=nodes.address)


def test_auto_is_the_cluster_that_ray_address_names(nodes, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    assert len(Cluster("auto").nodes) == 2


def test_a_store_that_nodes_do_not_share_is_one_line_before_anything_starts(nodes, small, tmp_path, monkeypatch):
    """/proc/self/cwd is another folder in each process, as /tmp is another on each machine."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"node [\d.]+ does not share store = /proc/self/cwd/states, where clients keep"
    ):
        Simulation(small(store="/proc/self/cwd/states"), ray=nodes.address)
    assert not (tmp_path / "run").exists()
    assert not list((tmp_path / "states").iterdir())
    with pytest.raises(UserError, match="store = /proc/nowhere cannot be written"):
        Simulation(small(store="/proc/nowhere"), ray=nodes.address)


def test_data_that_a_node_does_not_see_are_one_line(nodes, tmp_path):
    with pytest.raises(UserError, match=r"node [\d.]+ does not see data-path = /nowhere/data.npz"):
        Cluster(nodes.address).check(tmp_path / "store", "/nowhere/data.npz")


def test_another_version_on_a_node_is_one_line(nodes, tmp_path, monkeypatch):
    here = joined.versions()
    monkeypatch.setattr(joined, "versions", lambda: {**here, "torch": "1.0"})
    with pytest.raises(UserError, match=rf"node [\d.]+ has torch {here['torch']}, and this machine 1.0: install"):
        Cluster(nodes.address).check(tmp_path / "store", "")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("ray://127.0.0.1:10001", "--ray ray://127.0.0.1:10001 is for Ray's own client"),
        ("127.0.0.1:9", "--ray 127.0.0.1:9: nothing answers there .*: is Ray's head running"),
        ("head", "--ray head: give HOST:PORT of the cluster's head, or auto"),
    ],
)
def test_an_address_that_leads_nowhere_is_one_line(address, says):
    with pytest.raises(UserError, match=says):
        Cluster(address)


def test_what_answers_and_is_no_ray_is_one_line(monkeypatch):
    monkeypatch.setattr(ray, "init", lambda **options: (_ for _ in ()).throw(RuntimeError("version mismatch")))
    with pytest.raises(UserError, match="--ray auto: this machine cannot join: version mismatch: start Ray here first"):
        Cluster("auto")


def where(mark: Path) -> tuple[ClientApp, Path]:
    """The real client, which notes on which node it carries out an order, and takes its node down in round 2."""
    client, notes = ClientApp(), mark.with_name("where.jsonl")
    client.query()(hello)

    @client.train()
    def note_and_train(message: Message, context: Context) -> Message:
        order, node = message.content["order"], ray.get_runtime_context().get_node_id()
        with notes.open("a") as file:
            file.write(json.dumps({"round": order["round"], "node": node}) + "\n")
        if order["round"] == 2 and node == mark.read_text():
            mark.write_text("dead")
            train(message, context)  # what it has saved counts, though nobody hears of it
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)
        return train(message, context)

    return client, notes


def test_a_node_that_dies_in_a_round_costs_nothing_and_the_run_ends_where_one_machine_does(nodes, small, tmp_path):
    other = next(node.id for node in Cluster(nodes.address).nodes if node.id != head(nodes))
    mark = tmp_path / "mark"
    mark.write_text(other)
    client, notes = where(mark)
    config = small(rounds=3, out=str(tmp_path / "ray"), store="")
    folder = Simulation(config, app=MUTUAL._replace(client=client), ray=nodes.address).run()
    assert mark.read_text() == "dead"
    history = read_history(folder)
    assert [(line["round"], line["class"]) for line in history] == [(r, y) for r in (1, 2, 3) for y in range(10)]
    assert [(line["status"], line["step"]) for line in history] == [("ok", 3 * line["round"]) for line in history]
    by_round = {r: set() for r in (1, 2, 3)}
    for line in notes.read_text().splitlines():
        by_round[json.loads(line)["round"]].add(json.loads(line)["node"])
    assert by_round == {1: {other, head(nodes)}, 2: {other, head(nodes)}, 3: {head(nodes)}}
    assert_same(dict(sorted(read_networks(folder)[1].items())), networks(federate(small(rounds=3))))


def head(nodes: Nodes) -> str:
    with Cluster(nodes.address).joined():
        return next(node["NodeID"] for node in ray.nodes() if "node:__internal_head__" in node["Resources"])


@pytest.mark.parametrize("more", [("digits", "--minutes", "5"), ("{data}",)])
def test_settings_chosen_by_the_speed_of_this_machine_are_refused_for_a_cluster(command_line, tmp_path, more):
    for command in ("simulate", "compare"):
        given = [str(tmp_path) if word == "{data}" else word for word in more]
        code, _, error = command_line(command, *given, "--ray", "127.0.0.1:9")
        assert code == 2
        assert error.splitlines()[-1].startswith("error: --minutes and DATA choose settings by this machine's speed")
