"""Which settings make the most of some minutes: from facts of the data and measured speeds, without touching either.

Networks are tried from the cheapest to the dearest, and the last that gets the steps it needs is taken: a small network
that is trained to its end beats a large one that is not. What takes time beside the gradient steps is foreseen part by
part, and the steps fill what is left.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedmutual.config import HELD_OUT_TO_CHOOSE, Optimiser
from fedmutual.data.facts import Facts
from fedmutual.errors import UserError
from fedmutual.evaluation.classifier import steps_for
from fedmutual.learning.held_out import HELD_OUT_TIMES
from simulations.experiments.methods import RECIPES

LEAST_MINUTES = 2.0
LEAST_STEPS, MOST_STEPS = 100, 20_000
"""Fewer steps show nothing yet; more are not known to improve such small networks."""

SMALL_STEPS, LARGE_STEPS, MEDIUM_STEPS = 400, 800, 4000
"""Steps from which on the small U-Net at full resolution, the one at 64 x 64, and the next larger network are taken.
Networks of velocities are good after 300 steps at half the resolution and after 800 at the full one (presets fashion-14
and fashion); the larger two are judged by their size alone."""

LEAST_SIDE = 16
"""Smaller images, and samples that are no images, go to the MLP of the preset digits."""

SAMPLINGS = ((500, 50), (256, 25), (128, 25), (66, 25))
"""(samples of each class, sampling steps): the first that takes no more than `SHARE` of the time."""

SHARE = 0.15
"""Of the time that sampling may take, and an extractor's training."""

ROUNDS, EVALUATIONS = (20, 10, 5), (1, 2, 5)
"""Numbers of rounds, and of rounds between held-out losses, the best first."""

EXTRACTOR_EACH, EXTRACTOR_IMAGES, EXTRACTOR_STEPS = 20, 200, 100
"""Images of the smallest class, images in all, and steps that time leaves of those that they ask for, below which a
classifier's features are taken to mean nothing."""

AUDITED = 10
"""Samples of each class that an audit compares members with at least."""

AUDIT_CALLS = 64
"""Calls of the network for each candidate of an audit."""

CACHED = 16
"""Classes whose samples a client's process keeps; with more, they are read again in each round."""

RAY, CLIENT, PAGE = 2.0, 0.03, 0.5
"""What is not timed, in units of the start of a process that trains: Ray with its clients; carrying networks, checks
and saving for one client and round; the page with its figures."""

MARGIN = 0.95
"""Of the time that is planned for: a run that is late is worse than one that is early."""

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
class Speed:
    """Wall seconds that were measured of a rung on this machine.

    step: a gradient step with its peers, alone: without them, forward: one sample through the network, all three with
    as many processes at once as there are clients at work; sample: one step of one sample's drawing; classify: a step
    of an extractor's training; measure: the measures of one class.
    """

    step: float
    alone: float
    forward: float
    sample: float
    classify: float = 0.0
    measure: float = 0.0


@dataclass(frozen=True)
class Machine:
    """at_once: clients at work; start: seconds until a process can train; reading: seconds of reading a sample of a
    folder, or an archive through; spent: seconds since the command began."""

    at_once: int
    start: float
    reading: float
    spent: float = 0.0


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


@dataclass(frozen=True)
class Choice:
    """settings: all that is chosen; parts: {what is done: seconds foreseen}; notices: what a person should know."""

    settings: dict[str, Any]
    parts: dict[str, float]
    notices: list[str]


# Which settings there are to choose among


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


# What a course takes


def foresee(
    settings: Mapping[str, Any], facts: Facts, machine: Machine, speed: Speed, task: Task = SIMULATION
) -> dict[str, float]:
    """{part: wall seconds} of all that a command with these settings does from now on."""
    draws = task.asked(facts.classes) * facts.classes * _calls(settings) * speed.sample
    candidates = 2 * settings["audit-candidates"] * AUDIT_CALLS if task.audited else 0
    audits = task.asked(facts.classes) * facts.classes * candidates * speed.sample
    once = machine.reading * (1 if facts.compressed else facts.samples)
    start = machine.start * (RAY * task.federated + (task.arms > task.federated))
    return {
        "reading": once,
        "extractor": _extractor_steps(settings, facts) * _trainings(facts, task) * speed.classify,
        "training": start
        + task.federated * once * _client_reads(settings, facts) / machine.at_once
        + task.seeds * _training(settings, facts, machine, speed, task),
        "measuring": task.arms * (2 * once + facts.classes * speed.measure) + draws + audits,
        "page": machine.start * PAGE,
    }


def _client_reads(settings: Mapping[str, Any], facts: Facts) -> int:
    """How often clients read all that there is: an archive streams by for each class, whichever is wanted."""
    return (facts.classes if facts.compressed else 1) * (settings["rounds"] if facts.classes > CACHED else 1)


def _calls(settings: Mapping[str, Any]) -> int:
    """Samples of a class times the steps of their drawing."""
    return int(settings["samples"] * (settings["sampling-steps"] or settings.get("diffusion-steps", 100)))


