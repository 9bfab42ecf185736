"""A federation of plain processes on one machine, without Flower and Ray: to see what sharing a card costs by itself.

Clients take turns in `at_once` processes. Each keeps its state in the store of real clients, and what it publishes
lies in a file that the others read in the next round.
"""

import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from client.store import Store
from fedmutual.checkpoint import load, save
from fedmutual.config import Data, RunConfig
from fedmutual.data import num_classes, open_source, sample_shape
from fedmutual.device import dtype_of, pick_device
from fedmutual.diffusion import make_process
from fedmutual.learning.igd import local_steps
from fedmutual.learning.peers import Peers, draw_peers, freeze
from fedmutual.learning.player import Player
from fedmutual.networks import build

RUN = "0123456789abcdef"

PATIENCE = 60.0
"""Seconds to wait for a client's store."""

Row = dict[str, Any]


class PlainFederation(AbstractContextManager["PlainFederation"]):
    """The clients of `config`, `at_once` of them in processes of their own, or in this one where that is 1."""

    def __init__(self, config: RunConfig, folder: Path, at_once: int):
        self.config, self.folder, self.at_once = config, folder, at_once
        self.classes = range(num_classes(config.data))
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(at_once, context, torch.set_num_threads, (1,)) if at_once > 1 else None

    def round(self, number: int, local_steps: int) -> list[Row]:
        """One round of all classes: a line of history for each, with `round_seconds`, the wall time of all."""
        config, began = self.config.but(local_steps=local_steps), time.perf_counter()
        arguments = ([config] * len(self.classes), [self.folder] * len(self.classes), self.classes)
        run = self.pool.map if self.pool else map
        rows = list(run(take_part, *arguments, [number] * len(self.classes)))
        for y in self.classes:  # what only the round before needed
            published(self.folder, number - 2, y).unlink(missing_ok=True)
        return [{**row, "round_seconds": time.perf_counter() - began} for row in rows]

    def networks(self, number: int) -> dict[int | str, dict[str, Tensor]]:
        """{class: what it published in that round}."""
        return {y: load(published(self.folder, number, y))[0] for y in self.classes}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)


def published(folder: Path, number: int, y: int) -> Path:
    """Where class y's network of a round lies."""
    return folder / "networks" / f"round-{number:06d}-class-{y:03d}.safetensors"


def take_part(config: RunConfig, folder: Path, y: int, number: int) -> Row:
    """One round of class y: restore, step against frozen peers, keep, publish; a line of history."""
    device = pick_device(config.compute)
    data = own_data(config.data, config.seed, y, device, dtype_of(config.compute))
    player = Player.start(build(config, tuple(data.shape[1:]), y).to(device), config.optimiser)
    process = make_process(config.diffusion, device, dtype_of(config.compute))
    store = Store(folder / "clients", RUN, y)
    with store.locked(PATIENCE):
        numbers = store.restore(player, 1, number, number - 1)
        if numbers.get("round") != number:
            peers = _peers(config, folder, y, number, device)
            began = time.perf_counter()
            steps = local_steps(player, data, peers, config, process, y, number)
            measured = {"loss": steps.loss, "mutual": steps.mutual, "grad_norm": steps.gradient_norm}
            measured |= {"seconds": time.perf_counter() - began, "step": player.step}
            numbers = {"class": y, "attempt": 1, "round": number, **measured}
            save(published(folder, number, y), player.published(), {})
            store.keep(player, numbers, number - 1)
    return {name: value for name, value in numbers.items() if name != "attempt"}


@lru_cache(maxsize=16)
def own_data(data: Data, seed: int, y: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """What class y trains on, on the device; kept for the rounds that this process serves."""
    return open_source(data, seed).load(y).train.to(device, dtype)


def _peers(config: RunConfig, folder: Path, y: int, number: int, device: torch.device) -> Peers:
    if not config.mutual.beta:
        return Peers()
    mutual, classes = config.mutual, range(num_classes(config.data))
    drawn, weights = draw_peers(mutual.peer_weights, y, classes, mutual.peers_per_round, config.seed, number)
    before = config.but(local_steps=1)  # of which the networks do not depend on the number
    networks = of_round(before, folder, number - 1, device)
    return Peers([networks[z] for z in drawn], weights)


@lru_cache(maxsize=1)
def of_round(config: RunConfig, folder: Path, number: int, device: torch.device) -> Sequence[nn.Module]:
    """All networks that a round led to, frozen; those before the first are as initialised. Loaded once a process."""
    networks = []
    for z in range(num_classes(config.data)):
        network = build(config, sample_shape(config.data), z)
        if number:
            network.load_state_dict(load(published(folder, number, z))[0])
        networks.append(freeze(network.to(device), config.compute.autocast))
    return networks
