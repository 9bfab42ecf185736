"""How long a command with some settings takes, part by part, from measured speeds: nothing is run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedmutual.config import HELD_OUT_TO_CHOOSE, Optimiser
from fedmutual.data.facts import Facts
from fedmutual.evaluation.classifier import steps_for
from fedmutual.evaluation.usefulness import STEPS
from fedmutual.learning.held_out import HELD_OUT_TIMES
from fedmutual.learning.stacking import DRAWS, LEVELS
from simulations.experiments.methods import RECIPES
from simulations.experiments.rungs import CACHED, SIMULATION, Task

AUDIT_CALLS = 64
"""Calls of the network for each candidate of an audit."""

RAY, CLIENT, PAGE = 2.0, 0.03, 0.5
"""What is not timed, in units of the start of a process that trains: Ray with its clients; carrying networks, checks
and saving for one client and round; the page with its figures."""


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


def foresee(
    settings: Mapping[str, Any], facts: Facts, machine: Machine, speed: Speed, task: Task = SIMULATION
) -> dict[str, float]:
    """{part: wall seconds} of all that a command with these settings does from now on."""
    draws = task.asked(facts.classes) * facts.classes * drawing_calls(settings) * speed.sample
    candidates = 2 * settings["audit-candidates"] * AUDIT_CALLS if task.audited else 0
    audits = task.asked(facts.classes) * facts.classes * candidates * speed.sample
    once = machine.reading * (1 if facts.compressed else facts.samples)
    start = machine.start * (RAY * task.federated + (task.arms > task.federated))
    return {
        "reading": once,
        "extractor": _extractor_steps(settings, facts) * extractor_trainings(facts, task) * speed.classify,
        "training": start
        + task.federated * once * _client_reads(settings, facts) / machine.at_once
        + task.seeds * _training(settings, facts, machine, speed, task),
        "measuring": task.arms * (2 * once + facts.classes * speed.measure + _usefulness(settings, facts, speed))
        + draws
        + audits,
        "page": machine.start * PAGE,
    }


def _usefulness(settings: Mapping[str, Any], facts: Facts, speed: Speed) -> float:
    """Seconds of the classifiers of `tstr-seeds`, which learn from the drawn samples."""
    return settings.get("tstr-seeds", 0) * steps_for(facts.classes * settings["samples"], STEPS) * speed.classify


def _client_reads(settings: Mapping[str, Any], facts: Facts) -> int:
    """How often clients read all that there is: an archive streams by for each class, whichever is wanted."""
    return (facts.classes if facts.compressed else 1) * (settings["rounds"] if facts.classes > CACHED else 1)


def drawing_calls(settings: Mapping[str, Any]) -> int:
    """Samples of a class times the steps of their drawing."""
    return int(settings["samples"] * (settings["sampling-steps"] or settings.get("diffusion-steps", 100)))


def extractor_trainings(facts: Facts, task: Task) -> int:
    """Extractors: one for each seed where the seed cuts the test part."""
    return 1 if facts.test else task.seeds


def _extractor_steps(settings: Mapping[str, Any], facts: Facts) -> int:
    if settings.get("extractor") != "train":
        return 0
    return steps_for(facts.classes * balanced(settings, facts), settings["extractor-steps"])


def balanced(settings: Mapping[str, Any], facts: Facts) -> int:
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
            federated += turns * (seconds + round_seconds(settings, facts, machine, speed, method))
        else:
            alone += facts.classes * seconds / machine.at_once
    return federated + alone


def round_seconds(settings: Mapping[str, Any], facts: Facts, machine: Machine, speed: Speed, method: str) -> float:
    """Seconds of one client beside its gradient steps, in all rounds."""
    chooses = settings.get("keep", Optimiser().keep) == "best" and settings["held-out"] >= HELD_OUT_TO_CHOOSE
    every = 1 if chooses else settings.get("evaluate-every", 1)
    evaluations = settings["rounds"] // every * HELD_OUT_TIMES if every else 0
    if method == "mutual-auto":  # a class and its peers are weighed in every round
        networks = 1 + (settings.get("peers-per-round") or facts.classes - 1)
        evaluations += settings["rounds"] * networks * LEVELS * DRAWS
    exchange = settings["rounds"] * CLIENT * machine.start
    return float(exchange + evaluations * settings["held-out"] * speed.forward)


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