def _trainings(facts: Facts, task: Task) -> int:
    """Extractors: one for each seed where the seed cuts the test part."""
    return 1 if facts.test else task.seeds


def _extractor_steps(settings: Mapping[str, Any], facts: Facts) -> int:
    if settings.get("extractor") != "train":
        return 0
    return steps_for(facts.classes * _balanced(settings, facts), settings["extractor-steps"])


def _balanced(settings: Mapping[str, Any], facts: Facts) -> int:
    """Images of each class that an extractor learns from: as many as the smallest class has."""
    cut = (0 if facts.test else settings["test"]) + (0 if facts.held_out else settings["held-out"])
    return min(facts.counts) - int(cut)


def _training(settings: Mapping[str, Any], facts: Facts, machine: Machine, speed: Speed, task: Task) -> float:
    """Wall seconds of the training of all methods for one seed: those of one process side by side, then the others."""
    steps = settings["rounds"] * settings["local-steps"]
    turns = math.ceil(facts.classes / machine.at_once)  # every client is waited for at the end of a round
    federated = alone = 0.0
    for method in task.methods:
        own, peers = _work(method, facts.classes)
        seconds = steps * (own * speed.alone + peers * (speed.step - speed.alone))
        if RECIPES[method].federated:
            federated += turns * (seconds + _rounds(settings, machine, speed))
        else:
            alone += facts.classes * seconds / machine.at_once
    return federated + alone


def _rounds(settings: Mapping[str, Any], machine: Machine, speed: Speed) -> float:
    """Seconds of one client beside its gradient steps, in all rounds."""
    chooses = settings.get("keep", Optimiser().keep) == "best" and settings["held-out"] >= HELD_OUT_TO_CHOOSE
    every = 1 if chooses else settings.get("evaluate-every", 1)
    evaluations = settings["rounds"] // every if every else 0
    exchange = settings["rounds"] * CLIENT * machine.start
    return float(exchange + evaluations * HELD_OUT_TIMES * settings["held-out"] * speed.forward)


def _work(method: str, classes: int) -> tuple[float, float]:
    """What a method does for each class and step of the budget, in gradient steps and in steps' worth of peers."""
    others: dict[str, tuple[float, float]] = {
        **dict.fromkeys(("isolated", "fedavg", "fedprox", "predictions", "pooled", "reweighted", "oc"), (1.0, 0.0)),
        **dict.fromkeys(("fedavgm", "fedadam", "fedyogi", "scaffold", "fedper", "finetuned", "coral"), (1.0, 0.0)),
        **dict.fromkeys(("pfdm", "cbdm", "cm"), (2.0, 0.0)),
        "ccua": (1.0, 1.0),
        "kernel-density": (0.0, 0.0),
        "shared-igd": (1.0, classes - 1.0),
        "ridge": (5.0, 0.0),
        "copy-head": (1 / classes, 0.0),
        "memory": (0.0, 0.0),
    }
    return others.get(method, (1.0, 1.0))


# Choosing


def choose(
    facts: Facts, machine: Machine, timed: Sequence[tuple[Rung, Speed]], minutes: float, task: Task = SIMULATION
) -> Choice:
    """The last of the timed rungs that gets the steps it needs, with as many as the minutes allow.

    Raises:
        UserError: too little time; says how much it takes.
    """
    refuse_too_short(minutes)
    filled = [(rung, speed, _filled(rung, facts, speed, minutes, task)) for rung, speed in timed]
    fitted = [(rung, speed, *_fit(settings, facts, machine, speed, minutes, task)) for rung, speed, settings in filled]
    worth = [(settings, speed) for rung, speed, settings, steps in fitted if steps >= rung.least]
    if not worth:
        settings, speed = filled[0][2], filled[0][1]
        shortest = {**settings, "rounds": settings.get("rounds", ROUNDS[-1]), "evaluate-every": 0}
        shortest |= {"local-steps": math.ceil(LEAST_STEPS / shortest["rounds"])}
        needed = (sum(foresee(shortest, facts, machine, speed, task).values()) + machine.spent) / MARGIN / 60
        what = "a simulation" if not task.audited else f"a comparison of {task.arms} arms"
        raise UserError(
            f"{minutes:g} minutes are too few for {what} of these {facts.classes} classes on this machine, as busy as "
            f"it is now: {math.ceil(needed)} or more are needed: raise --minutes"
            + (", or lower --seeds" if task.seeds > 1 else "")
        )
    settings, speed = worth[-1]
    parts = foresee(settings, facts, machine, speed, task)
    return Choice(settings, parts, _notices(settings, facts, parts, minutes, machine))


def refuse_too_short(minutes: float) -> None:
    """Raises `UserError` for a time in which nothing can be done, before any of it is spent."""
    if not minutes >= LEAST_MINUTES:
        raise UserError(f"--minutes {minutes:g} is too short to train and report: give {LEAST_MINUTES:g} or more")


