"""A real deployment: TLS, keys, a SuperLink, SuperNodes and their client processes, each with data of its own."""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from flwr.app import MessageType
from sklearn.datasets import load_digits

from fedmutual.checkpoint import load
from fedmutual.config import RunConfig
from fedmutual.errors import UserError
from fedmutual.networks import build
from fedmutual.networks.owned import class_folder, read_owned
from fedmutual.networks.split import PRIVATE, sent
from fedmutual.privacy.ledger import Ledger
from fedmutual.records import HELLO, NUMBERS, ORDER
from fedmutual.run_folder import read_history
from simulations.deployment.demo import IMAGES, demo, rounds_table, write_images
from simulations.deployment.loopback import CONNECTION, Deployment, DeploymentFailed, kill, living
from simulations.runs.networks import read_networks
from simulations.runs.sampling import draw_samples
from tests.support import wire
from tests.support.data import load_class

pytestmark = pytest.mark.xdist_group("deployed")  # its fixtures are made once

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
        wire.record(deployment.root / "superlink.db")
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
    assert names <= {
        ".held",
        "config.toml",
        "run.json",
        "history.jsonl",
        *(f"round-{r:06d}.safetensors" for r in (1, 2)),
    }


def test_parameters_and_the_documented_numbers_cross_the_wire_and_nothing_else(federation, completed):
    """Every object of every message that the SuperLink was sent, in both directions."""
    messages, others = wire.captured(federation.root / "superlink.db")
    assert others == 0
    parameters = {name: (tensor.shape, tensor.numpy().dtype) for name, tensor in network().items()}
    _, kept = read_networks(completed)
    stated = []
    for message in messages:
        from_client = message.metadata.src_node_id != wire.SERVER
        stated.append((message.metadata.message_type, from_client))
        for name, record in message.content.array_records.items():
            assert name == "network" if from_client else name.startswith("peer-")
            arrays = {parameter: array.numpy() for parameter, array in record.items()}
            assert {key: (array.shape, array.dtype) for key, array in arrays.items()} == parameters
            assert_no_sample_in(arrays.values(), federation.root.parent)
        records = {
            name: set(record) for name, record in message.content.items() if name not in message.content.array_records
        }
        if message.metadata.message_type == MessageType.QUERY:
            assert records == ({"hello": set(HELLO)} if from_client else {})
        else:
            expected = {"numbers": {*NUMBERS, "held-out-loss"}} if from_client else {"order": set(ORDER)}
            assert records == expected
    orders, replies = stated.count((MessageType.TRAIN, False)), stated.count((MessageType.TRAIN, True))
    assert orders == replies == 2 * CLIENTS
    assert stated.count((MessageType.QUERY, True)) >= CLIENTS
    last = {m.content["numbers"]["class"]: m.content["network"] for m in messages if last_reply(m)}
    for y in range(CLIENTS):  # what was captured is what was trained
        torch.testing.assert_close(
            {name: torch.tensor(a.numpy()) for name, a in last[y].items()}, kept[y], rtol=0, atol=0
        )
    assert_nothing_private(federation, messages)


def network():
    return build(RunConfig.of(SETTINGS), (1, 8, 8), 0).state_dict()


def last_reply(message):
    return "numbers" in message.content and message.content["numbers"]["round"] == SETTINGS["rounds"]


def private(root):
    """{class: its samples, as the networks see them} of the two clients."""
    places = [{"data-path": str(root / "zeros.npz")}, {"data": "folder", "data-path": str(root / "ones")}]
    data = [load_class(RunConfig.of(SETTINGS, place), y) for y, place in enumerate(places)]
    return [torch.cat([part.train, part.held_out]).flatten(1).double() for part in data]


def assert_no_sample_in(arrays, root):
    """No stretch of an array is a sample, in any of the ranges that pixels come in: [-1, 1], [0, 1], 0..16, 0..255."""
    samples = torch.cat(private(root))
    samples = torch.cat([samples, (samples + 1) / 2, (samples + 1) * 8, (samples + 1) * 127.5])
    for array in arrays:
        flat = torch.tensor(array).double().flatten()
        if len(flat) >= samples.shape[1]:
            distances = torch.cdist(flat.unfold(0, samples.shape[1], 1), samples)
            assert distances.min() > 0.1


