"""`fedmutual bench`: what a local step costs beside a plain PyTorch loop with the same arithmetic, in one run."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from client.app import pick_device
from fedmutual.config import RunConfig, UserError
from fedmutual.data.sources import num_classes, sample_shape
from fedmutual.diffusion.process import expand
from fedmutual.learning.igd import Peers, Player, local_steps, make_process
from fedmutual.networks import build

REPEATS = 7


def bench(config: RunConfig, on_repeat: Callable[[int], None] = lambda done: None) -> list[dict[str, Any]]:
    """Seconds a step of `config`'s network with no peer, one, and all, on one thread where there is no GPU.

    Each row holds medians over `REPEATS` turns, ours and the bare loop's by turns so that both meet the same
    machine: {name, network, batch, peers, steps, seconds, bare_seconds, ratio}.

    Raises:
        UserError: settings under which a step is not one batch of fresh draws.
    """
    if config.draws == "fixed" or config.parametrisation != "noise" or config.optimizer != "adam":
        raise UserError("bench times draws = fresh, parametrisation = noise, optimizer = adam: set them with -s")
    device, shape, classes = pick_device(config), sample_shape(config), num_classes(config)
    data = torch.rand(256, *shape, device=device, dtype=getattr(torch, config.dtype)) * 2 - 1
    everyone = [build(config, shape, y).to(device).eval().requires_grad_(False) for y in range(1, classes)]
    counts = sorted({0, 1, classes - 1})
    threads, rows = torch.get_num_threads(), []
    torch.set_num_threads(1)  # as a simulated client has it
    try:
        for turn, count in enumerate(counts):
            peers = Peers(everyone[:count], [1 / count] * count if count else [])
            turns: list[tuple[float, float]] = []
            for repeat in range(REPEATS + 1):
                turns.append((_ours(config, data, peers, device), _bare(config, data, everyone[:count], device)))
                on_repeat(100 * (turn * (REPEATS + 1) + repeat + 1) // (len(counts) * (REPEATS + 1)))
            ours, bare = (statistics.median(column) for column in zip(*turns[1:], strict=True))  # the first warms up
            row = {"name": "local step", "network": config.network, "batch": config.batch, "peers": count}
            row |= {"steps": config.local_steps, "seconds": ours, "bare_seconds": bare, "ratio": ours / bare}
            rows.append(row)
    finally:
        torch.set_num_threads(threads)
    return rows


def _ours(config: RunConfig, data: Tensor, peers: Peers, device: torch.device) -> float:
    """Seconds a step of `local_steps`, which ends by reading its numbers off the device."""
    player = Player.start(build(config, tuple(data.shape[1:]), 0).to(device), config)
    process = make_process(config, device)
    began = time.perf_counter()
    local_steps(player, data, peers, config, process, 0, 1)
    return (time.perf_counter() - began) / config.local_steps


def _bare(config: RunConfig, data: Tensor, peers: list[nn.Module], device: torch.device) -> float:
    """The loop one would write: draw, noise, own forward, each peer's forward, backward, clip, Adam, average."""
    network = build(config, tuple(data.shape[1:]), 0).to(device)
    process, parameters = make_process(config, device), list(network.parameters())
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate, fused=True)
    average = [parameter.detach().clone() for parameter in parameters]
    omega = process.weight(config.omega_weight)
    began = time.perf_counter()
    for _ in range(config.local_steps):
        x0 = data[torch.randint(len(data), (config.batch,), device=device)]
        index = torch.randint(len(process), (config.batch,), device=device)
        noise = torch.randn_like(x0)
        x = expand(process.alpha[index], x0) * x0 + expand(process.sigma[index], x0) * noise
        t = process.times[index]
        output = network(x, t)
        loss = (output - noise).square().mean()
        if peers:
            with torch.no_grad():
                mean = sum(peer(x, t) for peer in peers) / len(peers)
            loss = loss + (omega[index] * (output - mean).square().flatten(1).mean(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - config.ema)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / config.local_steps
