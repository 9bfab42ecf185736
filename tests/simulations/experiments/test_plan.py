"""Comparisons: every arm an ordinary run folder, equal budgets, and nothing that is done done again."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from fedmutual.baselines.predictions import Composed
from fedmutual.config import RunConfig
from fedmutual.errors import UserError
from fedmutual.methods import METHODS
from fedmutual.run_folder import read_history
from simulations.experiments.arm import is_finished, is_trained, run_arm
from simulations.experiments.methods import RECIPES
from simulations.experiments.plan import plan
from simulations.runs.measuring import evaluate
from simulations.runs.membership import audit_run
from simulations.runs.networks import class_networks, read_networks
from tests.simulations.engine.test_simulation import COMMAND, assignments
from tests.support.federation import SMALL, assert_same, federate, networks

HERE = [name for name, recipe in RECIPES.items() if not recipe.federated]
FACTS = {"name", "method", "class_names", "training_counts", "status", "versions", "hardware", "parameters", "data"}
FACTS |= {"gradient_steps_per_class", "samples_seen_per_class", "bytes_down", "bytes_up", "seconds_training"}


def config_of(**changes):
    return RunConfig.of({**SMALL, "samples": 12}, {key.replace("_", "-"): value for key, value in changes.items()})


@pytest.mark.parametrize("method", HERE)
def test_every_method_ends_in_an_ordinary_run_folder(method, tmp_path):
    config, folder = config_of(), tmp_path / "arm"
    run_arm(method, config, folder)
    run = json.loads((folder / "run.json").read_text())
    assert set(run) >= FACTS
    assert (run["method"], run["status"], run["data"]) == (method, "done", METHODS[method].data)
    assert all(bool(run[moved]) == (run["data"] == "stays") for moved in ("bytes_up", "bytes_down"))
    if method not in ("copy-head", "kernel-density", "memory"):
        assert (run["gradient_steps_per_class"], run["samples_seen_per_class"]) == (6, 48)
        assert read_history(folder)[-1]["round"] == 2
    round_, of_class = class_networks(folder, "last", torch.device("cpu"))
    assert round_ == 2
    for y in range(10):
        output = of_class[y](torch.randn(3, 1, 8, 8), torch.full((3,), 4.0))
        assert output.shape == (3, 1, 8, 8)
        assert isinstance(of_class[y], Composed) == (method == "predictions")
    attacked = {row.get("part") for row in json.loads((folder / "audit.json").read_text())["rows"]}
    assert attacked == ({"published"} if method == "pfdm" else {None})
    assert f"\n{method},0,worst,,fd," in (folder / "metrics.csv").read_text().replace("\r", "")
    written = (folder / "run.json").stat().st_mtime_ns
    run_arm(method, config, folder)
    assert (folder / "run.json").stat().st_mtime_ns == written, "a finished arm is not run again"


@pytest.mark.parametrize("method", ["pooled", "central-igd"])
def test_an_arm_of_one_process_that_was_cut_short_starts_anew(method, tmp_path):
    class Cut(BaseException):
        pass

    def cut(round_):
        raise Cut

    config = config_of(samples=0)
    with pytest.raises(Cut):
        run_arm(method, config, tmp_path / "cut", on_round=cut)
    assert not is_trained(tmp_path / "cut")
    torch.manual_seed(5)  # what ran before must not matter
    for folder in ("cut", "through"):
        run_arm(method, config, tmp_path / folder)
    assert is_finished(tmp_path / "cut", config)
    assert len(read_history(tmp_path / "cut")) == 20
    assert_same(read_networks(tmp_path / "cut")[1], read_networks(tmp_path / "through")[1])


def test_memory_scores_as_memorisation(tmp_path):
    run_arm("memory", config_of(), tmp_path / "arm")
    rows = (tmp_path / "arm" / "metrics.csv").read_text().splitlines()
    assert [row.rsplit(",", 1)[1] for row in rows if ",memorisation," in row] == ["1.0"] * 12


def test_an_arm_is_measured_and_audited_as_the_commands_would(tmp_path):
    run_arm("copy-head", config_of(), tmp_path / "arm")
    metrics, audited = ((tmp_path / "arm" / name).read_text() for name in ("metrics.csv", "audit.json"))
    evaluate(tmp_path / "arm")
    assert (tmp_path / "arm" / "metrics.csv").read_text() == metrics
    assert audit_run(tmp_path / "arm") == json.loads(audited)["rows"]


def arm_of(folder, method):
    return folder / method / "seed-0"


def test_a_killed_comparison_goes_on_and_its_isolated_arm_is_the_simulation_with_beta_0(small, tmp_path, command_line):
    folder = tmp_path / "cmp"
    settings = {**SMALL, "rounds": 12, "samples": 12}
    command = ["compare", "digits", "--methods", "copy-head,isolated", "--seeds", "1", "--cpus", "2"]
    command += ["--out", str(folder), *assignments(settings)]
    process = subprocess.Popen([COMMAND, *command], stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and len(read_history(arm_of(folder, "isolated"))) < 15:
        time.sleep(0.02)
    assert process.poll() is None, "it ended before it could be struck"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = arm_of(folder, "copy-head") / "metrics.csv"
    written = finished.stat().st_mtime_ns

    code, out, err = command_line(*command, "--json")
    assert code == 0, err
    assert finished.stat().st_mtime_ns == written
    rows = {row["method"]: row for row in json.loads(out)["rows"]}
    assert list(rows) == ["isolated", "copy-head"]
    assert rows["copy-head"]["bytes"] == 0 < rows["isolated"]["bytes"]
    assert all(0 <= row["leakage"] <= 1 for row in rows.values())
    assert rows["isolated"]["parameters"] == 10 * rows["copy-head"]["parameters"]
    simulated = federate(small(rounds=12, beta=0.0))
    assert_same(dict(sorted(read_networks(arm_of(folder, "isolated"))[1].items())), networks(simulated))
    assert json.loads((arm_of(folder, "isolated") / "run.json").read_text())["gradient_steps_per_class"] == 36
    assert not (arm_of(folder, "isolated") / "clients").exists()
    assert (folder / "report.html").stat().st_size > 10_000

    code, out, err = command_line(*command)  # nothing is left to do
    assert code == 0, err
    assert "fd isolated" in out
    code, _, err = command_line(*command, "-s", "batch=9")
    assert code == 2
    assert "holds another comparison's runs (batch = 8, not 9)" in err


def test_an_arm_that_fails_is_named_and_the_others_are_done(tmp_path, command_line):
    folder = tmp_path / "cmp"
    changes = ["-s", "pooled.learning-rate=1e30", *assignments(SMALL)]
    command = ["compare", "digits", "--methods", "pooled,copy-head", "--seeds", "1", "--out", folder, *changes]
    code, _, err = command_line(*command)
    assert code == 1
    assert "error: 1 of 2 arms failed" in err.splitlines()[-1]
    assert "pooled, seed 0: all classes, round 1, local step" in err.splitlines()[-1]
    assert is_finished(arm_of(folder, "copy-head"), config_of(samples=0))
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("settings", "methods", "seeds", "says"),
    [
        (
            {},
            "pooled,fedavgg",
            1,
            "no method 'fedavgg': there are mutual-auto, mutual-scarcity, mutual-constant",
        ),
        ({}, "", 1, "no method ''"),
        ({}, "pooled,pooled", 1, "names a method twice"),
        ({}, "pooled", 0, "--seeds 0: a comparison needs at least one seed"),
        ({"pooled.rounds": 3}, "pooled", 1, "'pooled.rounds' would give pooled another budget"),
        ({"memory.beta": 3}, "memory", 1, "for memory alone one of: none"),
        ({"poled.tau": 3}, "pooled", 1, "no method 'poled'"),
        ({"cbdm.tau": -3}, "cbdm", 1, "setting tau = -3"),
        ({"participation": 0.5}, "pooled,isolated", 1, "budgets would be unequal"),
        ({"held-out": 0}, "copy-head,ridge", 1, "ridge chooses its weight decay by held-out samples"),
        ({"publish": "noise-split"}, "isolated,fedper", 1, "fedper does not do what publish = noise-split asks"),
        ({"wire-dtype": "bfloat16"}, "isolated,fedavg", 1, "fedavg rounds nothing that it sends"),
        ({"held-out": 1}, "isolated,mutual-auto", 1, "mutual-auto weighs peers by held-out samples"),
        ({"beta-rule": "auto"}, "isolated,central-igd", 1, "central-igd knows no beta-rule = auto"),
        ({}, "mutual,isolated,mutual-scarcity", 1, "names a method twice"),
        ({"held-out": 0}, "kernel-density", 1, "kernel-density chooses its bandwidth by held-out samples"),
        ({"network": "random-features"}, "coral", 1, "coral shapes features"),
        ({"network": "random-features"}, "cm", 1, "cm reserves a part of each layer"),
        ({"process": "ou", "pfdm.split": 1e-5}, "pfdm", 1, "leaves no training time below it"),
        ({"wire-dtype": "bfloat16"}, "isolated,pfdm", 1, "pfdm rounds nothing that it sends"),
        ({"publish": "noise-split"}, "predictions", 1, "predictions does not do what publish = noise-split asks"),
        ({"network": "random-features"}, "fedper", 1, "fedper averages all but the first and last layers"),
        ({"fedavg.local-steps": 4}, "fedavg", 1, "fedavg.local-steps = 4 does not divide the 6 gradient steps"),
        ({"draws": "fixed"}, "isolated,cbdm", 1, "cbdm draws anew at each step"),
        ({"beta": 0.0}, "isolated,mutual-constant", 1, "beta = 0 makes mutual-constant the same as isolated"),
        ({"head-count": 5000}, "pooled", 1, "head-count"),
        ({"data": "npz", "data-path": "/nowhere"}, "pooled", 1, "/nowhere"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_begun(tmp_path, settings, methods, seeds, says):
    with pytest.raises(UserError, match=re.escape(says)):
        plan({**SMALL, **settings}, methods, seeds, tmp_path / "cmp")
    assert not (tmp_path / "cmp").exists()


def test_folders_of_something_else_are_refused(tmp_path):
    folder = tmp_path / "cmp"
    made = plan(SMALL, "pooled,cbdm", 2, folder)
    assert [place.relative_to(folder) for place in made.places] == [
        Path(f"{method}/seed-{seed}") for seed in (0, 1) for method in ("pooled", "cbdm")
    ]
    assert made.arms["cbdm", 1].seed == 1
    plan(SMALL, "pooled,reweighted", 3, folder)  # more methods and seeds join it
    with pytest.raises(UserError, match=re.escape("(local-steps = 3, not 4)")):
        plan({**SMALL, "local-steps": 4}, "pooled", 1, folder)
    run_arm("cbdm", made.arms["cbdm", 0], made.place(("cbdm", 0)))
    plan(SMALL, "cbdm", 1, folder)
    with pytest.raises(UserError, match=re.escape("(tau = 1.0, not 0.5)")):
        plan({**SMALL, "cbdm.tau": 0.5}, "cbdm", 1, folder)
    with pytest.raises(UserError, match="holds something else than a comparison"):
        plan(SMALL, "pooled", 1, tmp_path / "cmp" / "cbdm")


def test_every_method_of_the_registry_can_be_run_but_for_what_simulate_calls_its_runs():
    assert list(RECIPES) == [name for name in METHODS if name != "mutual"]


@pytest.mark.parametrize("rule", ["scarcity", "constant", "auto"])
def test_mutual_is_the_rule_of_the_settings(tmp_path, rule):
    made = plan({**SMALL, "beta-rule": rule}, "mutual,isolated", 1, tmp_path / "cmp")
    assert list(made.arms) == [(f"mutual-{rule}", 0), ("isolated", 0)]
    assert made.arms[f"mutual-{rule}", 0].mutual.rule == rule


def test_settings_of_one_method_reach_it_alone(tmp_path):
    made = plan({**SMALL, "mutual-constant.beta": 1.0, "fedprox.proximal-mu": 0.5}, "all", 1, tmp_path / "cmp")
    betas = {name: config.mutual.beta for (name, _), config in made.arms.items()}
    assert (betas["mutual-constant"], betas["mutual-scarcity"], betas["isolated"]) == (1.0, 3.0, 0.0)
    assert made.arms["mutual-constant", 0].mutual.rule == "constant"
    assert {name for (name, _), config in made.arms.items() if config.rivals.proximal_mu == 0.5} == {"fedprox"}
    budgets = {
        (c.rounds, c.local_steps, c.optimiser.batch, c.network.width, c.optimiser.learning_rate, c.seed)
        for c in made.arms.values()
    }
    assert len(budgets) == 1
