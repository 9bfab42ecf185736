"""Which settings a choice for some minutes is made among: rungs, from the cheapest network to the dearest."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedmutual.data.facts import Facts
from fedmutual.errors import UserError
from simulations.experiments.methods import RECIPES

LEAST_STEPS = 100
"""Fewer steps show nothing yet."""

SMALL_STEPS, LARGE_STEPS, MEDIUM_STEPS = 400, 800, 4000
"""Steps from which on the small U-Net at full resolution, the one at 64 x 64, and the next larger network are taken.
Networks of velocities are good after 300 steps at half the resolution and after 800 at the full one (presets fashion-14
and fashion); the larger two are judged by their size alone."""

LEAST_SIDE = 16
"""Smaller images, and samples that are no images, go to the MLP of the preset digits."""

AUDITED = 10
"""Samples of each class that an audit compares members with at least."""

CACHED = 16
"""Classes whose samples a client's process keeps; with more, they are read again in each round."""

IMAGES: Mapping[str, Any] = {
    "diffusion-steps": 1000,
    "parametrisation": "velocity",
    "batch": 16,
    "schedule": "cosine",
    "beta": 1.0,
    "beta-rule": "scarcity",
    "scarcity": 50.0,
    "peers-per-step": 1,
    "sampler": "sde-dpm-solver++",
}
"""The recipe of the preset fashion, but for the network, its learning rate and what follows from the steps."""

VECTORS: Mapping[str, Any] = {"network": "mlp", "beta": 3.0, "beta-rule": "scarcity", "scarcity": 10.0}
"""The recipe of the preset digits, whose other settings are the defaults."""


@dataclass(frozen=True)
class Rung:
    """Settings that may be chosen: all but the steps; `least` steps, below which the rung before it is better."""

    settings: Mapping[str, Any]
    least: int = LEAST_STEPS


@dataclass(frozen=True)
class Task:
    """What is to be done in the minutes: a simulation, or the arms of a comparison, which are audited too."""

    methods: Sequence[str] = ("mutual-scarcity",)
    seeds: int = 1
    audited: bool = False

    @property
    def arms(self) -> int:
        return len(self.methods) * self.seeds

    @property
    def federated(self) -> int:
        """Arms that start Ray."""
        return self.seeds * sum(RECIPES[method].federated for method in self.methods)

    def asked(self, classes: int) -> int:
        """Networks that have a say at a step of a sample, over all arms: `predictions` asks those of all classes."""
        return self.seeds * sum(classes if method == "predictions" else 1 for method in self.methods)


SIMULATION = Task()


def rungs(facts: Facts, fixed: Mapping[str, Any], task: Task = SIMULATION) -> list[Rung]:
    """What may be chosen for data of one's own, cheapest first; `fixed` are settings that a person gave.

    Raises:
        UserError: a class with too few samples.
    """
    if fixed.get("size") and not facts.images:
        raise UserError(f"size = {fixed['size']} is for images, and these samples are none: leave size out")
    common = {"imbalance": "none", **_cut(facts, task)}
    if not facts.images or (_full(facts, fixed) < LEAST_SIDE and "network" not in fixed):
        peers = {"peers-per-step": 1} if facts.classes > CACHED else {}
        return [
            Rung({**common, **_sized(facts, fixed, facts.side if facts.images else 0), **VECTORS, **peers, **fixed})
        ]
    full = _full(facts, fixed)
    recipe = {**common, **IMAGES}
    if facts.classes > CACHED:
        recipe["peers-per-round"] = CACHED // 2
    if "network" in fixed:
        return [Rung({**recipe, **_sized(facts, fixed, full), "learning-rate": 0.002, **fixed})]
    small = {"learning-rate": 0.004, "dropout": 0.0}
    networks = [(full, {**_unet(16, "1,2,4", full), **small}, SMALL_STEPS)]
    if full >= 28 and not {"size", "shape"} & set(fixed):
        networks.insert(0, (full // 2, _tiny(full // 2), LEAST_STEPS))
    else:
        networks.insert(0, (full, _tiny(full), LEAST_STEPS))
    if full <= 32:
        networks.append((full, {**_unet(32, "1,2,2,2", full, depth=2), "learning-rate": 0.001}, MEDIUM_STEPS))
    if facts.side >= 64 and not {"size", "shape"} & set(fixed):
        networks[2:] = [(64, {**_unet(16, "1,2,4,4", 64), "learning-rate": 0.002}, LARGE_STEPS)]
    return [
        Rung({**recipe, **_sized(facts, fixed, side), **network, **fixed}, least) for side, network, least in networks
    ]


def _full(facts: Facts, fixed: Mapping[str, Any]) -> int:
    """The side at which images are read where time allows: as they are up to 32, and 32 of larger ones."""
    if fixed.get("size"):
        return int(fixed["size"])
    if fixed.get("shape"):
        return min(int(part) for part in str(fixed["shape"]).split(",")[1:] or ["1"])
    return min(facts.side, 32)


def _sized(facts: Facts, fixed: Mapping[str, Any], side: int) -> dict[str, Any]:
    """The settings that bring all samples to one shape; images become squares of that side, unless `shape` is given."""
    if fixed.get("shape") or not facts.images:
        return {"shape": ",".join(map(str, facts.shapes[0]))}
    shape = {"shape": f"{facts.channels},{side},{side}"}
    return shape if facts.square and facts.side == side else {**shape, "size": side}


def _unet(width: int, multipliers: str, side: int, depth: int = 1) -> dict[str, Any]:
    """A U-Net that attends at its lowest resolution."""
    stride = 2 ** multipliers.count(",")
    attention = str(math.ceil(side / stride))
    size = {"width": width, "depth": depth, "multipliers": multipliers, "attention": attention}
    return {"network": "unet", **size}


def _tiny(side: int) -> dict[str, Any]:
    """The U-Net of the preset fashion-14."""
    return {**_unet(16, "1,2", side), "learning-rate": 0.003, "dropout": 0.1}


def _cut(facts: Facts, task: Task) -> dict[str, Any]:
    """Sizes of the parts that are kept from training; the data's own test part is taken whole."""
    smallest = min(facts.counts)
    name = facts.names[facts.counts.index(smallest)]
    held_out = 50 if facts.held_out else min(50, smallest // 8)
    if facts.test:
        test, unseen = 0, min(facts.test) + (min(facts.held_out) if facts.held_out else held_out)
    else:
        test = max(2, min(500, smallest // 4))
        if task.audited:
            test = max(test, AUDITED - (0 if facts.held_out else held_out))
        unseen = test + held_out
    needed = test + (0 if facts.held_out else held_out) + (1 if facts.test else 2)
    if smallest < needed:
        raise UserError(
            f"class {name} has {smallest} samples, and {needed} are needed, some to train on and others to measure by: "
            f"add to it, or move it elsewhere"
        )
    if task.audited and unseen < AUDITED:
        raise UserError(
            f"a comparison audits every class by {AUDITED} samples that training did not see, and the smallest of the "
            f"test part has too few: add to it, or use simulate"
        )
    return {"held-out": held_out, "test": test}
