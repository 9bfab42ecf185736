"""Flower's real simulation engine with Ray, started as a user starts it."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.app import hello, train
from fedmutual.errors import UserError
from fedmutual.run_folder import read_history
from simulations.engine.cluster import end_kept_ray
from simulations.engine.simulation import MUTUAL, Simulation
from simulations.runs.networks import read_networks
from tests.support.federation import SMALL, assert_same, federate, networks

COMMAND = str(Path(sys.executable).parent / "fedmutual")


def assignments(settings):
    return [part for key, value in settings.items() for part in ("-s", f"{key}={value}")]


def fedmutual(*arguments, **options):
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300, **options)


def strike(how, folder, lines, *arguments):
    """Start a simulation, send it a signal once its history has so many lines; its exit code and stderr."""
    process = subprocess.Popen(
        [COMMAND, "simulate", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and len(read_history(folder)) < lines:
        time.sleep(0.02)
    assert process.poll() is None, "the run ended before it could be struck"
    os.killpg(process.pid, how) if how == signal.SIGKILL else process.send_signal(how)
    _, stderr = process.communicate(timeout=120)
    return process.returncode, stderr


def test_an_interrupted_and_killed_simulation_ends_bit_identical_on_other_actors(small, tmp_path, command_line):
    settings = {**SMALL, "rounds": 12, "samples": 40}
    folder = tmp_path / "ray"
    start = ["digits", "--cpus", "2", "--out", folder, *assignments(settings)]
    code, said = strike(signal.SIGTERM, folder, 15, *start)
    assert code == 130
    assert said.splitlines()[-1].startswith("error: interrupted: what was checkpointed is kept")
    assert json.loads((folder / "run.json").read_text())["status"] == "stopped"
    code, _ = strike(signal.SIGKILL, folder, 45, "--resume", folder)
    assert code == -signal.SIGKILL

    code, out, err = command_line("simulate", "--resume", folder, "--cpus", "1")
    assert code == 0, err
    in_one_process = federate(small(rounds=12))
    assert_same(dict(sorted(read_networks(folder)[1].items())), networks(in_one_process))
    history = read_history(folder)
    assert [(line["round"], line["class"]) for line in history] == [(r, y) for r in range(1, 13) for y in range(10)]
    assert {line["status"] for line in history} == {"ok"}
    _check_run_folder(folder)
    assert re.search(r"^worst\s", out, re.MULTILINE)
    assert str(folder / "report.html") in out

    _, out, _ = command_line("evaluate", folder, "--round", "best", "--json")
    rows = json.loads(out)["rows"]
    assert {row["class"] for row in rows} == {"worst", "mean", "rarest", "largest", *range(10)}
    code, _, err = command_line("sample", folder, "--out", tmp_path / "drawn", "-n", "9")
    assert code == 0, err
    with np.load(tmp_path / "drawn" / "samples.npz") as samples:
        assert {name: array.shape for name, array in samples.items()} == {
            f"generated_{y}": (9, 1, 8, 8) for y in range(10)
        }


def _check_run_folder(folder):
    """The files of a run that the design promises."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["method", "seed", "class", "n_train", "metric", "value"]
    by_class = {row["class"] for row in rows if row["metric"] == "fd"}
    assert by_class == {*map(str, range(10)), "worst", "mean"}
    assert {"fd", "precision", "recall", "memorisation", "n_reference"} <= {row["metric"] for row in rows}
    fd = {row["class"]: float(row["value"]) for row in rows if row["metric"] == "fd"}
    assert fd["worst"] == max(fd[str(y)] for y in range(10))
    run = json.loads((folder / "run.json").read_text())
    assert (run["status"], run["attempt"], run["clients_at_once"]) == ("done", 3, 1)
    assert run["training_counts"][0] == 20
    assert run["overhead"] > 1
    assert len(list((folder / "clients").glob("*/class-*"))) == 10
    assert (folder / "report.html").stat().st_size > 10_000
    assert len(list((folder / "samples").glob("class-*.png"))) == 10


