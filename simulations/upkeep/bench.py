"""`fedmutual bench`: what a local step, a federated round, more classes and the wire cost, each beside what it must.

A local step stands beside a plain PyTorch loop with the same arithmetic, a round beside the gradient steps in it.
Both sides of a ratio are taken by turns in one run, so that they meet the same machine.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedmutual.config import RunConfig
from fedmutual.data import num_classes, sample_shape
from fedmutual.device import dtype_of, pick_device
from fedmutual.diffusion import make_process
from fedmutual.diffusion.process import expand
from fedmutual.errors import UserError
from fedmutual.learning.igd import local_steps
from fedmutual.learning.objective import denoising_target
from fedmutual.learning.peers import Peers, freeze
from fedmutual.learning.player import Player, predict
from fedmutual.networks import build
from fedmutual.records import pack_network
from fedmutual.run_folder import read_history
from server.orders import Run
from simulations.engine.simulation import Simulation, overhead

TURNS = 7
"""Turns of each loop that count; one more before them warms up."""

TURN_SECONDS = 0.2
"""A turn is as many steps as take about this long, at least one and at most `local-steps`."""

CLASSES = (5, 10, 20)
"""Numbers of classes over which the cost of a client's round is followed."""

SCALING_PEERS = 4

Row = dict[str, Any]
OnShare = Callable[[float], None]


def bench(configs: Sequence[RunConfig], parts: Sequence[str], on_share: OnShare = lambda share: None) -> list[Row]:
    """The rows of `parts`, for every one of `configs`; `on_share` takes the share that is done.

    Every row has {name, network, batch, peers, seconds, bare_seconds, ratio}; those of a part have more.

    Raises:
        UserError: a part that does not exist, or settings under which it cannot be timed.
    """
    for part in parts:
        if part not in PARTS:
            raise UserError(f"bench has no part {part!r}: choose among {', '.join(PARTS)}")
    work, rows = [(PARTS[part], config) for part in parts for config in configs], []
    for turn, (run, config) in enumerate(work):
        rows += run(config, _part(on_share, turn, len(work)))
        on_share((turn + 1) / len(work))
    return rows


def _part(on_share: OnShare, index: int, count: int) -> OnShare:
    """Takes the share that is done of one of `count` equal parts."""
    return lambda share: on_share((index + share) / count)


# A local step


