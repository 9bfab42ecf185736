"""Which settings make the most of some minutes: from facts of the data and measured speeds, without touching either.

Networks are tried from the cheapest to the dearest, and the last that gets the steps it needs is taken: a small network
that is trained to its end beats a large one that is not. What takes time beside the gradient steps is foreseen part by
part, and the steps fill what is left.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedmutual.data.facts import Facts
from fedmutual.errors import UserError
from fedmutual.evaluation.classifier import steps_for
from simulations.experiments.foreseen import (
    Machine,
    Speed,
    balanced,
    drawing_calls,
    extractor_trainings,
    foresee,
    round_seconds,
)
from simulations.experiments.rungs import LEAST_STEPS, SIMULATION, Rung, Task

LEAST_MINUTES, MOST_STEPS = 2.0, 20_000
"""More steps are not known to improve such small networks."""

SAMPLINGS = ((500, 50), (256, 25), (128, 25), (66, 25))
"""(samples of each class, sampling steps): the first that takes no more than `SHARE` of the time."""

SHARE = 0.15
"""Of the time that sampling may take, and an extractor's training."""

ROUNDS, EVALUATIONS = (20, 10, 5), (1, 2, 5)
"""Numbers of rounds, and of rounds between held-out losses, the best first."""

EXTRACTOR_EACH, EXTRACTOR_IMAGES, EXTRACTOR_STEPS = 20, 200, 100
"""Images of the smallest class, images in all, and steps that time leaves of those that they ask for, below which a
classifier's features are taken to mean nothing."""

MARGIN = 0.95
"""Of the time that is planned for: a run that is late is worse than one that is early."""


@dataclass(frozen=True)
class Choice:
    """settings: all that is chosen; parts: {what is done: seconds foreseen}; notices: what a person should know."""

    settings: dict[str, Any]
    parts: dict[str, float]
    notices: list[str]


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
        if task.asked(facts.classes) * facts.classes * drawing_calls(filled) * speed.sample <= allowed:
            break
    settings = filled
    if task.audited:
        settings.setdefault("audit-candidates", 32)
    if "extractor" not in settings and facts.images and facts.classes > 1:
        settings |= _extractor(settings, facts, allowed / extractor_trainings(facts, task), speed)
    return settings


def _extractor(settings: Mapping[str, Any], facts: Facts, allowed: float, speed: Speed) -> dict[str, Any]:
    """The settings of an extractor, or none where too few images or seconds would make it a bad one."""
    each = balanced(settings, facts)
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
        longest = max(round_seconds(paced, facts, machine, speed, method) for method in task.methods)
        if longest <= 0.1 * steps * speed.alone:
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
            f"measured by pixels alone: {balanced(settings, facts)} images of the smallest class, or the time, are "
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
