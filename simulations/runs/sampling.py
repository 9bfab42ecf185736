"""Samples of a run's networks: drawing them and writing them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from fedmutual.baselines.kernel_density import KernelDensity
from fedmutual.config import RunConfig
from fedmutual.device import dtype_of, pick_device
from fedmutual.diffusion import Process, make_process
from fedmutual.diffusion.sampling import sample
from fedmutual.run_folder import write_arrays
from fedmutual.seeds import generator
from simulations.runs.networks import NOTHING_ELSE, class_networks, run_config, run_shape
from simulations.runs.stacking import stacked_networks


def sheet(images: NDArray[Any], columns: int = 4, most: int = 20) -> NDArray[np.uint8]:
    """Images `[n, C, H, W]` in [-1, 1] as one grid `[height, width, 3]`; fewer of them when they are large."""
    height, width = images.shape[2:]
    count = min(len(images), most, max(columns, 200_000 // (height * width)))
    zoom = max(1, -(-24 // max(height, width)))  # small images are enlarged, so that the gap stays narrow
    pixels = np.clip((images[:count].astype(np.float64) + 1) * 127.5, 0, 255).round().astype(np.uint8)
    pixels = pixels.repeat(zoom, axis=2).repeat(zoom, axis=3).transpose(0, 2, 3, 1)
    colours = pixels if pixels.shape[3] == 3 else pixels[..., :1].repeat(3, axis=3)
    tall, wide, gap = height * zoom, width * zoom, 2
    rows = max(1, -(-count // columns))
    grid = np.full((rows * (tall + gap) - gap, columns * (wide + gap) - gap, 3), 128, np.uint8)
    for index, tile in enumerate(colours):
        top, left = (index // columns) * (tall + gap), (index % columns) * (wide + gap)
        grid[top : top + tall, left : left + wide] = tile
    return grid


OnClass = Callable[[int], None]


def draw_samples(
    folder: Path,
    count: int,
    which: str = "last",
    on_class: OnClass = lambda y: None,
    here: Mapping[str, Any] = NOTHING_ELSE,
    stack: bool = False,
) -> dict[int, Tensor]:
    """{class: `[count, *dims]` generated samples} of a run's checkpoint, on the CPU in float32; `here` as `run_config`.

    stack: mix each network with its peers' by what held-out samples say, which must be here; else no data are read.
    """
    config = run_config(folder, here)
    device = pick_device(config.compute)
    shape, process = run_shape(folder)[0], make_process(config.diffusion, device, dtype_of(config.compute))
    round_, networks = class_networks(folder, which, device, here)
    if stack:
        networks = stacked_networks(folder, config, networks, process, round_)
    samples = {}
    for y, network in networks.items():
        samples[y] = draw_class(network, process, shape, count, config, y, round_).cpu().float()
        on_class(y)
    return samples


def draw_class(
    network: nn.Module,
    process: Process,
    shape: tuple[int, ...],
    count: int,
    config: RunConfig,
    y: int,
    round_: int,
) -> Tensor:
    """Class y's samples at a round, the same on every machine: `draw` with (seed, y, round, "samples")."""
    rng = generator(config.seed, y, round_, "samples", device=process.alpha.device)
    return draw(network, process, shape, count, config, rng)


def draw(
    network: nn.Module,
    process: Process,
    shape: tuple[int, ...],
    count: int,
    config: RunConfig,
    rng: torch.Generator,
) -> Tensor:
    """`count` samples of one network by the run's sampler, `[count, *shape]` on the process's device."""
    if isinstance(network, KernelDensity):
        drawn = network.draw(count, rng)
        return drawn.clamp(-1, 1) if config.measuring.clip_samples else drawn
    return sample(
        network,
        process,
        shape,
        count,
        rng,
        parametrisation=config.diffusion.parametrisation,
        sampler=config.measuring.sampler,
        steps=config.measuring.sampling_steps,
        clip=config.measuring.clip_samples,
    )


def write_samples(folder: Path, generated: dict[int, Tensor], real: dict[int, Tensor], grid: int = 64) -> None:
    """`samples.npz`, and for images a PNG grid of each class, 8 in a row."""
    arrays = {y: tensor.numpy() for y, tensor in generated.items()}
    write_arrays(folder, arrays, {y: tensor.float().numpy() for y, tensor in real.items()})
    for y, images in generated.items():
        if images.ndim == 4:
            Image.fromarray(sheet(images.numpy(), columns=8, most=grid)).save(folder / f"class-{y:03d}.png")
