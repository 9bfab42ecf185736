"""`simulate DATA --minutes N` and `compare`: what is taken for data, what is refused, and what is written."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedmutual.config import RunConfig
from fedmutual.run_folder import MINUTES, PRESET
from fedmutual.settings import read_settings
from simulations.cli.minutes import Chosen, _task, is_data
from simulations.engine.simulation import Simulation
from simulations.experiments import timing
from tests.support.federation import LocalGrid


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    """Two classes of 30 and 12 points: the cheapest data of one's own."""
    points = np.random.default_rng(0).uniform(-1, 1, (42, 3)).astype(np.float32)
    np.savez(tmp_path / "points.npz", images=points, labels=np.repeat(["many", "few"], [30, 12]))
    return tmp_path / "points.npz"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timings of a moment, and no more steps than the least."""
    monkeypatch.setattr(timing, "SECONDS", 0.01)
    monkeypatch.setattr("simulations.experiments.choosing.MOST_STEPS", 100)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clients are real, and run in this process."""

    def start(simulation: Simulation, on_round, on_phase) -> None:
        grid = LocalGrid(range(simulation.classes), lambda order, reply: reply)
        simulation.app.serve(grid, simulation.prepared, on_round)

    monkeypatch.setattr(Simulation, "_start_flower", start)


def lines(error: str) -> list[str]:
    return [line for line in error.strip().splitlines() if not line.startswith("note: ")]


def test_a_preset_and_a_folder_of_one_name_are_not_confused(tmp_path, monkeypatch, command_line) -> None:
    monkeypatch.chdir(tmp_path)
    assert not is_data("digits")
    (tmp_path / "digits").mkdir()
    for command in ("simulate", "compare"):
        code, _, error = command_line(command, "digits")
        assert code == 2
        assert lines(error)[0].startswith("error: digits is a preset, and a folder here: write ./digits for the data")
    assert is_data("./digits")
    (tmp_path / "other").mkdir()
    (tmp_path / "own.toml").write_text("rounds = 2\n", encoding="utf-8")
    assert is_data("other")
    assert not is_data("own.toml")
    assert not is_data("nothing-of-that-name")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--minutes", "1"], "--minutes 1 is too short"),
        (["--minutes", "nan"], "--minutes nan is too short"),
        (["--minutes", "-3"], "--minutes -3 is too short"),
        (["-s", "local-steps=5"], "local-steps is what the minutes decide"),
        (["-s", "data=digits"], "data is read off"),
        (["-s", "beta-rule=none"], "setting beta-rule = 'none'"),
        (["-s", "size=8"], "size = 8 is for images"),
    ],
)
def test_bad_wishes_are_one_line(vectors, command_line, arguments, says) -> None:
    for command in ("simulate", "compare"):
        code, printed, error = command_line(command, vectors, *arguments)
        assert (code, printed, len(lines(error))) == (2, "", 1), error
        assert says in error


def test_minutes_do_not_go_with_resume_nor_with_data_in_no_files(tmp_path, command_line) -> None:
    code, _, error = command_line("simulate", "--resume", tmp_path, "--minutes", "5")
    assert (code, len(lines(error))) == (2, 1)
    assert "leave --minutes out" in error
    code, _, error = command_line("simulate", "gaussians-overlap", "--minutes", "5")
    assert (code, len(lines(error))) == (2, 1)
    assert "gaussians lie in no files" in error


def test_data_of_ones_own_end_in_a_report_and_a_preset_that_runs_again(
    vectors, tmp_path, command_line, quick, here
) -> None:
    run = tmp_path / "run"
    code, printed, error = command_line("simulate", vectors, "--minutes", "60", "-s", "samples=8", "--out", run)
    assert code == 0, error
    assert "plan: 2 classes of 12 to 30 samples, read as 3; an MLP of 3 layers of 192; 100 steps" in error
    assert "report:" in printed
    settings = read_settings(run / PRESET)
    assert (settings["data-path"], settings["samples"], settings["imbalance"]) == (str(vectors), 8, "none")
    config = RunConfig.of(read_settings(run / "config.toml"))
    assert RunConfig.of(settings, {"out": str(run)}).settings() == config.settings()
    record = json.loads((run / MINUTES).read_text())
    assert record["asked"] == 60
    assert record["seconds"].keys() >= {"choosing", "reading", "training", "measuring", "page"}
    assert record["foreseen"].keys() == {"reading", "extractor", "training", "measuring", "page"}
    assert 60 * record["taken"] == pytest.approx(sum(record["seconds"].values()))
    again = tmp_path / "again"
    code, _, error = command_line("simulate", run / PRESET, "-s", "seed=3", "--out", again)
    assert code == 0, error
    assert not (again / PRESET).exists()


