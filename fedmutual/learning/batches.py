"""Samples, times and noise of the local steps, drawn a block of steps at a time."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from fedmutual.config import Autocast, Diffusion, RunConfig, Weight
from fedmutual.diffusion import Process
from fedmutual.diffusion.process import expand
from fedmutual.learning.objective import denoising_target
from fedmutual.learning.peers import Peers
from fedmutual.privacy.versions import Versions

BLOCK = 2**18
"""Numbers of x_t drawn, and shown to the peers, at once: 128 steps of batch 32 on 8x8 images."""


class Batch(NamedTuple):
    """One step's inputs: `x, target, peer_mean: [batch, *dims]`, `t, denoising, mutual: [batch]` (weights)."""

    x: Tensor
    t: Tensor
    target: Tensor
    peer_mean: Tensor | None
    denoising: Tensor
    mutual: Tensor

    def split(self, size: int) -> "Iterator[Batch]":
        """Batches of `size` rows each, in turn; the last may have fewer."""
        count = -(-len(self.x) // size)
        parts = [part.split(size) if part is not None else [None] * count for part in self]
        return map(Batch._make, zip(*parts, strict=True))


def level_of(index: Tensor, times: int, levels: int) -> Tensor:
    """Which of so many ranges of noise, equal parts of the training times, each of `index` lies in: whole numbers."""
    return index * levels // times


def make_batch(
    x0: Tensor,
    index: Tensor,
    noise: Tensor,
    peers: Peers,
    process: Process,
    diffusion: Diffusion,
    omega_weight: Weight,
    autocast: Autocast,
    versions: Versions | None = None,
) -> Batch:
    """The inputs of one or more steps, flat over them: `x0, noise: [rows, *dims]`, `index: [rows]` of the times.

    With noised `versions` of the rows, those of times after their level are made of them alone, and not of `x0`.
    """
    x, t = process.noised(x0, index, noise), process.times[index]
    alpha, sigma = expand(process.alpha[index], x0), expand(process.sigma[index], x0)
    denoising = process.weight(diffusion.lambda_weight)[index]
    if versions is not None:
        after = index > versions.level
        noised_on, seen, factor = versions.noised_on(process, index, noise)
        x, noise = (torch.where(expand(after, x), *pair) for pair in ((noised_on, x), (seen, noise)))
        x0 = torch.where(expand(after, x), (x - sigma * noise) / alpha, x0)
        denoising = torch.where(after, factor * denoising, denoising)
    target = denoising_target(diffusion.parametrisation, x0, noise, alpha, sigma)
    if peers.by_noise is None:
        return Batch(x, t, target, peers.mean(x, t, autocast), denoising, process.weight(omega_weight)[index])
    level = level_of(index, len(process), len(peers.by_noise.strength))
    mean = peers.mean_by_noise(x, t, level, peers.by_noise, autocast)
    return Batch(x, t, target, mean, denoising, denoising * peers.by_noise.strength.to(x)[level])


def blocks(steps: int, batch: int, numbers: int) -> Iterator[tuple[int, int]]:
    """(first step, how many) of the blocks that `steps` of `batch` samples are drawn in; `numbers` in one sample."""
    size = max(1, BLOCK // (batch * numbers))
    for start in range(0, steps, size):
        yield start, min(size, steps - start)


def noised(
    x0: Tensor,
    peers: Peers,
    process: Process,
    config: RunConfig,
    rng: torch.Generator,
    versions: Versions | None = None,
) -> Iterator[Batch]:
    """The batches of some steps on their samples `x0: [steps * batch, *dims]`, see `drawn`."""
    return drawn(x0, peers, process, config, rng, versions).split(config.optimiser.batch)


def drawn(
    x0: Tensor,
    peers: Peers,
    process: Process,
    config: RunConfig,
    rng: torch.Generator,
    versions: Versions | None = None,
) -> Batch:
    """The inputs of samples `x0: [rows, *dims]`, each at a time and noise of its own, flat over the rows.

    `versions`: those of the samples, where they have some, see `make_batch`.
    """
    rows = len(x0)
    if config.optimiser.flips:
        mirrored = expand(torch.rand(rows, generator=rng, device=x0.device) < 0.5, x0)
        x0 = torch.where(mirrored, x0.flip(-1), x0)
        if versions is not None:
            z = versions.samples
            versions = versions._replace(samples=torch.where(mirrored, z.flip(-1), z))
    index = torch.randint(len(process), (rows,), generator=rng, device=x0.device)
    noise = torch.randn(x0.shape, dtype=x0.dtype, generator=rng, device=x0.device)
    omega_weight, autocast = config.mutual.omega_weight, config.compute.autocast
    return make_batch(x0, index, noise, peers, process, config.diffusion, omega_weight, autocast, versions)


def fresh(
    data: Tensor,
    peers: Peers,
    shares: Tensor,
    process: Process,
    config: RunConfig,
    rng: torch.Generator,
    versions: Versions | None = None,
) -> Iterator[Batch]:
    """Every step draws its own samples, times and noise; drawn and shown to the peers a block of steps at a time.

    `data: [n, *dims]`; `shares: [local_steps, peers]` says how much each peer counts in each step; `versions` are those
    of all samples, where they have some.
    """
    batch = config.optimiser.batch
    for start, steps in blocks(config.local_steps, batch, data[0].numel()):
        rows = torch.randint(len(data), (steps * batch,), generator=rng, device=data.device)
        seen = versions.of_rows(rows, rng) if versions is not None else None
        yield from noised(data[rows], replace(peers, shares=shares[start : start + steps]), process, config, rng, seen)


def fixed(data: Tensor, peers: Peers, process: Process, config: RunConfig, rng: torch.Generator) -> Iterator[Batch]:
    """Every step sees all samples at all times, with noise [N, n, *dims] drawn once for the whole run."""
    times, count = len(process), len(data)
    noise = torch.randn(times, *data.shape, dtype=data.dtype, device=data.device, generator=rng).flatten(0, 1)
    index = torch.arange(times, device=data.device).repeat_interleave(count)
    x0 = data.repeat(times, *(1 for _ in data.shape[1:]))
    omega_weight, autocast = config.mutual.omega_weight, config.compute.autocast
    batch = make_batch(x0, index, noise, peers, process, config.diffusion, omega_weight, autocast)
    for _ in range(config.local_steps):
        yield batch
