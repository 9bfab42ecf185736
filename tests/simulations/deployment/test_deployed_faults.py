"""Every fault of a deployed federation, tried: SuperLink, SuperNodes, TLS and keys are real, and so are the kills."""

import fcntl
import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedmutual.config import RunConfig
from fedmutual.run_folder import read_history
from fedmutual.saved_networks import checkpoint_path
from simulations.deployment.loopback import Deployment, kill
from simulations.runs.networks import read_networks
from tests.simulations.deployment.test_deployed import CLIENTS, PATIENCE, SETTINGS, finish
from tests.support.federation import LocalGrid, assert_same, federate, networks
from tests.support.processes import without_times

pytestmark = pytest.mark.faults

TRAINING = {**SETTINGS, "rounds": 5, "local-steps": 500, "schedule": "constant"}
"""Rounds of a second of gradient steps, so that a kill can fall into them."""


class Federation(Deployment):
    """A SuperLink and a hospital for each class, and what their administrators can do to them."""

    def __init__(self, root):
        super().__init__(root / "federation", CLIENTS + 2)
        self.folder, self.runs, self.logged = root, 0, {}
        digits = load_digits()
        for y in range(CLIENTS + 1):
            images = (digits.images[digits.target == y][:40] / 16 * 255).astype(np.uint8)
            np.savez(self.data_of(y), images=images)

    def data_of(self, y):
        return self.folder / f"hospital-{y}.npz"

    def store_of(self, out, y):
        """Where client y keeps its states of the run whose folder at the server is `out`."""
        identity = json.loads((out / "run.json").read_text())["run"]
        return self.folder / f"store-{y}" / identity / f"class-{y:03d}"

    def hospital(self, number, y=None):
        """Start the SuperNode of hospital `number`, which holds class y."""
        y = number if y is None else y
        own = {"data_path": str(self.data_of(y)), "store": str(self.folder / f"store-{number}")}
        name = f"client-{number}"
        self.logged[name] = len(self.log_of(name)) if (self.root / f"{name}.log").exists() else 0
        self.start_supernode(name, self.keys / name, partition_id=y, **own)

    def keep_starting(self, number):
        """Start a SuperNode until it stays, as a service manager does.

        The SuperLink refuses a second one with the same key until it has missed the heartbeats of the first.
        """
        name = f"client-{number}"
        while name not in self.processes:
            self.hospital(number)
            process = self.processes.pop(name)
            if self.joins(name, process):
                self.processes[name] = process

    def joins(self, name, process):
        """Whether a SuperNode that was started just now is let in."""

        def settled():
            return process.poll() is not None or self.is_in(name)

        self.until(settled, f"{name} joins or ends")
        return process.poll() is None

    def is_in(self, name):
        return "SuperNode ID" in self.log_of(name)[self.logged[name] :]

    def crash(self, name):
        """End a SuperNode or the SuperLink and forget it; what it has started ends by itself."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def leave(self, name):
        """Stop a SuperNode as its administrator does."""
        process = self.processes.pop(name)
        process.terminate()
        process.wait()

    def new_run(self, **settings):
        """A run's id, and its folder at the server."""
        self.runs += 1
        out = self.folder / f"run-{self.runs}"
        return self.run({**SETTINGS, **settings, "out": str(out)}), out

    def until(self, holds, what):
        self.wait(holds, what, PATIENCE, every=0.05)

    def until_round(self, out, round_):
        self.until(lambda: {line["round"] for line in read_history(out)} >= {round_}, f"round {round_} is done")

    def client_process(self, out, y):
        """The process that works for class y in the round under way, once there is one."""
        home = f"FLWR_HOME={self.root}/flower/client-{y}".encode()
        history, result = out / "history.jsonl", []

        def there():
            since = history.stat().st_mtime if history.exists() else 0.0  # when the round before was done
            for pid in self.living("flwr-clientapp"):
                with suppress(OSError):  # it has just ended
                    if started(pid) > since and home in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                        result.append(pid)
            return bool(result)

        self.until(there, f"client {y} is at work")
        return result[0]

    def kill_server(self, run):
        """Kill the server of a run, and wait until Flower has noticed."""
        for pid in self.living("flwr-serverapp"):
            kill(pid)
        self.until_finished(run)
        assert self.status(run) == "finished:failed"

    def until_finished(self, run):
        self.wait(lambda: self.status(run).startswith("finished"), "the run finishes", PATIENCE, every=3.0)

    def complete(self, run):
        self.until_finished(run)
        assert self.status(run) == "finished:completed", self.why(run)

    def resume(self, out, **settings):
        run = finish(self, {**SETTINGS, **settings, "out": str(out), "resume": True})
        assert self.status(run) == "finished:completed", self.why(run)
        return run

    def uninterrupted(self, **settings):
        """Networks and history of the same run in one process, where nothing goes wrong."""
        places = {"out": str(self.folder / f"through-{self.runs}"), "store": str(self.folder / f"stores-{self.runs}")}
        config, grid = RunConfig.of({**SETTINGS, **settings}, places), LocalGrid([])
        for y in range(CLIENTS):
            grid.join(y, **{"data-path": str(self.data_of(y))})
        return networks(federate(config, grid)), read_history(Path(config.federation.out))


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    with Federation(tmp_path_factory.mktemp("deployed")) as deployment:
        deployment.start_superlink()
        for number in range(CLIENTS + 2):
            deployment.register(deployment.keys / f"client-{number}.pub")
        for y in range(CLIENTS):
            deployment.hospital(y)
        deployment.wait_for_supernodes(CLIENTS)
        yield deployment
    assert deployment.living() == []


