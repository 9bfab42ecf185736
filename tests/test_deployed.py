"""A real deployment: TLS, keys, a SuperLink, SuperNodes and their client processes, each with data of its own."""

import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedmutual.config import UserError
from server.journal import read_history
from simulations.deploy_demo import IMAGES, demo, rounds_table, write_images
from simulations.deployment import CONNECTION, Deployment, DeploymentFailed, kill, living
from simulations.results import read_networks

CLIENTS = 2

SETTINGS = {
    "data": "npz",
    "classes": CLIENTS,
    "shape": "1,8,8",
    "imbalance": "none",
    "test": 0,
    "held-out": 5,
    "diffusion-steps": 25,
    "width": 16,
    "depth": 2,
    "rounds": 2,
    "local-steps": 3,
    "timeout": 300.0,
    "samples": 0,
}
"""Nothing to learn, everything to carry: what costs here is Flower."""

PATIENCE = 400.0
"""Seconds for what takes tens of them on an idle machine."""


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    """A SuperLink with two registered clients, one beside a .npz and one beside a folder of images, and a stranger."""
    root = tmp_path_factory.mktemp("federation")
    deployment = Deployment(root / "federation", CLIENTS + 1)
    with deployment:
        deployment.start_superlink()
        digits = load_digits()
        np.savez(root / "zeros.npz", images=(digits.images[digits.target == 0][:40] / 16 * 255).astype(np.uint8))
        write_images(root / "ones", 1, 30)
        data = [{"data_path": str(root / "zeros.npz")}, {"data": "folder", "data_path": str(root / "ones")}]
        for y in range(CLIENTS):
            deployment.register(deployment.keys / f"client-{y}.pub")
            key, store = deployment.keys / f"client-{y}", str(root / f"store-{y}")
            deployment.start_supernode(f"client-{y}", key, partition_id=y, store=store, **data[y])
        deployment.wait_for_supernodes(CLIENTS)
        yield deployment
    assert deployment.living() == []


@pytest.fixture(scope="module")
def completed(federation):
    """The server's folder of a run that went through."""
    out = federation.root.parent / "run"
    run = finish(federation, {**SETTINGS, "out": str(out)})
    assert federation.status(run) == "finished:completed", federation.why(run)
    return out


def finish(federation, settings):
    """Run to the end; the run."""
    run = federation.run(settings)
    federation.wait(lambda: federation.status(run).startswith("finished"), "the run finishes", PATIENCE, every=3.0)
    return run


def test_a_deployed_run_completes_with_every_class_and_every_reply(completed):
    history = read_history(completed)
    assert [(line["round"], line["class"], line["status"]) for line in history] == [
        (round_, y, "ok") for round_ in (1, 2) for y in range(CLIENTS)
    ]
    assert all(line["held_out"] > 0 and line["bytes_down"] > 0 < line["bytes_up"] for line in history)
    round_, networks = read_networks(completed)
    assert (round_, sorted(networks)) == (2, list(range(CLIENTS)))
    assert json.loads((completed / "run.json").read_text())["status"] == "done"


def test_each_client_keeps_the_state_of_its_own_class_and_no_other(federation, completed):
    identity = json.loads((completed / "run.json").read_text())["run"]
    for y in range(CLIENTS):
        store = federation.root.parent / f"store-{y}"
        assert [str(folder.relative_to(store)) for folder in store.glob("*/*")] == [f"{identity}/class-{y:03d}"]


def test_data_stay_at_the_clients(federation, completed):
    """No private file, and no array of a sample's size, has come to the server: parameters and numbers only."""
    names = {path.name for path in completed.rglob("*") if path.is_file()}
    assert names <= {"config.toml", "run.json", "history.jsonl", *(f"round-{r:06d}.safetensors" for r in (1, 2))}


