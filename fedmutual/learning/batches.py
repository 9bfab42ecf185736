"""Samples, times and noise of the local steps, drawn a block of steps at a time."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from fedmutual.config import RunConfig
from fedmutual.diffusion import Process
from fedmutual.diffusion.process import expand
from fedmutual.learning.objective import denoising_target
from fedmutual.learning.peers import BLOCK, Peers


class Batch(NamedTuple):
    """One step's inputs: `x, target, peer_mean: [batch, *dims]`, `t, denoising, mutual: [batch]` (weights)."""

    x: Tensor
    t: Tensor
    target: Tensor
    peer_mean: Tensor | None
    denoising: Tensor
    mutual: Tensor


def _batch(
    x0: Tensor,
    index: Tensor,
    noise: Tensor,
    peers: Peers,
    process: Process,
    config: RunConfig,
) -> Batch:
    """The inputs of one or more steps, flat over them: `x0, noise: [rows, *dims]`, `index: [rows]`."""
    x, t = process.noised(x0, index, noise), process.times[index]
    alpha, sigma = expand(process.alpha[index], x0), expand(process.sigma[index], x0)
    target = denoising_target(config.diffusion.parametrisation, x0, noise, alpha, sigma)
    denoising, mutual = (
        process.weight(name)[index] for name in (config.diffusion.lambda_weight, config.mutual.omega_weight)
    )
    mean = peers.mean(x, t, config.compute.autocast == "bfloat16")
    return Batch(x, t, target, mean, denoising, mutual)


def blocks(config: RunConfig, numbers: int) -> Iterator[tuple[int, int]]:
    """(first step, steps) of the blocks that `config.local_steps` are drawn in; `numbers` in one sample."""
    size = max(1, BLOCK // (config.optimiser.batch * numbers))
    for start in range(0, config.local_steps, size):
        yield start, min(size, config.local_steps - start)


def noised(x0: Tensor, peers: Peers, process: Process, config: RunConfig, rng: torch.Generator) -> Iterator[Batch]:
    """The batches of some steps on their samples `x0: [steps * batch, *dims]`, each at a time and noise of its own."""
    options = {"generator": rng, "device": x0.device}
    if config.optimiser.flips:
        mirrored = torch.rand(len(x0), **options) < 0.5
        x0 = torch.where(expand(mirrored, x0), x0.flip(-1), x0)
    index = torch.randint(len(process), (len(x0),), **options)
    noise = torch.randn(x0.shape, dtype=x0.dtype, **options)
    flat = _batch(x0, index, noise, peers, process, config)
    steps = len(x0) // config.optimiser.batch
    chunks = [part.split(config.optimiser.batch) if part is not None else [None] * steps for part in flat]
    yield from map(Batch._make, zip(*chunks, strict=True))


def _fresh(
    data: Tensor,
    peers: Peers,
    process: Process,
    config: RunConfig,
    rng: torch.Generator,
    shares: Tensor,
) -> Iterator[Batch]:
    """Every step draws its own samples, times and noise; drawn and shown to the peers a block of steps at a time.

    `shares: [local_steps, peers]` says how much each peer counts in each step.
    """
    for start, steps in blocks(config, data[0].numel()):
        rows = torch.randint(len(data), (steps * config.optimiser.batch,), generator=rng, device=data.device)
        seen = replace(peers, shares=shares[start : start + steps])
        yield from noised(data[rows], seen, process, config, rng)


def _fixed(
    data: Tensor,
    peers: Peers,
    process: Process,
    config: RunConfig,
    rng: torch.Generator,
) -> Iterator[Batch]:
    """Every step sees all samples at all times, with noise [N, n, *dims] drawn once for the whole run."""
    times, count = len(process), len(data)
    noise = torch.randn(times, *data.shape, dtype=data.dtype, device=data.device, generator=rng).flatten(0, 1)
    index = torch.arange(times, device=data.device).repeat_interleave(count)
    x0 = data.repeat(times, *(1 for _ in data.shape[1:]))
    batch = _batch(x0, index, noise, peers, process, config)
    for _ in range(config.local_steps):
        yield batch
