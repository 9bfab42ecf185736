"""A soak: that its faults strike as planned, that what is wrong is found, and a short one with real processes."""

import json
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from fedmutual.run_folder import read_history
from simulations.upkeep.soak import ALONE, APART, FAULTS, account, growth, plan, read_memory


def history_of(faults, rounds=20, classes=10):
    """The history that a run with these faults should have."""
    return [
        {"round": round_, "class": y, "status": FAULTS.get(faults.get((round_, y)), (0, "ok"))[1], "reason": ""}
        for round_ in range(1, rounds + 1)
        for y in range(classes)
    ]


@pytest.mark.parametrize("rounds", [20, 500])
def test_every_fault_strikes_as_often_as_it_should_and_slow_ones_one_at_a_time(rounds):
    faults = plan(rounds, 10, seed=0)
    assert Counter(faults.values()) == {name: max(1, round(share * rounds * 10)) for name, (share, _) in FAULTS.items()}
    assert all(1 < round_ <= rounds and 0 <= y < 10 for round_, y in faults)
    slow = sorted(round_ for (round_, _), fault in faults.items() if fault in ALONE)
    assert all(later - earlier >= APART for earlier, later in pairwise(slow))
    assert plan(rounds, 10, seed=1) != faults


def test_a_history_as_planned_is_accounted_for():
    faults = plan(20, 10, seed=0)
    rows, wrong = account(history_of(faults), faults, 20, 10)
    assert wrong == []
    assert sum(row["replies"] for row in rows) == 200
    for row in rows:
        status = FAULTS.get(row["fault"], (0, "ok"))[1]
        assert row[status] == row["replies"] > 0


@pytest.mark.parametrize("spoil", ["lost line", "second line", "wrong status", "unplanned"])
def test_a_history_that_is_not_as_planned_is_told(spoil):
    faults = {(5, 2): "garbage"}
    history = history_of(faults)
    if spoil == "lost line":
        history.pop(7)
    elif spoil == "second line":
        history.insert(7, history[7])
    else:
        line = history[4 * 10 + 2] if spoil == "wrong status" else history[100]
        line["status"] = "ok" if spoil == "wrong status" else "missing"
    _, wrong = account(history, faults, 20, 10)
    assert len(wrong) == 1


def test_growth_is_counted_from_the_end_of_a_process_first_rounds():
    settling = {r: 10.0 + r for r in range(1, 51)}
    later = {r: 60.0 for r in range(51, 91)} | {70: 90.0} | {r: 66.0 for r in range(91, 101)}
    (row,) = growth({("server", 1): settling | later, ("short", 2): {1: 5.0}})
    assert (row["process"], row["rounds"], row["settled_mb"], row["end_mb"]) == ("server", 100, 60.0, 66.0)
    assert row["most_mb"] == 90.0
    assert row["growth"] == pytest.approx(0.1)


@pytest.mark.faults
def test_a_short_soak_accounts_for_every_reply_and_leaves_no_process(tmp_path):
    command = [sys.executable, "-c", "from simulations.cli.app import main; main()"]
    done = subprocess.run(
        [*command, "soak", "--rounds", "20", "--out", tmp_path / "soak", "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    struck = {row["fault"]: row["replies"] for row in json.loads(done.stdout)["rows"] if "fault" in row}
    assert struck == {"none": 185, "raises": 4, "garbage": 4, "replay": 4, "killed": 1, "late": 1, "lost": 1}
    assert len(read_history(tmp_path / "soak")) == 200
    memory = read_memory(tmp_path / "soak")
    assert {"server", "raylet", "gcs_server", "ray::ClientAppActor"} <= {process for process, _ in memory}
    assert Path(tmp_path / "soak" / "memory.png").stat().st_size > 10_000