def test_a_run_killed_at_the_server_is_resumed_by_a_file_of_settings(federation, completed, tmp_path):
    settings = {**SETTINGS, "rounds": 2, "out": str(tmp_path / "run")}
    run = federation.run(settings)
    federation.wait(lambda: len(read_history(tmp_path / "run")) >= CLIENTS, "a round is done", PATIENCE)
    for pid in federation.living("flwr-serverapp"):
        kill(pid)
    federation.wait(lambda: federation.status(run).startswith("finished"), "Flower notices", PATIENCE, every=3.0)
    assert federation.status(run) == "finished:failed"
    again = finish(federation, {**settings, "resume": True})
    assert federation.status(again) == "finished:completed", federation.why(again)
    lines = [(line["round"], line["class"], line["status"]) for line in read_history(tmp_path / "run")]
    assert lines == [(round_, y, "ok") for round_ in (1, 2) for y in range(CLIENTS)]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["attempt"] == 2


def test_a_run_that_cannot_start_says_why_in_one_line(federation, completed):
    run = finish(federation, {**SETTINGS, "out": str(completed)})
    assert federation.status(run) == "finished:failed"
    assert federation.why(run) == f"{completed} already holds a run: resume it, or choose another folder for out"


def test_the_doctor_finds_this_federation_well(federation):
    home = {"FLWR_HOME": str(federation.root / "flower" / "user")}
    command = [sys.executable, "-c", "from simulations.cli import main; main()", "doctor", "--json"]
    done = subprocess.run(
        [*command, "--connection", CONNECTION], env={**os.environ, **home}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    seen = {row["check"]: row["seen"] for row in json.loads(done.stdout)["rows"]}
    assert "trusted for 127.0.0.1" in seen["tls"]
    assert f"127.0.0.1:{federation.port} answers" in seen["superlink"]
    assert {"authority", "certificate", "clock", "store", "run folder"} <= set(seen)


def test_a_key_that_is_not_registered_gets_nowhere(federation):
    key = federation.keys / f"client-{CLIENTS}"  # of the same authority, but no administrator has let it in
    federation.start_supernode("stranger", key, partition_id=0)
    stranger = federation.processes.pop("stranger")
    try:
        assert stranger.wait(PATIENCE) != 0
    finally:
        stranger.kill()
    nodes = federation.flwr("supernode", "list")["nodes"]
    assert [node["status"] for node in nodes] == ["online"] * CLIENTS


def test_plain_http_to_the_tls_port_gets_no_answer(federation):
    with socket.create_connection(("127.0.0.1", federation.port), 10) as plain:
        plain.sendall(b"GET /v1/control/list-runs HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert not plain.recv(100).startswith(b"HTTP/")


def test_a_process_that_ends_by_itself_is_told_and_leaves_nothing_behind(tmp_path):
    with Deployment(tmp_path / "federation", 1) as deployment:
        deployment.keys.joinpath("server.key").write_text("no key")
        with pytest.raises(DeploymentFailed, match="superlink ended with code"):
            deployment.start_superlink()
    assert deployment.living() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_ends_with_its_code_and_leaves_nothing_behind(tmp_path, number):
    command = [
        sys.executable,
        "-c",
        "from simulations.cli import main; main()",
        "deploy-demo",
        "--out",
        tmp_path / "run",
    ]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert "a key for each hospital" in process.stderr.readline()
    assert "SuperLink answers" in process.stderr.readline()
    assert living(tmp_path)
    process.send_signal(number)
    assert process.wait(PATIENCE) == 130
    assert process.stderr.read().strip().startswith("error: interrupted")
    assert living(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_the_demo_leaves_a_finished_run_alone(tmp_path):
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(UserError, match="already holds a run"):
        demo(tmp_path)


def test_the_table_of_rounds_begins_with_the_worst_class():
    def line(round_, y, loss):
        return {"round": round_, "class": y, "held_out": loss, "status": "error" if loss is None else "ok"}

    losses = {1: [0.5, 0.9, 0.8], 2: [0.4, 0.3, None]}
    table = rounds_table([line(round_, y, loss) for round_, row in losses.items() for y, loss in enumerate(row)])
    columns = [list(column.cells) for column in table.columns]
    assert columns[0] == ["2", "0", "1"]
    assert columns[1] == [str(IMAGES[y]) for y in (2, 0, 1)]
    assert columns[2:] == [["0.8000", "0.5000", "0.9000"], ["error", "0.4000", "0.3000"]]
