"""What a person sees of a long command: on a terminal, in a notebook, and in the file that a job's output goes to."""

import builtins
import os
import pty
import re
import subprocess
import sys
import time

import pytest

from simulations import terminal
from simulations.terminal import Phase, pause, phases, progress

WORK = """
import time
from simulations import terminal
terminal.FIRST = 0.05
with terminal.phases(then="samples and the report") as shown:
    shown.begin("starting Ray")
    time.sleep(0.2)
    shown.begin("training", 4, "rounds")
    for done in range(1, 5):
        time.sleep(0.2)
        shown.advance(done, f"worst held-out loss 0.{done} ([red]a name that is too long for any line[/] {'x' * 90})")
{end}
"""


def seen_on_a_terminal(code: str) -> str:
    """What a pseudo-terminal of 80 columns receives, set up as a notebook does it for `!command`."""
    leader, follower = pty.openpty()
    surroundings = {**os.environ, "TERM": "xterm-color", "FORCE_COLOR": "1", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=follower, stderr=follower, env=surroundings)
    os.close(follower)
    received = b""
    while True:
        try:
            received += (part := os.read(leader, 4096))
        except OSError:  # what Linux says at the end of a pseudo-terminal
            break
        if not part:
            break
    process.wait(timeout=60)
    os.close(leader)
    return received.decode()


def last_states(received: str) -> list[str]:
    """The lines as they stand in the end: to go up and erase takes back a line, a carriage return begins it anew."""
    received = re.sub(r"[^\n]*\n\r*(\x1b\[\?25h)?\r*\x1b\[1A\x1b\[2K", "", received)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", lambda code: "\0" if code[0] == "\x1b[2K" else "", received)
    lines = [re.split(r"[\r\0]", line.rstrip("\r"))[-1].rstrip() for line in plain.split("\n")]
    return [line for line in lines if line]


def test_on_a_terminal_each_phase_is_one_line_that_never_folds_nor_moves_up():
    received = seen_on_a_terminal(WORK.replace("{end}", ""))
    assert not re.search(r"\x1b\[\d*[ABFH]", received), "a notebook shows no line above the last one anew"
    ray, training = last_states(received)
    assert re.fullmatch(r"starting Ray done in \d s", ray)
    assert re.match(r"training ━{6} 4/4 rounds in \d s, worst held-out loss 0.4", training)
    shown = re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", received))
    assert max(map(len, shown)) <= 80
    under_way = re.compile(r"━ ([123])/4 rounds, (about \d s left|almost done), worst held-out loss 0.\1")
    assert any(map(under_way.search, shown))


def test_an_error_on_a_terminal_leaves_no_half_bar():
    failed = seen_on_a_terminal(WORK.replace("{end}", "    raise SystemExit('error: no')"))
    assert last_states(failed)[1:] == ["error: no"]


@pytest.mark.parametrize("forced", [{}, {"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}])
def test_a_pipe_gets_whole_lines(forced):
    """A notebook sets FORCE_COLOR for what it starts, also where the output is no terminal."""
    done = subprocess.run(
        [sys.executable, "-c", WORK.replace("{end}", "")], capture_output=True, text=True, env={**os.environ, **forced}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "\x1b" not in done.stderr
    assert "\r" not in done.stderr
    lines = done.stderr.splitlines()
    assert re.fullmatch(r"starting Ray: \d s so far; then samples and the report", lines[0])
    assert re.fullmatch(r"starting Ray: done in \d s", lines[1])
    assert re.match(r"training: 0/4 rounds, 0 s so far; then samples and the report", lines[2])
    assert re.match(r"training: 4/4 rounds in 1 s, worst held-out loss 0.4 \(\[red\]a name", lines[-1])


class ZMQInteractiveShell:
    """By this name a kernel's shell is known."""


def test_a_kernel_of_a_notebook_gets_whole_lines(monkeypatch, capsys):
    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(terminal, "FIRST", 0.02)
    with progress("training", 3, "rounds") as advance:
        advance(1)
        time.sleep(0.2)
    first, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"training: 1/3 rounds, (about 0 s left|almost done), 0 s so far", first)
    assert last == "training: 1/3 rounds in 0 s"


def test_what_is_over_at_once_is_no_line_and_neither_is_what_failed(monkeypatch, capsys):
    with phases() as shown:
        shown.begin("reading the data", 3, "classes")
        shown.begin("starting Ray")
    monkeypatch.setattr(terminal, "FIRST", 0.02)

    def fail():
        with progress("training", 3, "rounds"):
            time.sleep(0.1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert capsys.readouterr().err.splitlines() == ["training: 0/3 rounds, 0 s so far"]


def test_lines_become_rare():
    elapsed, lines = 0.0, 0
    while elapsed < 10 * 3600:
        elapsed += pause(elapsed)
        lines += 1
        if elapsed < 60:
            assert lines <= 12
    assert lines < 180
    assert pause(36000) == 300  # and yet no silence is longer than five minutes


def test_a_phase_that_goes_on_where_another_ended_counts_its_own_units_alone(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    resumed = Phase("training", 40, "rounds", done=30)
    now[0] += 10
    resumed.advance(31)
    assert resumed.words() == "31/40 rounds, about 2 min left, 10 s so far"
    now[0] += 5
    assert resumed.left == "about 1 min left"
    now[0] += 500  # a round that takes longer than those before it
    assert resumed.left == "about 1 min left"
    assert Phase("comparing", 4, "arms", done=3, timed=False).left == ""
