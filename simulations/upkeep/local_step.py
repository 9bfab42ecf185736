"""A local step beside a plain PyTorch loop with the same arithmetic, taken by turns in one run, so that both meet the
same machine.

Nothing here needs Flower or Ray.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

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
from fedmutual.privacy.versions import versions_for

TURNS = 7
"""Turns of each loop that count; one more before them warms up."""

TURN_SECONDS = 0.2
"""A turn is as many steps as take about this long, at least one and at most `local-steps`."""

Row = dict[str, Any]
OnShare = Callable[[float], None]
"""Takes the share that is done."""


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
        most = peak(config, device)
        drawn = [count for count in (0, 1, classes - 1) if count < classes]
        loops = [_Loops(config, data, peers, count) for count in dict.fromkeys(drawn)]
        for turn in range(TURNS + 1):
            for index, loop in enumerate(loops):
                loop.turn()
                on_share((turn * len(loops) + index + 1) / ((TURNS + 1) * len(loops)))
    finally:
        torch.set_num_threads(threads)
    return [loop.row(most) for loop in loops]


class OurLoop:
    """Local steps of one player as a client takes them, against `count` of `peers` in each."""

    def __init__(self, config: RunConfig, network: nn.Module, data: Tensor, peers: list[nn.Module], count: int):
        self.config = config.but(peers_per_step=count) if count else config
        self.data, self.peers = data, Peers(peers, [1 / len(peers)] * len(peers)) if count else Peers()
        self.player, self.versions = Player.start(network, config.optimiser), versions_for(config, data)
        self.process = make_process(config.diffusion, data.device, dtype_of(config.compute))

    def seconds(self, steps: int) -> float:
        """Seconds a step, of so many."""
        config = self.config.but(local_steps=steps)
        began = clock(self.data.device)
        local_steps(self.player, self.data, self.peers, config, self.process, 0, 1, self.versions)
        return (clock(self.data.device) - began) / steps


class _Loops:
    """Our loop and the bare one, on networks of their own from one start, taking turns."""

    def __init__(self, config: RunConfig, data: Tensor, peers: list[nn.Module], count: int):
        self.config, self.count, self.device = config, count, data.device
        network = build(config, tuple(data.shape[1:]), 0).to(self.device)
        self.flops = step_flops(config, network, data, peers[:1] * count)
        self.our_loop = OurLoop(config, network, data, peers, count)
        self.bare_loop = _bare(config, data, peers, count)
        self.ours: list[float] = []
        self.bare: list[float] = []
        self.steps = 1
        self.memory: int | None = None

    def turn(self) -> None:
        """Time both; the first turn, of one step, says how many steps the others have, and is not kept."""
        with memory_of(self.device) as held:
            first, ours, bare = not self.ours, self.our_loop.seconds(self.steps), self._bare()
        self.memory = held()
        if first and self.steps == 1:
            self.steps = max(1, min(self.config.local_steps, int(TURN_SECONDS / ours)))
        self.ours.append(ours)
        self.bare.append(bare)

    def _bare(self) -> float:
        began = clock(self.device)
        for _ in range(self.steps):
            next(self.bare_loop)
        return (clock(self.device) - began) / self.steps

    def row(self, most: float) -> Row:
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
            "share_of_peak": self.flops / ours / most,
            "memory": self.memory,
        }


@contextmanager
def memory_of(device: torch.device) -> Iterator[Callable[[], int | None]]:
    """Yields a function that tells the bytes that a GPU held at most during the block; None on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield lambda: torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def clock(device: torch.device) -> float:
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


def step_flops(config: RunConfig, network: nn.Module, data: Tensor, peers: list[nn.Module]) -> float:
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


def peak(config: RunConfig, device: torch.device) -> float:
    """Floating-point operations a second of one large matrix product: the best of a few.

    A GPU may round the inputs of a product in float32 to TF32, as it does by default in convolutions.
    """
    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if config.compute.autocast == "bfloat16" else dtype_of(config.compute)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds, before = [], torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else before)
    try:
        for _ in range(5):
            began = clock(device)
            a @ b
            seconds.append(clock(device) - began)
    finally:
        torch.set_float32_matmul_precision(before)
    return 2 * size**3 / min(seconds)