def test_a_simulation_in_which_nobody_gets_through_says_so_and_fails(tmp_path):
    settings = {**SMALL, "norm-bound": 1e-9}
    failed = fedmutual("simulate", "digits", "--out", tmp_path / "run", *assignments(settings))
    assert failed.returncode == 1
    lines = failed.stderr.strip().splitlines()
    assert re.fullmatch(r"error: round 1: no client got through: norm .* exceeds norm-bound's .*", lines[-1])
    assert not any("Traceback" in line for line in lines)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "stopped"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["simulate", "nope"], "no preset 'nope': there are cifar10, cifar10-paper, "),
        (["simulate", "missing.toml"], "no preset 'missing.toml'"),
        (["simulate", "digits", "-s", "bta=1"], "unknown setting 'bta'"),
        (["simulate", "digits", "-s", "beta"], "not of the form key=value"),
        (["simulate", "digits", "-s", "rounds=0"], "setting rounds = 0"),
        (["simulate", "digits", "--gpus", "99"], "--gpus 99, and there are 0 to use here"),
        (["simulate", "digits", "--cpus", "-1"], "Invalid value for '--cpus'"),
        (["simulate", "digits", "-s", "device=cuda"], "device = cuda"),
        (["simulate", "digits", "-s", "head-count=5000"], "head-count"),
        (["simulate", "digits", "-s", "min-clients=11"], "min-clients = 11"),
        (["simulate", "digits", "-s", "local-steps=0"], "local-steps = 0 is for separate machines"),
        (["bench", "round", "-s", "local-steps=0"], "local-steps = 0 is for separate machines"),
        (["simulate", "fashion"], "data-path"),
        (["simulate", "fashion", "-s", "data-path=/nowhere.npz"], "/nowhere.npz"),
        (["simulate", "--resume", "/nowhere"], "/nowhere holds no run to resume"),
        (["simulate", "digits", "--resume", "/x", "--out", "/y"], "leave --out out"),
        (["report", "/nowhere"], "/nowhere"),
        (["evaluate", "/nowhere"], "/nowhere"),
        (["sample", "/nowhere", "--out", "x"], "/nowhere"),
        (["simulate", "digits", "-s", "extractor=/nowhere"], "extractor = /nowhere is missing"),
        (["extractor", "gaussians-overlap"], "an extractor needs images"),
        (["export", "/nowhere", "x", "--class", "3"], "/nowhere holds no run"),
        (["steps", "/nowhere", "--steps", "ten"], "--steps ten"),
        (["simulate", "digits", "--bogus"], "No such option"),
        (["compare", "digits", "--methods", "pooled,nope"], "no method 'nope'"),
        (["compare", "digits", "--seeds", "0"], "--seeds 0"),
        (["game", "chess"], "case-one"),
        (["game", "overlap", "-s", "features=many"], "features"),
        (["dance"], "No such command 'dance'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, command_line, arguments, says):
    if arguments[-2:] == ["-s", "device=cuda"] and torch.cuda.is_available():
        arguments, says = ["simulate", "digits", "-s", "device=tpu"], "setting device"
    monkeypatch.chdir(tmp_path)
    code, out, err = command_line(*arguments)
    assert code == 2, err
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("error: ")
    assert says in err
    assert not list(tmp_path.rglob("config.toml")), "nothing was started"


@pytest.mark.parametrize(
    "arguments",
    [
        ["simulate", "digits", "-s", "head-count=5000"],
        ["compare", "digits", "--seeds", "0"],
        ["extractor", "gaussians-overlap"],
        ["game", "chess"],
    ],
)
def test_a_fresh_process_says_no_more_than_its_error_either(tmp_path, arguments):
    """Whatever it imports on the way warns of nothing."""
    result = fedmutual(*arguments, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stderr.startswith("error: ")


def test_lists_are_for_people_and_for_scripts(command_line):
    for command, key in (("presets", "preset"), ("settings", "setting")):
        rows = json.loads(command_line(command, "--json")[1])["rows"]
        shown = command_line(command)[1]
        assert all(row[key] in shown for row in rows)
        assert all(row["about"] for row in rows)


def test_a_reader_that_has_seen_enough_is_no_error():
    """As in `fedmutual settings | head -1`: the pipe is closed before anything is written."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([COMMAND, "--help"], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert done.stderr == ""


def test_help_tells_what_the_arguments_are(command_line):
    assert "PRESET is the name of a preset" in " ".join(command_line("simulate", "--help")[1].split())
    assert command_line()[0] == 2


def test_clients_have_one_thread_and_a_process_that_the_next_simulation_takes_on(small, tmp_path, monkeypatch):
    """One thread for their core, whatever this machine sets; and one start of Ray for all simulations of a block."""
    end_kept_ray()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    seen, client = tmp_path / "seen", ClientApp()

    @client.query()
    def greet(message: Message, context: Context) -> Message:
        seen.write_text(f"{os.getpid()} {torch.get_num_threads()}")
        raise RuntimeError("seen")

    def process_and_threads(place):
        with pytest.raises(RuntimeError, match=r"0 of 10 clients joined: .*seen"):
            Simulation(small(out=str(tmp_path / place)), cpus=1, app=MUTUAL._replace(client=client)).run()
        return seen.read_text().split()

    process, threads = process_and_threads("one")
    assert threads == "1"
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert process_and_threads("two") == [process, "1"]
    end_kept_ray()
    assert not ray.is_initialized()


def test_what_every_client_needs_is_wanted_before_anything_is_started(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus.accountants.analysis.rdp", None)  # as where it is not installed
    private = {"publish": "dp-sgd", "noise_multiplier": 1.0, "keep": "last", "evaluate_every": 0, "clip": 1.0}
    with pytest.raises(UserError, match=r"needs Opacus: pip install 'fedmutual\[dp\]'"):
        Simulation(small(**private))
    assert not (tmp_path / "run").exists()


def test_a_client_process_that_dies_costs_a_simulation_nothing(small, tmp_path):
    """It is killed once it has saved: its order is sent anew until Ray has started another process, which answers."""
    client, mark = ClientApp(), tmp_path / "killed"
    client.query()(hello)

    @client.train()
    def killed_once(message: Message, context: Context) -> Message:
        reply = train(message, context)
        if (reply.content["numbers"]["class"], reply.content["numbers"]["round"]) == (4, 2) and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return reply

    config = small(rounds=3, out=str(tmp_path / "ray"), store="")
    folder = Simulation(config, app=MUTUAL._replace(client=client)).run()
    assert mark.exists()
    history = read_history(folder)
    assert [(line["status"], line["step"]) for line in history] == [("ok", 3 * line["round"]) for line in history]
    assert_same(dict(sorted(read_networks(folder)[1].items())), networks(federate(small(rounds=3))))