def step(config: RunConfig, on_share: OnShare) -> list[Row]:
    """Seconds a step with no peer, with one drawn for each step, and with all, on one thread where there is no GPU.

    Medians over `TURNS` turns. On a CPU they are seconds of this process, so that other work on the machine counts
    less. `share_of_peak` is the arithmetic of a step, counted by torch, over what one large matrix product reaches in
    the same type and run; `memory` the bytes that a GPU held at most, null on a CPU.
    """
    if config.optimiser.draws == "fixed" or config.optimiser.name != "adam":
        raise UserError("bench times draws = fresh and optimizer = adam: set them with -s")
    device, shape, classes = pick_device(config.compute), sample_shape(config.data), num_classes(config.data)
    data = torch.rand(256, *shape, device=device, dtype=dtype_of(config.compute)) * 2 - 1
    peers = [freeze(build(config, shape, y).to(device), config.compute.autocast) for y in range(1, classes)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a simulated client has it
    try:
        peak = _peak(config, device)
        drawn = [count for count in (0, 1, classes - 1) if count < classes]
        loops = [_Loops(config, data, peers, count) for count in dict.fromkeys(drawn)]
        for turn in range(TURNS + 1):
            for index, loop in enumerate(loops):
                loop.turn()
                on_share((turn * len(loops) + index + 1) / ((TURNS + 1) * len(loops)))
    finally:
        torch.set_num_threads(threads)
    return [loop.row(peak) for loop in loops]


class _Loops:
    """Our loop and the bare one, on networks of their own from one start, taking turns."""

    def __init__(self, config: RunConfig, data: Tensor, peers: list[nn.Module], count: int):
        config = config.but(peers_per_step=count) if count else config
        self.config, self.data, self.count, self.device = config, data, count, data.device
        self.peers = peers if count else []
        self.ours: list[float] = []
        self.bare: list[float] = []
        shape = tuple(data.shape[1:])
        self.player = Player.start(build(config, shape, 0).to(self.device), config.optimiser)
        self.bare_loop = _bare(config, data, self.peers, count)
        self.process = make_process(config.diffusion, self.device, dtype_of(config.compute))
        self.steps = 1
        self.memory: int | None = None
        self.flops = _flops(config, self.player.network, data, self.peers[:1] * count)

    def turn(self) -> None:
        """Time both; the first turn, of one step, says how many steps the others have, and is not kept."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        first, ours, bare = not self.ours, self._ours(), self._bare()
        if self.device.type == "cuda":
            self.memory = torch.cuda.max_memory_allocated(self.device)
        if first and self.steps == 1:
            self.steps = max(1, min(self.config.local_steps, int(TURN_SECONDS / ours)))
        self.ours.append(ours)
        self.bare.append(bare)

    def _ours(self) -> float:
        peers = Peers(self.peers, [1 / len(self.peers)] * len(self.peers) if self.peers else [])
        config = self.config.but(local_steps=self.steps)
        began = _clock(self.device)
        local_steps(self.player, self.data, peers, config, self.process, 0, 1)
        return (_clock(self.device) - began) / self.steps

    def _bare(self) -> float:
        began = _clock(self.device)
        for _ in range(self.steps):
            next(self.bare_loop)
        return (_clock(self.device) - began) / self.steps

    def row(self, peak: float) -> Row:
        ours, bare = statistics.median(self.ours[1:]), statistics.median(self.bare[1:])
        return {
            "name": "local step",
            "network": self.config.network.kind,
            "batch": self.config.optimiser.batch,
            "peers": self.count,
            "steps": self.steps,
            "seconds": ours,
            "bare_seconds": bare,
            "ratio": ours / bare,
            "images_per_second": self.config.optimiser.batch / ours,
            "gflop": self.flops / 1e9,
            "share_of_peak": self.flops / ours / peak,
            "memory": self.memory,
        }


def _clock(device: torch.device) -> float:
    """Seconds: of this process on a CPU; of the wall on a GPU, once it has done what it was given."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _bare(config: RunConfig, data: Tensor, peers: list[nn.Module], count: int) -> Iterator[None]:
    """The loop one would write: draw, noise, own forward, each peer's forward, backward, clip, Adam, average."""
    network = build(config, tuple(data.shape[1:]), 0).to(data.device)
    process, parameters = make_process(config.diffusion, data.device, data.dtype), list(network.parameters())
    optimizer = torch.optim.Adam(parameters, lr=config.optimiser.learning_rate, fused=True)
    average = [parameter.detach().clone() for parameter in parameters]
    omega, autocast = process.weight(config.mutual.omega_weight), config.compute.autocast
    while True:
        x0 = data[torch.randint(len(data), (config.optimiser.batch,), device=data.device)]
        if config.optimiser.flips:
            mirrored = torch.rand(config.optimiser.batch, device=data.device) < 0.5
            x0 = torch.where(expand(mirrored, x0), x0.flip(-1), x0)
        index = torch.randint(len(process), (config.optimiser.batch,), device=data.device)
        noise = torch.randn_like(x0)
        alpha, sigma = expand(process.alpha[index], x0), expand(process.sigma[index], x0)
        x, t = alpha * x0 + sigma * noise, process.times[index]
        target = denoising_target(config.diffusion.parametrisation, x0, noise, alpha, sigma)
        output = predict(network, x, t, autocast)
        loss = (output - target).square().mean()
        if count:
            chosen = torch.randperm(len(peers))[:count].tolist()
            with torch.no_grad():
                mean = sum(predict(peers[z], x, t, autocast) for z in chosen) / count
            loss = loss + (omega[index] * (output - mean).square().flatten(1).mean(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, config.optimiser.clip or math.inf)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, list[Tensor](parameters), 1 - config.optimiser.ema)
        yield


def _flops(config: RunConfig, network: nn.Module, data: Tensor, peers: list[nn.Module]) -> float:
    """Floating-point operations of a step: own forward and backward, and the peers' forward."""
    x, autocast = data[: config.optimiser.batch], config.compute.autocast
    t = make_process(config.diffusion, data.device, data.dtype).times[:1]
    x = x.repeat(math.ceil(config.optimiser.batch / len(x)), *(1 for _ in x.shape[1:]))[: config.optimiser.batch]
    with FlopCounterMode(display=False) as counter:
        predict(network, x, t.expand(len(x)), autocast).sum().backward()
        with torch.no_grad():
            for peer in peers:
                predict(peer, x, t.expand(len(x)), autocast)
    network.zero_grad()
    return float(counter.get_total_flops())


def _peak(config: RunConfig, device: torch.device) -> float:
    """Floating-point operations a second of one large matrix product: the best of a few."""
    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if config.compute.autocast == "bfloat16" else dtype_of(config.compute)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(5):
        began = _clock(device)
        a @ b
        seconds.append(_clock(device) - began)
    return 2 * size**3 / min(seconds)


# A federated round


def federated_round(config: RunConfig, on_share: OnShare) -> list[Row]:
    """Wall seconds of a round of the real simulation beside its clients' gradient steps, as many at once as train.

    The first round, in which processes start, is left out.
    """
    return [_rounds("round", config, on_share)]


def scaling(config: RunConfig, on_share: OnShare) -> list[Row]:
    """Rounds of more and more classes with `SCALING_PEERS` peers each, on made-up data of the same shape.

    Beside a round's seconds each row has `client_seconds`, what one client's round takes a core: it should not grow.
    """
    rows = []
    for index, classes in enumerate(CLASSES):
        with TemporaryDirectory() as folder:
            path = Path(folder) / "data.npz"
            rng = np.random.default_rng(0)
            images = rng.random((classes * 20, *sample_shape(config.data)), dtype=np.float32) * 2 - 1
            np.savez(path, images=np.moveaxis(images, 1, -1), labels=np.repeat(np.arange(classes), 20))
            made_up = {"data": "npz", "data_path": str(path), "classes": classes, "imbalance": "none", "counts": ""}
            made_up |= {
                "shape": ",".join(map(str, sample_shape(config.data))),
                "held_out": 2,
                "test": 2,
                "head_count": 0,
            }
            sized = config.but(**made_up, peers_per_round=SCALING_PEERS)
            rows.append(_rounds("scaling", sized, _part(on_share, index, len(CLASSES))))
    return rows


def _rounds(name: str, config: RunConfig, on_share: OnShare) -> Row:
    if config.rounds < 2:
        raise UserError("bench leaves the first round out: set rounds to 2 or more")
    with TemporaryDirectory() as folder:
        simulation: Simulation[Run] = Simulation(config.but(out=str(Path(folder) / "run"), store=""))
        simulation.run(lambda rows: on_share(rows[0]["round"] / config.rounds))
        history = [line for line in read_history(Path(folder) / "run") if line["round"] > 1]
    refused = next((line["reason"] for line in history if line["status"] not in ("ok", "idle")), None)
    if refused is not None:
        raise RuntimeError(f"a client did not get through, so that the round cannot be timed: {refused}")
    rounds, at_once = config.rounds - 1, simulation.at_once
    wall = sum({line["round"]: line["round_seconds"] for line in history}.values()) / rounds
    ratio = overhead(history, at_once)
    clients = len(history) / rounds
    return {
        "name": name,
        "network": config.network.kind,
        "batch": config.optimiser.batch,
        "peers": _peers_of_a_client(config),
        "classes": simulation.classes,
        "at_once": at_once,
        "seconds": wall,
        "bare_seconds": wall / ratio,
        "ratio": ratio,
        "client_seconds": wall * at_once / clients,
        "bytes_down": statistics.mean(line["bytes_down"] for line in history),
        "bytes_up": statistics.mean(line["bytes_up"] for line in history),
    }


# The wire


def wire(config: RunConfig, on_share: OnShare) -> list[Row]:
    """Bytes that a client receives and sends in a round, and gigabytes of the whole run, of networks as records."""
    network = pack_network(build(config, sample_shape(config.data), 0).state_dict()).count_bytes()
    peers = _peers_of_a_client(config)
    down = network * (min(peers, 1) if config.mutual.exchange == "mean" else peers)
    messages = config.rounds * max(1, round(config.federation.participation * num_classes(config.data)))
    return [
        {
            "name": "bytes",
            "network": config.network.kind,
            "batch": config.optimiser.batch,
            "peers": peers,
            "seconds": None,
            "bare_seconds": None,
            "ratio": None,
            "bytes_down": down,
            "bytes_up": network,
            "run_gigabytes": messages * (down + network) / 1e9,
        }
    ]


def _peers_of_a_client(config: RunConfig) -> int:
    others = num_classes(config.data) - 1 if config.mutual.beta else 0
    return min(others, config.mutual.peers_per_round or others)


PARTS: dict[str, Callable[[RunConfig, OnShare], list[Row]]] = {
    "step": step,
    "round": federated_round,
    "scaling": scaling,
    "bytes": wire,
}