def worth_timing(
    rung: Rung,
    facts: Facts,
    machine: Machine,
    timed: Sequence[tuple[Rung, Speed]],
    minutes: float,
    task: Task = SIMULATION,
) -> bool:
    """Whether `rung` could get the steps it needs; it is dearer than those before it."""
    if not timed:
        return True
    before, speed = timed[-1]
    settings = _filled(before, facts, speed, minutes, task)
    return _fit(settings, facts, machine, speed, minutes, task)[1] >= rung.least


def _filled(rung: Rung, facts: Facts, speed: Speed, minutes: float, task: Task) -> dict[str, Any]:
    """A rung's settings with samples and an extractor that take their share of the time at most."""
    settings = dict(rung.settings)
    allowed = SHARE * minutes * 60
    for samples, steps in SAMPLINGS:
        sampling = {"samples": samples, "sampling-steps": steps if "diffusion-steps" in settings else 0}
        filled = {**sampling, **settings}
        if task.asked(facts.classes) * facts.classes * _calls(filled) * speed.sample <= allowed:
            break
    settings = filled
    if task.audited:
        settings.setdefault("audit-candidates", 32)
    if "extractor" not in settings and facts.images and facts.classes > 1:
        settings |= _extractor(settings, facts, allowed / _trainings(facts, task), speed)
    return settings


def _extractor(settings: Mapping[str, Any], facts: Facts, allowed: float, speed: Speed) -> dict[str, Any]:
    """The settings of an extractor, or none where too few images or seconds would make it a bad one."""
    each = _balanced(settings, facts)
    wanted = steps_for(facts.classes * each, 1500)
    steps = min(wanted, int(allowed / speed.classify)) if speed.classify else wanted
    too_few = each < EXTRACTOR_EACH or facts.classes * each < EXTRACTOR_IMAGES
    if too_few or steps < min(wanted, EXTRACTOR_STEPS) or (facts.test and not min(facts.test)):
        return {}
    return {"extractor": "train", "extractor-steps": steps}


def _fit(
    settings: dict[str, Any], facts: Facts, machine: Machine, speed: Speed, minutes: float, task: Task
) -> tuple[dict[str, Any], int]:
    """The settings with the rounds and steps that fill the time, and how many steps of each class these are.

    As many rounds, and held-out losses, as together take no more than a tenth of the gradient steps.
    """
    left = MARGIN * minutes * 60 - machine.spent
    for rounds, every in _paces(settings):
        paced = {**settings, "rounds": rounds, "evaluate-every": every}
        none, some = (
            sum(foresee({**paced, "local-steps": count}, facts, machine, speed, task).values()) for count in (0, 1)
        )
        steps = int((left - none) * rounds / (some - none)) if some > none else MOST_STEPS
        steps = min(max(0, steps), MOST_STEPS) // rounds * rounds
        if _rounds(paced, machine, speed) <= 0.1 * steps * speed.alone:
            break
    return {**paced, "local-steps": steps // rounds, **_following(settings, steps)}, steps


def _paces(settings: Mapping[str, Any]) -> list[tuple[int, int]]:
    """(rounds, rounds between held-out losses), the most frequent first."""
    rounds = [settings["rounds"]] if "rounds" in settings else ROUNDS
    every = [settings["evaluate-every"]] if "evaluate-every" in settings else EVALUATIONS
    return [(some, each) for some in rounds for each in every]


def _following(settings: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Warm-up and the average's memory, which follow from the number of steps, unless they are given."""
    warmup = 0 if settings.get("network") == "mlp" else min(40, steps // 10)
    memory = 0.99 if steps < 600 else 0.995 if steps < 4000 else 0.999
    return {key: settings.get(key, value) for key, value in (("warmup", warmup), ("ema", memory))}


def _notices(
    settings: Mapping[str, Any], facts: Facts, parts: Mapping[str, float], minutes: float, machine: Machine
) -> list[str]:
    notices = []
    if settings.get("size"):
        most = max(facts.shapes, key=lambda shape: shape[1] * shape[2])
        several = f"{len(facts.shapes)} shapes up to " if len(facts.shapes) > 1 else ""
        notices.append(
            f"images of {several}{most[2]} x {most[1]} are cut to the square in their middle and read at "
            f"{settings['size']} x {settings['size']}: -s size=N reads them at another size"
        )
    if facts.images and "extractor" not in settings:
        notices.append(
            f"measured by pixels alone: {_balanced(settings, facts)} images of the smallest class, or the time, are "
            "too few for a classifier whose features would mean something"
        )
    total = machine.spent + sum(parts.values())
    if settings["rounds"] * settings["local-steps"] >= MOST_STEPS - settings["rounds"] and total < 0.8 * minutes * 60:
        notices.append(f"it takes about {total / 60:.1f} minutes: more than {MOST_STEPS} steps are not known to help")
    if (reading := 4 * parts["reading"]) > 0.2 * minutes * 60:
        notices.append(
            f"{reading / 60:.1f} minutes go into reading the images: smaller files, or a .npz of images at the "
            "size that is read, leave more for the training"
        )
    return notices
