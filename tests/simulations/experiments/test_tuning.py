"""Fair budgets: a method's one setting is chosen by held-out samples, on a grid of the same size."""

import json
import re

import pytest

from fedmutual.config import RunConfig
from fedmutual.errors import UserError
from fedmutual.methods import METHODS
from fedmutual.run_folder import read_facts
from fedmutual.settings import read_settings
from simulations.experiments.methods import RECIPES, grid_of
from simulations.experiments.plan import plan
from simulations.experiments.tuning import chosen_settings, read_choices, run_held_out_loss, to_tune, tune
from tests.support.federation import SMALL

SETTINGS = {**SMALL, "samples": 0}


def test_every_grid_is_of_the_same_size_and_may_be_given_for_its_method():
    config = RunConfig().but(local_steps=200)
    knobs = {name: recipe.knob for name, recipe in RECIPES.items() if recipe.knob}
    assert {len(grid_of(knob, config)) for knob in knobs.values()} == {3}
    assert all(knob.setting in RECIPES[name].own for name, knob in knobs.items())
    assert RECIPES.keys() - knobs.keys() == {"ridge", "kernel-density", "copy-head", "memory"}
    assert grid_of(RECIPES["fedavg"].knob, config) == [200, 40, 8]


def test_local_steps_of_one_method_keep_its_budget(tmp_path):
    made = plan({**SETTINGS, "local-steps": 6, "fedavg.local-steps": 2}, "fedavg,fedprox", 1, tmp_path / "cmp")
    fast, slow = made.arms["fedavg", 0], made.arms["fedprox", 0]
    assert (fast.rounds, fast.local_steps, slow.rounds, slow.local_steps) == (6, 2, 2, 6)
    assert (fast.federation.evaluate_every, fast.federation.checkpoint_every) == (3, 3)


def test_what_is_chosen_has_the_smallest_held_out_loss_and_is_chosen_once(tmp_path):
    folder = tmp_path / "cmp"
    made = plan({**SETTINGS, "seed": 3, "cbdm.tau": 2.0}, "pooled,cbdm,memory", 2, folder)
    done = []
    choices = tune(made, to_tune(made, {"cbdm.tau": 2.0}), on_value=done.append)
    assert list(choices) == ["pooled"]  # a person has set cbdm's, and memory has nothing
    assert (sorted(done), done[-1]) == (done, 3)
    runs = [folder / "tuning" / str(index) / "pooled" / "seed-3" for index in range(3)]
    rates = [read_settings(run / "config.toml")["learning-rate"] for run in runs]
    losses = [run_held_out_loss(run) for run in runs]
    assert choices["pooled"] == {
        "setting": "learning-rate",
        "grid": rates,
        "losses": losses,
        "chosen": rates[losses.index(min(losses))],
    }
    assert rates == [0.0005, 0.001, 0.002]
    assert chosen_settings(folder) == {"pooled.learning-rate": choices["pooled"]["chosen"]}
    written = [(run / "run.json").stat().st_mtime_ns for run in runs]
    assert to_tune(made, {"cbdm.tau": 2.0}) == {}
    (folder / "tuning.json").unlink()  # as after a kill: nothing is trained again
    assert tune(made, to_tune(made, {"cbdm.tau": 2.0})) == choices
    assert [(run / "run.json").stat().st_mtime_ns for run in runs] == written
    (folder / "tuning.json").write_text("{")
    with pytest.raises(UserError, match=re.escape("tuning.json is not valid JSON")):
        read_choices(folder)


def test_a_value_for_all_has_its_effect_also_where_every_method_has_tuned_another(tmp_path):
    settings = {**SETTINGS, "beta": 0.5, "mutual-scarcity.beta": 1.0}
    made = plan(settings, "mutual-scarcity,isolated", 1, tmp_path / "cmp", given={"beta": 0.5})
    assert made.arms["mutual-scarcity", 0].mutual.beta == 1.0


def test_nothing_is_tuned_without_held_out_samples(tmp_path):
    made = plan({**SETTINGS, "held-out": 0, "evaluate-every": 0}, "pooled", 1, tmp_path / "cmp")
    with pytest.raises(UserError, match="set held-out above 0"):
        to_tune(made, {})


def test_a_tuned_comparison_says_who_is_tuned(tmp_path, command_line):
    folder = tmp_path / "cmp"
    command = ["compare", "smoke", "--methods", "cbdm,ridge,memory", "--seeds", "1", "--tune", "--out", folder]
    command += ["-s", "samples=12", "-s", "audit-candidates=10"]
    code, out, err = command_line(*command, "--json")
    assert code == 0, err
    tuned = {row["method"]: row["tuned"] for row in json.loads(out)["rows"]}
    chosen = read_choices(folder)["cbdm"]["chosen"]
    assert tuned == {"cbdm": f"tau {chosen:.3g}", "ridge": "weight-decay", "memory": "no"}
    arm = folder / "cbdm" / "seed-0"
    assert read_settings(arm / "config.toml")["tau"] == chosen
    assert read_facts(arm).tuned["grid"] == pytest.approx([1 / 3, 1, 3])
    page = (folder / "report.html").read_text()
    assert all(words in page for words in ("by held-out samples", f"tau {chosen:.3g}"))
    written = (arm / "run.json").stat().st_mtime_ns
    code, out, _ = command_line(*command)
    assert (code, "tuned" in out) == (0, True)
    assert (arm / "metrics.csv").stat().st_mtime_ns < written  # nothing was trained again


def test_every_method_runs_on_the_smallest_preset(tmp_path, command_line):
    command = ["compare", "smoke", "--methods", "all", "--seeds", "1", "--out", tmp_path / "cmp", "--json"]
    code, out, err = command_line(*command, "-s", "samples=12", "-s", "audit-candidates=10")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    measured = {row["method"]: row for row in rows if (row["metric"], row["class"]) == ("fd", "worst")}
    assert list(measured) == [name for name in METHODS if name in RECIPES]
    assert all(bool(row["bytes"]) == (METHODS[name].data == "stays") for name, row in measured.items())
