"""`fedmutual steps`: what few-step samplers cost and lose on a run's own networks, beside full sampling."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from torch import Tensor

from fedmutual.data import open_source
from fedmutual.data.fingerprint import refuse_changed
from fedmutual.device import dtype_of, pick_device
from fedmutual.diffusion import make_process
from fedmutual.errors import UserError
from fedmutual.evaluation import frechet_distance
from fedmutual.evaluation.features import Features
from fedmutual.evaluation.intervals import Estimate
from fedmutual.seeds import generator
from simulations.runs.measuring import run_extractor
from simulations.runs.networks import NOTHING_ELSE, class_networks, run_config, run_shape
from simulations.runs.sampling import draw

SAMPLERS = ("ddpm", "ddim", "dpm-solver++", "sde-dpm-solver++")


class Drawn(NamedTuple):
    """Samples of a class and, with an extractor, their features."""

    samples: Tensor
    features: Features | None


class FewSteps:
    """Each sampler at each number of `steps` on a run's networks, beside DDPM at every training time.

    Every sampler draws the setting `samples` of each class anew for each sampling seed. A batch holds one class,
    since classes have networks of their own, and is as full as `fedmutual.diffusion.sampling.ROWS` lets it be.

    Raises:
        UserError: as `run_extractor`; settings under which there is nothing to compare; raised before it takes time.
    """

    def __init__(
        self,
        run: Path,
        steps: Sequence[int],
        seeds: int,
        which: str = "last",
        extractor: str = "",
        here: Mapping[str, Any] = NOTHING_ELSE,
    ):
        config = run_config(run, here)
        self.config = config = config.but(extractor=extractor or config.measuring.extractor)
        if config.diffusion.process != "ddpm":
            raise UserError(
                f"steps compares samplers of process = ddpm, and this run has process = {config.diffusion.process}"
            )
        if config.measuring.samples < 2 or seeds < 2:
            raise UserError("nothing to compare: give samples (`evaluate RUN -s samples=500`) and --seeds 2 or more")
        wrong = [count for count in steps if not 1 <= count < config.diffusion.steps]
        if wrong or not steps:
            raise UserError(f"--steps {','.join(map(str, wrong))}: give numbers from 1 to {config.diffusion.steps - 1}")
        self.plan = [("ddpm", config.diffusion.steps), *((sampler, count) for count in steps for sampler in SAMPLERS)]
        self.shape = run_shape(run)[0]
        self.seeds, self.extractor = seeds, run_extractor(config)
        self.round, self.networks = class_networks(run, which, pick_device(config.compute), here)
        source = open_source(config.data, config.seed, keep=True)
        refuse_changed(run, source.fingerprints(), source.names)
        self.real = self.with_features({y: source.test(y) for y in self.networks})

    def rows(self, on_percent: Callable[[int], None] = lambda done: None) -> list[dict[str, Any]]:
        """Seconds and distances, full sampling first.

        A row: {name, sampler, steps, samples, metric, class ("worst" or "mean" over classes), mean, ci95 (over
        seeds), seeds, seconds (of drawing all classes once, the fastest seed's), share (of full sampling's)}.
        Metrics: fd and, with an extractor, its Fréchet distance, both to the test part; and `from-full`, the
        distance (in features where there are any) to what full sampling drew with another seed. It takes no test
        image, so that a sampler may be chosen by it; full sampling's own is what two draws of it differ by.
        """
        full: list[dict[int, Drawn]] = []
        rows: list[dict[str, Any]] = []
        for turn, (sampler, count) in enumerate(self.plan):
            drawn, seconds = [], []
            for seed in range(self.seeds):
                began = time.perf_counter()
                samples = self.draw(sampler, count, seed)
                seconds.append(time.perf_counter() - began)
                drawn.append(self.with_features(samples))
                on_percent(100 * (turn * self.seeds + seed + 1) // (len(self.plan) * self.seeds))
            full = full or drawn
            by_seed = [self.distances(own, full[seed - 1]) for seed, own in enumerate(drawn)]
            share = min(seconds) / (rows[0]["seconds"] if rows else min(seconds))
            for metric in by_seed[0]:
                for class_, over in (("worst", max), ("mean", mean)):
                    estimate = Estimate.of(over(distances[metric]) for distances in by_seed)
                    row = {
                        "name": "sampling",
                        "sampler": sampler,
                        "steps": count,
                        "samples": self.config.measuring.samples,
                    }
                    row |= {"metric": metric, "class": class_, "mean": estimate.mean, "ci95": estimate.half}
                    rows.append(row | {"seeds": self.seeds, "seconds": min(seconds), "share": share})
        return rows

    def draw(self, sampler: str, steps: int, seed: int) -> dict[int, Tensor]:
        """Samples of each class, on the CPU."""
        config, device = self.config.but(sampler=sampler, sampling_steps=steps), pick_device(self.config.compute)
        process, shape = make_process(config.diffusion, device, dtype_of(config.compute)), self.shape
        drawn = {}
        for y, network in self.networks.items():
            noise = generator(config.seed, y, self.round, "steps", seed, device=device)
            drawn[y] = draw(network, process, shape, config.measuring.samples, config, noise).cpu().float()
        return drawn

    def with_features(self, samples: dict[int, Tensor]) -> dict[int, Drawn]:
        return {y: Drawn(own, self.extractor(own) if self.extractor else None) for y, own in samples.items()}

    def distances(self, own: dict[int, Drawn], full: dict[int, Drawn]) -> dict[str, list[float]]:
        """{metric: a distance for each class}."""
        real, extractor = self.real, self.extractor
        by_metric = {"fd": [frechet_distance(own[y].samples, real[y].samples) for y in own]}
        if extractor:
            features = [{y: one.features for y, one in side.items() if one.features} for side in (own, real, full)]
            by_metric[extractor.name("fd")] = [extractor.frechet(features[0][y], features[1][y]) for y in own]
            by_metric["from-full"] = [extractor.frechet(features[0][y], features[2][y]) for y in own]
        else:
            by_metric["from-full"] = [frechet_distance(own[y].samples, full[y].samples) for y in own]
        return by_metric
