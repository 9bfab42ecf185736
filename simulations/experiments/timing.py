"""How fast this machine is at what a course is made of: gradient steps, drawing, an extractor's steps, measures.

Gradient steps are timed in as many processes at once as there will be clients at work, one thread each: two busy cores
are slower each than one. Everything else runs in this process, with the threads that it has.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedmutual.config import RunConfig
from fedmutual.device import dtype_of, pick_device
from fedmutual.diffusion import make_process
from fedmutual.evaluation import class_metrics
from fedmutual.evaluation.classifier import BATCH, Classifier, fit
from fedmutual.learning.igd import local_steps
from fedmutual.learning.peers import Peers, freeze
from fedmutual.learning.player import Player, predict
from fedmutual.networks import build
from fedmutual.privacy.versions import versions_for
from simulations.experiments.foreseen import Speed
from simulations.experiments.plan import begin_worker
from simulations.runs.sampling import draw

SECONDS = 0.5
"""That each thing is timed for, beyond a first time that warms up."""

WORTHWHILE = 0.9
"""Of the time of a step in float32 that one in bfloat16 may take to be chosen."""

PEERS = 9
"""Untrained networks that stand for peers: what more of them cost is measured on so many."""


class ClientSpeed(NamedTuple):
    """Wall seconds in one of several processes: a step with its peers, one without, a sample through the network."""

    step: float
    alone: float
    forward: float


class Timing:
    """Processes that take gradient steps at once. `start`: seconds until all of them were ready."""

    def __init__(self, pool: ProcessPoolExecutor, at_once: int):
        self.pool, self.at_once = pool, at_once
        began = time.perf_counter()
        for ready in [pool.submit(_ready) for _ in range(at_once)]:
            ready.result()
        self.start = time.perf_counter() - began

    def speed(
        self, config: RunConfig, shape: tuple[int, ...], classes: int, sizes: tuple[int, int]
    ) -> tuple[Speed, str]:
        """The speed of these settings, and the autocast that it is of: the faster one where `autocast` is "none".

        sizes: (training, test) samples of a class, for its measures.
        """
        autocast, images = config.compute.autocast, len(shape) == 3
        clients = self._clients(config, shape, classes)
        if autocast == "none" and config.compute.dtype == "float32" and config.network.kind.startswith("unet"):
            in_bfloat16 = self._clients(config.but(autocast="bfloat16"), shape, classes)
            if in_bfloat16.step < WORTHWHILE * clients.step:
                autocast, clients = "bfloat16", in_bfloat16
        return Speed(
            *clients,
            sample=sampling_seconds(config, shape),
            classify=classifying_seconds(config, shape, classes) if images else 0.0,
            measure=measuring_seconds(shape, config.measuring.samples, *sizes),
        ), autocast

    def _clients(self, config: RunConfig, shape: tuple[int, ...], classes: int) -> ClientSpeed:
        waiting = [self.pool.submit(client_seconds, config, shape, classes) for _ in range(self.at_once)]
        columns = zip(*(one.result() for one in waiting), strict=True)
        return ClientSpeed(*(sum(column) / self.at_once for column in columns))


@contextmanager
def timing(at_once: int) -> Iterator[Timing]:
    """Start `at_once` processes for timing, and end them with the block."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(at_once, context, begin_worker, (1,)) as pool:
        yield Timing(pool, at_once)


def _ready() -> None:
    """Import what a client's process imports; long enough that no process takes the task of another."""
    import client.app  # noqa: F401

    time.sleep(0.5)


def client_seconds(config: RunConfig, shape: tuple[int, ...], classes: int) -> ClientSpeed:
    """Time one client's work on made-up samples."""
    device, dtype = pick_device(config.compute), dtype_of(config.compute)
    data = (torch.rand(64, *shape, device=device) * 2 - 1).to(dtype)
    process = make_process(config.diffusion, device, dtype)
    player = Player.start(build(config, shape, 0).to(device), config.optimiser)
    count = min(PEERS, classes - 1, config.mutual.peers_per_round or PEERS) if config.mutual.beta else 0
    networks = [freeze(build(config, shape, y + 1).to(device), config.compute.autocast) for y in range(count)]
    peers = Peers(networks, [1 / count] * count if count else [])

    versions = versions_for(config, data)

    def steps(peers: Peers) -> Callable[[int], object]:
        return lambda number: local_steps(player, data, peers, config.but(local_steps=number), process, 0, 1, versions)

    step, alone = seconds_each(steps(peers)), seconds_each(steps(Peers()))
    more = max(0, classes - 1 - count) if not config.mutual.peers_per_step and not config.mutual.peers_per_round else 0
    forward = seconds_each(lambda number: _forward(player.network, data, config, number)) / len(data)
    return ClientSpeed(step + more * max(0.0, step - alone) / max(1, count), alone, forward)


@torch.no_grad()
def _forward(network: nn.Module, data: Tensor, config: RunConfig, number: int) -> None:
    network.eval()
    t = torch.ones(len(data), device=data.device, dtype=data.dtype)
    for _ in range(number):
        float(predict(network, data, t, config.compute.autocast).sum())  # a GPU is waited for


def seconds_each(run: Callable[[int], object]) -> float:
    """Wall seconds of one of what `run(number)` does so many times: the first warms up, and says how many follow."""
    run(1)
    began = time.perf_counter()
    run(1)
    number = max(1, int(SECONDS / (time.perf_counter() - began)))
    began = time.perf_counter()
    run(number)
    return (time.perf_counter() - began) / number


def sampling_seconds(config: RunConfig, shape: tuple[int, ...], count: int = 64) -> float:
    """Of one step of one sample's drawing."""
    device = pick_device(config.compute)
    network = build(config, shape, 0).to(device).eval().requires_grad_(False)
    process, rng = make_process(config.diffusion, device, dtype_of(config.compute)), torch.Generator(device)
    few = 2

    def run(number: int) -> None:
        for _ in range(number):
            draw(network, process, shape, count, config.but(sampling_steps=few), rng).cpu()

    return seconds_each(run) / (few * count)


def classifying_seconds(config: RunConfig, shape: tuple[int, ...], classes: int) -> float:
    """Of a step of an extractor's training."""
    device = pick_device(config.compute)
    images, labels = torch.rand(BATCH, *shape, device=device) * 2 - 1, torch.arange(BATCH, device=device) % classes
    network = Classifier(shape[0], classes).to(device)

    def run(number: int) -> None:
        fit(network.requires_grad_(True), images, labels, 2 * number)  # a cycle of one step has no end

    return seconds_each(run) / 2


def measuring_seconds(shape: tuple[int, ...], samples: int, train: int, test: int) -> float:
    """Of the measures of one class with so many generated, training and test samples."""
    began = time.perf_counter()
    class_metrics(*(torch.rand(max(2, count), *shape).numpy() for count in (samples, test, train)))
    return time.perf_counter() - began
