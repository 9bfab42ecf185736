"""`fedmutual watch` beside a real simulation: it follows it, ends with it, and tells when it was killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedmutual.run_folder import HISTORY, is_held, read_facts, read_history
from simulations.report import watch as watching
from tests.support.federation import SMALL
from tests.support.run_folders import fabricate

COMMAND = str(Path(sys.executable).parent / "fedmutual")
RELOAD = '<meta http-equiv="refresh"'


@pytest.fixture
def start():
    """Start the command in a process group of its own, which ends with the test."""
    started = []

    def begin(*arguments: object) -> subprocess.Popen:
        command = [COMMAND, *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        # A shell starts its background jobs with Ctrl-C ignored, and what tests start there would inherit that.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        started.append(subprocess.Popen(command, **pipes, text=True, start_new_session=True))
        signal.signal(signal.SIGINT, before)
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def simulated(start, folder: Path, rounds: int) -> subprocess.Popen:
    """A simulation of which the first round is over."""
    settings = {**SMALL, "rounds": rounds, "samples": 0}
    process = start("simulate", "digits", "--out", folder, *(f"-s{key}={value}" for key, value in settings.items()))
    wait_for(lambda: read_history(folder), process)
    return process


def wait_for(what, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def test_it_draws_what_there_is_until_the_training_is_over(start, tmp_path):
    folder = tmp_path / "run"
    page = folder / "report.html"
    trained = simulated(start, folder, rounds=30)
    watched = start("watch", folder, "--every", "0.5")
    wait_for(page.exists, watched)
    first = page.read_text(encoding="utf-8")
    assert f'{RELOAD} content="1">' in first
    assert "This page loads itself again" in first
    said, complained = watched.communicate(timeout=300)
    assert watched.returncode == 0, complained
    assert said.splitlines() == [f"page: {page}", f"{folder} is done after 30 of 30 rounds"]
    _, log = trained.communicate(timeout=300)
    assert trained.returncode == 0, log
    last = page.read_text(encoding="utf-8")
    assert RELOAD not in last
    assert len(last) > len(first)
    for phase in ("starting Ray", "training"):  # the log of a job names what takes time
        assert re.search(rf"^{phase}: ", log, re.MULTILINE)


def test_ctrl_c_leaves_the_run_alone_and_a_run_that_is_killed_is_told_and_not_waited_for(start, tmp_path):
    folder = tmp_path / "run"
    page = folder / "report.html"
    trained = simulated(start, folder, rounds=5000)
    watched, still = start("watch", folder), start("watch", folder, "--every", "0.5", "--out", tmp_path / "still.html")
    wait_for(page.exists, watched)
    wait_for((tmp_path / "still.html").exists, still)
    before = len(read_history(folder))
    watched.send_signal(signal.SIGINT)
    said, complained = watched.communicate(timeout=120)
    assert (watched.returncode, said.splitlines()[1:]) == (0, [f"{folder} is no longer watched"]), complained
    assert RELOAD not in page.read_text(encoding="utf-8")
    wait_for(lambda: len(read_history(folder)) > before, trained)
    assert is_held(folder)

    os.killpg(trained.pid, signal.SIGKILL)
    trained.communicate()
    assert not is_held(folder)
    assert read_facts(folder).status == "running"  # no file says that it is over
    _, complained = still.communicate(timeout=120)
    assert still.returncode == 1
    done = max(line.round for line in read_history(folder))
    says = f"error: no process trains {folder} any more: it ended after {done} of 5000 rounds without a word"
    assert complained.splitlines()[-1].startswith(says)
    assert RELOAD not in (tmp_path / "still.html").read_text(encoding="utf-8")


def running(folder: Path) -> Path:
    """A folder as a run leaves it that is killed while it writes a line."""
    fabricate(folder, status="running")
    (folder / "metrics.csv").unlink()
    with (folder / HISTORY).open("a", encoding="utf-8") as file:
        file.write('{"round": 4, "cla')
    return folder


def test_a_half_written_line_is_left_out_and_nothing_is_drawn_without_news(tmp_path, monkeypatch):
    folder = running(tmp_path / "run")
    steps = iter(["nothing", "nothing", "a line", "nothing", "the end"])
    drawn, held = [], [True]

    def sleep(seconds: float) -> None:
        match next(steps):
            case "a line":
                with (folder / HISTORY).open("a", encoding="utf-8") as file:
                    file.write('ss": 0, "loss": 0.5, "status": "ok"}\n')
            case "the end":
                held[0] = False

    monkeypatch.setattr(watching.time, "sleep", sleep)
    monkeypatch.setattr(watching, "is_held", lambda folder: held[0])
    last = watching.watch(folder, tmp_path / "page.html", 3.0, lambda run: drawn.append(run.rounds_done))
    assert drawn == [3, 4, 4]
    assert last.facts.status == "running"


def test_drawing_takes_a_tenth_of_the_time_at_most(tmp_path, monkeypatch):
    folder, slept, now = running(tmp_path / "run"), [], [100.0]
    monkeypatch.setattr(watching, "is_held", lambda folder: not slept)
    monkeypatch.setattr(watching.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(watching.time, "sleep", slept.append)

    def slowly(run):
        now[0] += 2.0

    watching.watch(folder, tmp_path / "page.html", 0.5, slowly)
    assert slept == [20.0]


@pytest.mark.parametrize("status", ["done", "stopped"])
def test_a_run_that_is_over_is_drawn_once(tmp_path, command_line, status):
    folder = fabricate(tmp_path / "run", status=status)
    code, said, _ = command_line("watch", folder, "--out", tmp_path / "there" / "page.html")
    assert (code, said.splitlines()[-1]) == (0, f"{folder} is {status} after 3 of 3 rounds")
    assert RELOAD not in (tmp_path / "there" / "page.html").read_text(encoding="utf-8")


def test_what_is_not_one_run_is_refused_in_one_line(tmp_path, command_line):
    (tmp_path / "empty").mkdir()
    for method in ("mutual", "isolated"):
        fabricate(tmp_path / "cmp" / method / "seed-0", method)
    for place, says in (("empty", "holds no run"), ("nowhere", "holds no run"), ("cmp", "holds 2 runs: watch one of")):
        code, said, complained = command_line("watch", tmp_path / place)
        assert (code, said, len(complained.splitlines())) == (2, "", 1)
        assert says in complained


def test_a_damaged_folder_is_one_line(tmp_path, command_line):
    folder = running(tmp_path / "run")
    (folder / "run.json").write_text(json.dumps({"name": "x"}))
    code, _, complained = command_line("watch", folder)
    assert code == 2
    assert "lacks method" in complained.splitlines()[-1]
