"""Ray is started by itself, whatever the surroundings: no folder, variable or other Ray has a part in it."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import ray

from server.roster import RunFailed
from simulations.engine import cluster
from simulations.engine.cluster import innermost, new_folder, own_ray
from simulations.engine.simulation import Simulation, settings_for_clients
from tests.support.federation import SMALL

pytestmark = pytest.mark.xdist_group("ray")

ROOT = Path(__file__).parents[3]


def simulate(folder, **environment):
    """A simulation from `folder`, in a fresh process that finds the project where it was installed."""
    settings = {**SMALL, "rounds": 1, "local-steps": 1}
    chosen = [part for key, value in settings.items() for part in ("-s", f"{key}={value}")]
    command = [str(Path(sys.executable).parent / "fedmutual"), "simulate", "digits", "--out", "run", *chosen]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_what_lies_in_the_users_folder_and_where_ray_is_told_to_be_change_nothing(tmp_path):
    for name in ("client", "server", "simulations", "fedmutual", "random", "utils"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('imported from the folder of the user')\n")
    scratch = tmp_path / ("scratch-of-a-batch-system-" * 3)
    scratch.mkdir()
    simulate(tmp_path, RAY_ADDRESS="127.0.0.1:6399", TMPDIR=str(scratch))


def test_data_and_store_are_where_they_were_named_from(small, tmp_path, monkeypatch):
    """Clients do not work in the folder of the user, so that a relative path would mean another place to them."""
    monkeypatch.chdir(tmp_path)
    config = small(store="states", out="run", data="npz", data_path="data.npz", classes=2, shape="1,8,8")
    chosen = settings_for_clients(config, has_gpus=True)
    assert chosen["store"] == str(tmp_path / "states")
    assert chosen["data-path"] == str(tmp_path / "data.npz")


@pytest.mark.parametrize("chosen", ["/nowhere", "/" + "x" * 100, "/proc"])
def test_a_folder_that_cannot_hold_sockets_is_passed_over(monkeypatch, chosen):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", chosen)
    folder = new_folder()
    folder.rmdir()
    assert str(folder.parent) == os.path.realpath("/tmp")


def test_a_machine_without_a_folder_for_sockets_is_one_line(monkeypatch):
    monkeypatch.setattr(cluster, "SOCKET_PATH", 0)
    with pytest.raises(RunFailed, match="set TMPDIR to one whose path has at most"):
        new_folder()


def test_the_innermost_cause_is_what_is_said():
    outer, middle = RuntimeError("An error was encountered. Ending simulation."), RuntimeError("crashed")
    outer.__cause__, middle.__cause__ = middle, ValueError("the disk is\non fire")
    assert innermost(outer) == "the disk is on fire"


def test_a_ray_that_does_not_start_is_one_line_with_its_cause(monkeypatch):
    def fail(**options):
        raise OSError("no room in /dev/shm")

    monkeypatch.setattr(ray, "init", fail)
    before = dict(os.environ), os.getcwd()
    with (
        pytest.raises(RunFailed, match=r"Ray does not start: no room in /dev/shm: its logs are in .*logs"),
        own_ray(1, 0),
    ):
        pass
    assert (dict(os.environ), os.getcwd()) == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_flower_fails_of_is_told_by_its_innermost_cause(small, monkeypatch):
    """Clients that need more cores than Ray has: Flower says "An error was encountered", and its cause says why."""
    simulation = Simulation(small(store=""), cpus=1)
    monkeypatch.setattr("simulations.engine.simulation.CLIENT_CPUS", 2)
    before = set(threading.enumerate())
    with pytest.raises(RunFailed, match="Flower's simulation failed: no node has the 2 cores"):
        simulation.run()
    for thread in set(threading.enumerate()) - before:  # that of the server would greet for minutes
        if not thread.daemon:
            thread.join(10)
            assert not thread.is_alive()