def test_a_preset_gets_the_steps_of_its_minutes_and_keeps_all_else(tmp_path, command_line, quick, here) -> None:
    run = tmp_path / "run"
    code, _, error = command_line("simulate", "smoke", "--minutes", "60", "--out", run)
    assert code == 0, error
    before, after = (
        RunConfig.of(read_settings(path)).settings()
        for path in (Path("simulations/presets/smoke.toml").absolute(), run / "config.toml")
    )
    changed = {key for key in before if before[key] != after[key]} - {"out", "store"}
    assert changed == {"local-steps"}


def test_a_comparison_of_ones_own_data_goes_on_with_what_was_chosen(vectors, tmp_path, command_line, quick) -> None:
    asked = ("compare", vectors, "--minutes", "60", "--methods", "pooled,reweighted", "--seeds", "1")
    asked += ("-s", "samples=8", "--out", tmp_path / "cmp")
    code, _, error = command_line(*asked)
    assert code == 0, error
    settings = read_settings(tmp_path / "cmp" / PRESET)
    assert settings["test"] + settings["held-out"] >= 10
    written = (tmp_path / "cmp/pooled/seed-0/metrics.csv").stat().st_mtime_ns
    code, _, error = command_line(*asked)
    assert code == 0, error
    assert "goes on with the settings of" in error
    assert (tmp_path / "cmp/pooled/seed-0/metrics.csv").stat().st_mtime_ns == written
    others = tmp_path / "others.npz"
    others.write_bytes(vectors.read_bytes())
    for other, has in (
        (others, f"data-path = {vectors}, and {others} has {others}"),
        ("digits", "data = npz, and digits"),
    ):
        code, printed, error = command_line("compare", other, *asked[2:])
        assert (code, printed, len(lines(error))) == (2, "", 1)
        assert f"goes on with {has}" in error
    assert json.loads((tmp_path / "cmp" / MINUTES).read_text())["seconds"].keys() >= {"reading", "arms", "page"}


def test_parts_of_one_name_add_up() -> None:
    chosen = Chosen("x", 5, {})
    for _ in range(2):
        with chosen.part("extractor"):
            pass
    assert list(chosen.seconds) == ["extractor"]


def test_tuning_is_no_part_of_the_minutes(vectors, command_line) -> None:
    for arguments in ((vectors,), ("smoke", "--minutes", "60")):
        code, printed, error = command_line("compare", *arguments, "--tune")
        assert (code, printed, len(lines(error))) == (2, "", 1)
        assert "--tune trains several values of each method, which --minutes and DATA do not count" in error


def test_the_rule_that_is_planned_for_is_the_presets() -> None:
    assert list(_task(None, {"beta-rule": "auto"}).methods) == ["mutual-auto"]
    assert list(_task(("mutual,isolated", 2), {"beta-rule": "constant"}).methods) == ["mutual-constant", "isolated"]
    assert list(_task(None, {}).methods) == ["mutual-scarcity"]


def test_classifiers_without_a_test_part_are_refused_before_the_training(tmp_path, command_line) -> None:
    code, printed, error = command_line(
        "simulate", "smoke", "-s", "tstr-seeds=2", "-s", "test=0", "--out", tmp_path / "run"
    )
    assert (code, printed, len(lines(error))) == (2, "", 1)
    assert "the data have no test part, on which to test classifiers" in error
    assert not (tmp_path / "run").exists()
