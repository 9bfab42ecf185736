"""`fedmutual steps`: what few-step samplers cost and lose on a run's own networks, beside full sampling."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from client.app import pick_device
from fedmutual.config import RunConfig, UserError
from fedmutual.data.sources import load_test, sample_shape
from fedmutual.diffusion.sampling import sample
from fedmutual.evaluation import frechet_distance
from fedmutual.evaluation.features import Extractor, Features
from fedmutual.learning.igd import make_process
from fedmutual.seeds import generator
from simulations.game_arms import interval
from simulations.results import class_networks, run_config, run_extractor

SAMPLERS = ("ddpm", "ddim", "dpm-solver++")


class Seen(NamedTuple):
    """Samples of a class and, with an extractor, their features."""

    samples: Tensor
    features: Features | None


def few_steps(
    run: Path,
    steps: Sequence[int],
    seeds: int,
    which: str = "last",
    extractor: str = "",
    on_percent: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """Seconds and quality of each sampler at each number of `steps`, the first rows those of DDPM at every time.

    Every sampler draws the setting `samples` of each class anew for each sampling seed. A batch holds one class,
    since classes have networks of their own, and is as full as `fedmutual.diffusion.sampling.ROWS` lets it be.
    A row: {name, sampler, steps, samples, metric, class ("worst" or "mean" over classes), mean, ci95 (over seeds),
    seeds, seconds (of drawing all classes once, the fastest seed's), share (of full sampling's seconds)}.

    Metrics: fd and, with an extractor, its Fréchet distance, both to the test part; and `from-full`, the distance
    (in features where there are any) to what full sampling drew with another seed. It takes no test image, so
    that a sampler may be chosen by it; full sampling's own `from-full` is what two draws of it differ by.

    Raises:
        UserError: as `run_extractor`; settings under which there is nothing to compare.
    """
    config = run_config(run)
    config = config.but(extractor=extractor or config.extractor)
    if config.process != "ddpm":
        raise UserError(f"steps compares samplers of process = ddpm, and this run has process = {config.process}")
    if config.samples < 2 or seeds < 2:
        raise UserError("nothing to compare: it takes 2 or more of samples (`evaluate RUN -s samples=500`) and --seeds")
    wrong = [count for count in steps if not 1 <= count < config.diffusion_steps]
    if wrong or not steps:
        raise UserError(f"--steps {','.join(map(str, wrong))}: give numbers from 1 to {config.diffusion_steps - 1}")
    see = run_extractor(config)
    round_, networks = class_networks(run, which, pick_device(config))
    real = _seen({y: load_test(config, y) for y in networks}, see)
    plan = [("ddpm", config.diffusion_steps), *((sampler, count) for count in steps for sampler in SAMPLERS)]
    full: list[dict[int, Seen]] = []
    rows: list[dict[str, Any]] = []
    for turn, (sampler, count) in enumerate(plan):
        drawn, seconds = [], []
        for seed in range(seeds):
            began = time.perf_counter()
            samples = _draw(config.but(sampler=sampler, sampling_steps=count), networks, round_, seed)
            seconds.append(time.perf_counter() - began)
            drawn.append(_seen(samples, see))
            on_percent(100 * (turn * seeds + seed + 1) // (len(plan) * seeds))
        full = full or drawn
        by_seed = [_distances(own, real, full[seed - 1], see) for seed, own in enumerate(drawn)]
        share = min(seconds) / (rows[0]["seconds"] if rows else min(seconds))
        for metric in by_seed[0]:
            for class_, over in (("worst", max), ("mean", mean)):
                values = [over(distances[metric]) for distances in by_seed]
                row = {"name": "sampling", "sampler": sampler, "steps": count, "samples": config.samples}
                middle, half = interval(np.array(values))
                row |= {"metric": metric, "class": class_, "mean": middle, "ci95": half}
                rows.append(row | {"seeds": seeds, "seconds": min(seconds), "share": share})
    return rows


def _draw(config: RunConfig, networks: dict[int, nn.Module], round_: int, seed: int) -> dict[int, Tensor]:
    device = pick_device(config)
    process = make_process(config, device)
    drawn = {
        y: sample(
            network,
            process,
            sample_shape(config),
            config.samples,
            generator(config.seed, y, round_, "steps", seed, device=device),
            parametrisation=config.parametrisation,
            sampler=config.sampler,
            steps=config.sampling_steps,
            clip=config.clip_samples,
        )
        for y, network in networks.items()
    }
    return {y: samples.cpu().float() for y, samples in drawn.items()}


def _seen(samples: dict[int, Tensor], see: Extractor | None) -> dict[int, Seen]:
    return {y: Seen(own, see(own) if see else None) for y, own in samples.items()}


def _distances(
    own: dict[int, Seen], real: dict[int, Seen], full: dict[int, Seen], see: Extractor | None
) -> dict[str, list[float]]:
    """{metric: a distance for each class}."""
    by_metric = {"fd": [frechet_distance(own[y].samples, real[y].samples) for y in own]}
    if see:
        by_metric[see.name("fd")] = [see.frechet(own[y].features, real[y].features) for y in own]
        by_metric["from-full"] = [see.frechet(own[y].features, full[y].features) for y in own]
    else:
        by_metric["from-full"] = [frechet_distance(own[y].samples, full[y].samples) for y in own]
    return by_metric