@pytest.fixture
def seen(record_property):
    """Puts what was seen of a fault into the summary."""
    return lambda fault, what: record_property("seen", f"{fault}: {what}")


def statuses(out, y):
    return [line["status"] for line in read_history(out) if line["class"] == y]


def line_of(out, round_, y):
    return next(line for line in read_history(out) if (line["round"], line["class"]) == (round_, y))


def assert_as_uninterrupted(federation, out, **settings):
    expected, history = federation.uninterrupted(**settings)
    assert_same(dict(sorted(read_networks(out)[1].items())), expected)
    assert without_times(read_history(out)) == without_times(history)


def fill_disk_for(path, pids):
    """Have the kernel tell these processes that there is no room when they write `path`."""
    for pid in pids:
        path.with_name(f".{path.name}.{pid}.partial").symlink_to("/dev/full")


def started(pid):
    """When a process was started, in seconds since the epoch."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")


def is_held(store):
    """Whether a client process is at work on its state."""
    try:
        with (store / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def test_clients_and_servers_killed_in_all_their_moments_end_bit_identical(federation, seen):
    run, out = federation.new_run(**TRAINING)
    fell = []

    def strike(round_, y, moment, ready):
        federation.until_round(out, round_ - 1)
        pid = federation.client_process(out, y)
        federation.wait(ready, f"client {y} {moment}", PATIENCE, every=0.001)
        os.kill(pid, signal.SIGKILL)  # and not `kill`: it must be there
        fell.append(f"client {moment}")

    def has_saved(y, round_):
        return lambda: (federation.store_of(out, y) / f"round-{round_:06d}.safetensors").exists()

    strike(2, 0, "starts", lambda: True)
    strike(3, 1, "trains", lambda: is_held(federation.store_of(out, 1)))
    strike(4, 0, "has saved, not yet replied", has_saved(0, 4))
    federation.until_round(out, 4)
    federation.until(has_saved(1, 5), "client 1 is a round ahead of the server")
    federation.kill_server(run)
    fell.append("server waits for replies, a store ahead of its checkpoint")
    federation.resume(out, **TRAINING)
    assert_as_uninterrupted(federation, out, **TRAINING)
    seen("deployed kills, bit-identical", json.dumps(fell))


def test_client_code_that_raises_and_a_full_disk_at_a_client_cost_that_class_the_round(federation, seen):
    settings = {"rounds": 4}
    run, out = federation.new_run(**settings)
    federation.until_round(out, 1)
    data = federation.data_of(0)
    whole = data.read_bytes()
    data.write_bytes(b"damaged")
    federation.until_round(out, 2)
    data.write_bytes(whole)
    state = federation.store_of(out, 1) / "round-000003.safetensors"
    fill_disk_for(state, [federation.client_process(out, 1)])
    federation.complete(run)
    assert statuses(out, 0) == ["ok", "error", "ok", "ok"]
    assert statuses(out, 1) == ["ok", "ok", "error", "ok"]
    assert line_of(out, 2, 0)["reason"] == "this client's data cannot be used: its own log says why"
    assert line_of(out, 3, 1)["reason"] == "this client could not save its state: No space left on device"
    seen("client code raises", f"error: {line_of(out, 2, 0)['reason']}; ok in the next round")
    seen("disk full at a client", f"error: {line_of(out, 3, 1)['reason']}; ok in the next round")


def test_a_full_disk_at_the_server_stops_the_run_in_one_line_and_loses_nothing(federation, seen):
    settings = {"rounds": 3}
    run, out = federation.new_run(**settings)
    federation.until_round(out, 1)
    fill_disk_for(checkpoint_path(out, 2), federation.living("flwr-serverapp"))
    federation.until_finished(run)
    assert federation.status(run) == "finished:failed"
    why = federation.why(run)
    assert "cannot be written: No space left on device: what was saved before it is whole" in why
    federation.resume(out, **settings)
    assert_as_uninterrupted(federation, out, **settings)
    seen("disk full at the server", f"the run stops: {why.replace(str(out), 'RUN')}; resumed, bit-identical")


def test_damaged_checkpoints_and_stores_behind_are_told_and_the_ones_before_are_used(federation, seen):
    settings = {"rounds": 5, "schedule": "constant"}
    run, out = federation.new_run(**settings)
    federation.until_round(out, 3)
    federation.kill_server(run)
    done = max(line["round"] for line in read_history(out))
    newest = checkpoint_path(out, done)
    if newest.exists():
        content = bytearray(newest.read_bytes())
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
    cut = sorted(federation.store_of(out, 0).glob("round-*"))[-1]
    cut.write_bytes(cut.read_bytes()[:-9])
    for state in sorted(federation.store_of(out, 1).glob("round-*"))[1:]:
        state.unlink()  # an old backup was put back
    behind = int(next(federation.store_of(out, 1).glob("round-*")).stem[-6:])
    again = federation.resume(out, **settings)
    assert [statuses(out, y) for y in range(CLIENTS)] == [["ok"] * 5] * CLIENTS
    resumed = json.loads((out / "run.json").read_text())
    assert (resumed["status"], resumed["attempt"]) == ("done", 2)
    assert line_of(out, 5, 0)["step"] == 5 * SETTINGS["local-steps"]
    stated = [line for line in federation.run_log(again).splitlines() if "is damaged" in line]
    assert any(newest.name in line for line in stated)
    seen("checkpoint bit-flipped at the server", "the round before is resumed from: " + stated[0][-160:])
    short = 5 - line_of(out, 5, 1)["step"] / SETTINGS["local-steps"]
    seen("store behind the checkpoint", f"from round {behind}, all rounds ok; `step` tells {short:.0f} rounds less")


def test_a_supernode_that_dies_in_a_round_and_comes_back_is_trained_with_again(federation, seen):
    run, out = federation.new_run(rounds=8, timeout=150.0)
    federation.until_round(out, 1)
    federation.client_process(out, 0)
    federation.crash("client-0")
    federation.keep_starting(0)
    federation.complete(run)
    assert statuses(out, 1) == ["ok"] * 8
    assert statuses(out, 0)[-1] == "ok"
    reasons = [f"{line['status']} {line['reason']}".strip() for line in read_history(out) if line["class"] == 0]
    seconds = [round(line["round_seconds"]) for line in read_history(out) if line["class"] == 0]
    seen("SuperNode killed and restarted", f"{reasons}, rounds of {seconds} s")


def test_a_superlink_that_dies_comes_back_on_its_database_and_the_run_is_resumed(federation, seen):
    settings = {"rounds": 3}
    run, out = federation.new_run(**settings)
    federation.until_round(out, 1)
    federation.crash("superlink")
    federation.start_superlink()
    federation.until_finished(run)
    status = federation.status(run)
    assert status == "finished:failed"
    federation.wait_for_supernodes(CLIENTS)
    federation.resume(out, **settings)
    assert_as_uninterrupted(federation, out, **settings)
    seen("SuperLink killed and restarted", f"{status}; SuperNodes came back by themselves; resumed, bit-identical")


def test_a_slow_client_misses_its_round_and_its_stale_reply_is_left_aside(federation, seen):
    run, out = federation.new_run(rounds=4, timeout=30.0)
    federation.until_round(out, 1)
    pid = federation.client_process(out, 0)
    os.kill(pid, signal.SIGSTOP)
    try:
        federation.until_round(out, 2)
    finally:
        os.kill(pid, signal.SIGCONT)
    federation.complete(run)
    assert statuses(out, 0)[:2] == ["ok", "missing"]
    assert statuses(out, 0)[-1] == "ok"
    assert statuses(out, 1) == ["ok"] * 4
    reasons = [f"{line['status']} {line['reason']}".strip() for line in read_history(out) if line["class"] == 0]
    seen("slow client past timeout", str(reasons))


def test_clients_that_join_late_claim_a_taken_class_or_leave_for_good(federation, seen):
    run, out = federation.new_run(rounds=8, classes=CLIENTS + 1, **{"min-clients": CLIENTS})
    late, twin = CLIENTS, CLIENTS + 1
    federation.until_round(out, 1)
    federation.hospital(late)
    federation.hospital(twin, y=0)
    federation.until(lambda: "ok" in statuses(out, late), "the late one takes part")
    federation.leave(f"client-{late}")
    federation.complete(run)
    federation.leave(f"client-{twin}")
    assert statuses(out, 0) == statuses(out, 1) == ["ok"] * 8
    stated = statuses(out, late)
    assert stated[0] == "idle"
    assert stated[-1] in ("idle", "error")
    log = federation.run_log(run)
    assert "is left out: it claims class 0, which another node holds" in log
    assert sorted(read_networks(out)[1]) == list(range(CLIENTS + 1))
    reasons = [f"{line['status']} {line['reason']}".strip() for line in read_history(out) if line["class"] == late]
    seen("late joiner that leaves for good", f"{reasons}; its network stays in the checkpoint")
    seen("two clients claim one class", "left out: it claims class 0, which another node holds")


SHIFTED_CLOCK = """
import datetime, os, time

shift = float(os.environ["CLOCK_SHIFT"])
real_time, real = time.time, datetime.datetime

class Shifted(real):
    @classmethod
    def now(cls, tz=None):
        return real.now(tz) + datetime.timedelta(seconds=shift)

datetime.datetime, time.time = Shifted, lambda: real_time() + shift
"""
"""A sitecustomize.py: the clock of a machine that is `CLOCK_SHIFT` seconds fast."""


@pytest.mark.parametrize(("shift", "joins"), [(-60, True), (60, False), (-3600, False)])
def test_clocks_apart(federation, tmp_path, monkeypatch, seen, shift, joins):
    """Flower's signatures carry the time, and may be 5 seconds fast and 305 seconds old."""
    (tmp_path / "sitecustomize.py").write_text(SHIFTED_CLOCK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CLOCK_SHIFT", str(shift))
    number = CLIENTS
    federation.hospital(number)
    monkeypatch.undo()
    name = f"client-{number}"
    process = federation.processes.pop(name)
    try:
        assert federation.joins(name, process) == joins
    finally:
        process.kill()
        process.wait()
    seen(f"clock {shift:+d} s", "joins" if joins else "refused, and its SuperNode ends")
