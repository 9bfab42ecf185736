"""`fedmutual compare --tune`: each method tunes one setting, by the same rule, on a grid of the same size.

Each value is trained on the comparison's first seed with the whole budget, into an ordinary run folder. The one whose
networks have the smallest held-out denoising loss, the mean over classes, is kept for all seeds. No test sample takes
part. What was chosen is in `tuning.json`, and a value that is trained is not trained again.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from fedmutual.checkpoint import write_atomic
from fedmutual.config import RunConfig
from fedmutual.data import open_source
from fedmutual.device import dtype_of, pick_device
from fedmutual.diffusion import make_process
from fedmutual.errors import UserError
from fedmutual.learning.held_out import held_out_loss
from fedmutual.run_folder import change_facts, holds_run
from simulations.engine.cluster import kept_ray
from simulations.experiments.methods import RECIPES, Knob, grid_of
from simulations.experiments.plan import Plan, at_equal_steps, check_arms, run_arms
from simulations.runs.networks import class_networks, run_config

CHOICES = "tuning.json"
"""In the comparison's folder: {method: setting, grid, losses, chosen}."""

Choices = dict[str, dict[str, Any]]

OnValue = Callable[[int], None]
"""Takes how many values are done."""


def knob_of(name: str, given: Mapping[str, Any]) -> Knob | None:
    """What a method tunes; nothing where it has no knob, or a person has set it for this method."""
    knob = RECIPES[name].knob
    return None if knob is None or f"{name}.{knob.setting}" in given else knob


def read_choices(folder: Path) -> Choices:
    """What an earlier call has chosen.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / CHOICES
    try:
        choices: Choices = json.loads(path.read_bytes()) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): delete it, and the choice is worked out again") from None
    return choices


def chosen_settings(folder: Path) -> dict[str, Any]:
    """What an earlier call has chosen, as settings of single methods; raises as `read_choices`."""
    return {f"{name}.{choice['setting']}": choice["chosen"] for name, choice in read_choices(folder).items()}


Waiting = dict[str, tuple[str, list[RunConfig]]]
"""{method: its setting, and the settings of each value}, of the methods that tune and have not yet chosen."""


def to_tune(made: Plan, given: Mapping[str, Any]) -> Waiting:
    """What is left to tune.

    Raises:
        UserError: there are no held-out samples to choose by, a value that was given would lose to a grid, or an arm
            was trained without.
    """
    seed, chosen, waiting = min(seed for _, seed in made.arms), read_choices(made.folder), {}
    for name in (name for name, of_seed in made.arms if of_seed == seed and name not in chosen):
        if knob := knob_of(name, given):
            _refuse_lost(name, knob, given)
            if not made.arms[name, seed].data.held_out:
                raise UserError("--tune chooses by held-out samples: set held-out above 0")
            if trained := [arm for arm in made.arms if arm[0] == name and holds_run(made.place(arm))]:
                raise UserError(
                    f"{name}, seed {trained[0][1]}, was trained without --tune: choose another folder for --out"
                )
            waiting[name] = knob.setting, list(_variants(name, knob, made.arms[name, seed]))
    return waiting


def _refuse_lost(name: str, knob: Knob, given: Mapping[str, Any]) -> None:
    """Raises `UserError` for a value that was given for all methods, and that a grid has no place for."""
    value = given.get(knob.setting)
    if not knob.times and value is not None:
        grid = ", ".join(f"{one:g}" for one in knob.values)
        raise UserError(
            f"{knob.setting} = {value} would lose to what --tune chooses for {name} among {grid}: leave it out, or set "
            f"{name}.{knob.setting}, so that {name} is not tuned"
        )


def _variants(name: str, knob: Knob, config: RunConfig) -> Iterator[RunConfig]:
    for value in grid_of(knob, config):
        yield RunConfig.of(config.settings(), at_equal_steps(config, {knob.setting: value}, name), {"samples": 0})


def tune(made: Plan, waiting: Waiting, cpus: int = 0, gpus: int = -1, on_value: OnValue = lambda done: None) -> Choices:
    """All choices of a comparison, those that were made before among them; `waiting` is what `to_tune` gives.

    Raises:
        UserError: a folder holds other runs than these.
        ArmsFailed: a value could not be trained.
    """
    choices, done = read_choices(made.folder), 0
    trained = _plans(made, waiting)
    for plan in trained:
        check_arms(plan)
    with kept_ray():
        for plan in trained:
            run_arms(plan, cpus, gpus, partial(_count, on_value, done))
            done += len(plan.arms)
    for name, (setting, configs) in waiting.items():
        losses = [run_held_out_loss(plan.place(arm)) for plan in trained for arm in plan.arms if arm[0] == name]
        grid = [config.settings()[setting] for config in configs]
        chosen = grid[losses.index(min(losses))]
        choices[name] = {"setting": setting, "grid": grid, "losses": losses, "chosen": chosen}
        write_atomic(made.folder / CHOICES, json.dumps(choices, indent=1).encode())
    return choices


def _count(on_value: OnValue, before: int, arms: int, words: str) -> None:
    on_value(before + arms)


def _plans(made: Plan, waiting: Waiting) -> list[Plan]:
    """A comparison of all methods for the first values of their grids, one for the second, and so on."""
    size = max((len(configs) for _, configs in waiting.values()), default=0)
    return [
        replace(
            made,
            folder=made.folder / "tuning" / str(index),
            arms={
                (name, configs[index].seed): configs[index]
                for name, (_, configs) in waiting.items()
                if index < len(configs)
            },
        )
        for index in range(size)
    ]


def record_choices(made: Plan) -> None:
    """Say in each arm's facts what its method tuned."""
    choices = read_choices(made.folder)
    for name, seed in made.arms:
        if name in choices:
            change_facts(made.place((name, seed)), tuned=choices[name])


def run_held_out_loss(folder: Path) -> float:
    """The mean over classes of the held-out denoising loss of a run's networks, whatever its method."""
    config = run_config(folder)
    device = pick_device(config.compute)
    process = make_process(config.diffusion, device, dtype_of(config.compute))
    source, networks = open_source(config.data, config.seed, keep=True), class_networks(folder, "last", device)[1]
    losses = []
    for y, network in networks.items():
        data = source.load(y).held_out.to(device, dtype_of(config.compute))
        losses.append(held_out_loss(network, data, config.diffusion, config.compute.autocast, process, config.seed, y))
    return mean(losses)