def assert_nothing_private(federation, messages):
    """No words from a client that name its files, and no number of its samples."""
    root = federation.root.parent
    counts = {n for samples in private(root) for n in (len(samples), len(samples) - SETTINGS["held-out"])}
    names = [path.name for path in (root / "ones").iterdir()] + ["zeros", "ones", "store-", str(root)]
    for message in messages:
        for key, value in wire.scalars(message) if message.metadata.src_node_id != wire.SERVER else []:
            assert value not in counts, (key, value)
            if isinstance(value, str):
                assert not any(name in value for name in names), value
                assert not counts & {int(digits) for digits in re.findall(r"\d+", value)}, value


def test_errors_tell_the_server_nothing_private_either(federation, completed):
    """One client's data are damaged, the other's store cannot be opened: both say so, and their logs say why."""
    root = federation.root.parent
    whole, store = (root / "zeros.npz").read_bytes(), root / "store-1"
    np.savez(root / "zeros.npz", images=np.zeros((40, 9, 9), np.uint8))
    store.rename(root / "aside")
    store.write_text("no folder")
    before = {message.object_id for message in wire.captured(federation.root / "superlink.db")[0]}
    try:
        run = finish(federation, {**SETTINGS, "out": str(root / "failing")})
    finally:
        (root / "zeros.npz").write_bytes(whole)
        store.unlink()
        (root / "aside").rename(store)
    assert federation.status(run) == "finished:failed"
    messages = [m for m in wire.captured(federation.root / "superlink.db")[0] if m.object_id not in before]
    errors = sorted(message.error.reason for message in messages if message.has_error())
    assert len(errors) == CLIENTS
    assert "this client could not save its state: Not a directory" in errors[0]
    assert "this client's data cannot be used: its own log says why" in errors[1]
    assert_nothing_private(federation, messages)
    assert "samples of npz have 1,9,9" in federation.log_of("client-0")
    assert "store-1" in federation.log_of("client-1")


def test_the_private_part_of_a_network_crosses_no_wire_and_its_owner_draws_from_it(federation, completed, tmp_path):
    """A second run, with publish = noise-budget: every object of its messages, and what its folder alone is worth."""
    before = {message.object_id for message in wire.captured(federation.root / "superlink.db")[0]}
    proved = {"publish": "noise-budget", "keep": "last", "evaluate-every": 0}
    settings = {**SETTINGS, **proved, "published-width": 8, "out": str(tmp_path / "run")}
    run = finish(federation, settings)
    assert federation.status(run) == "finished:completed", federation.why(run)
    messages, others = wire.captured(federation.root / "superlink.db")
    messages = [message for message in messages if message.object_id not in before]
    assert others == 0
    expected = sent(build(RunConfig.of(settings), (1, 8, 8), 0).state_dict())
    identity = json.loads((tmp_path / "run" / "run.json").read_text())["run"]
    stores = [federation.root.parent / f"store-{y}" for y in range(CLIENTS)]
    whole = [read_owned(class_folder(store, identity, y), SETTINGS["rounds"]) for y, store in enumerate(stores)]
    secrets = [t.numpy().tobytes() for network in whole for name, t in network.items() if name.startswith(PRIVATE)]
    noised = [load(class_folder(store, identity, y) / "versions.safetensors")[0] for y, store in enumerate(stores)]
    secrets += [sample.numpy().tobytes() for tensors in noised for sample in tensors["samples"][0]]
    assert [len(Ledger(store, y).entries()) for y, store in enumerate(stores)] == [1, 1]
    records = [record for message in messages for record in message.content.array_records.values()]
    assert len(records) >= 2 * CLIENTS * 2  # replies and peers
    for record in records:
        shapes = {name: tuple(array.numpy().shape) for name, array in record.items()}
        assert shapes == {name: tuple(tensor.shape) for name, tensor in expected.items()}
        content = [array.data for array in record.values()]
        assert not any(secret in data for secret in secrets if len(secret) > 100 for data in content)
        assert_no_sample_in([array.numpy() for array in record.values()], federation.root.parent)
    assert_nothing_private(federation, messages)
    replies = [m for m in messages if m.metadata.src_node_id != wire.SERVER and m.content.array_records]
    assert len(replies) == CLIENTS * SETTINGS["rounds"]
    assert all(set(reply.content["numbers"]) == set(NUMBERS) for reply in replies)
    with pytest.raises(UserError, match="the part that it published"):
        draw_samples(tmp_path / "run", 4)
    drawn = draw_samples(tmp_path / "run", 4, here={"store": str(stores[1])})
    assert {y: tuple(samples.shape) for y, samples in drawn.items()} == {1: (4, 1, 8, 8)}


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
    command = [sys.executable, "-c", "from simulations.cli.app import main; main()", "doctor", "--json"]
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
        "from simulations.cli.app import main; main()",
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
