"""Local steps at the paper's size, and whether each way to make them faster pays: each against eager in one run."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from fedmutual.config import RunConfig
from fedmutual.data import num_classes, sample_shape
from fedmutual.device import pick_device
from fedmutual.learning.peers import freeze
from fedmutual.networks import build
from simulations.upkeep.gpu_proof.findings import Piece, Row
from simulations.upkeep.gpu_proof.sizes import Size
from simulations.upkeep.local_step import OurLoop, memory_of, peak, step, step_flops

WARM_UP = 4
"""Steps before those that count: a compiler and a graph need more than one."""

Prepare = Callable[[nn.Module, RunConfig, Size], nn.Module]
"""(the player's network on its device, settings, size) -> what takes its place in the local steps."""


def _as_it_is(network: nn.Module, config: RunConfig, size: Size) -> nn.Module:
    return network


def _compiled(network: nn.Module, config: RunConfig, size: Size) -> nn.Module:
    """`torch.compile` with the launches of a step recorded (reduce-overhead)."""
    torch.compiler.reset()
    mode = "reduce-overhead" if size.compiler == "inductor" else None
    return cast(nn.Module, torch.compile(network, mode=mode, backend=size.compiler, dynamic=False))


def _graphed(network: nn.Module, config: RunConfig, size: Size) -> nn.Module:
    """Forward and backward as CUDA graphs, which the card runs without Python between the kernels."""
    device = next(network.parameters()).device
    x = torch.zeros(config.optimiser.batch, *sample_shape(config.data), device=device)
    t = torch.zeros(len(x), device=device)
    return cast(nn.Module, torch.cuda.make_graphed_callables(network.train(), (x, t)))


@dataclass(frozen=True)
class Option:
    """A way to take the same steps: settings, memory format, and what stands for the player's network.

    Peers stay eager: how many of their rows a batch has depends on the draw, and each number would be compiled anew.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    memory_format: torch.memory_format = torch.contiguous_format
    prepare: Prepare = _as_it_is
    needs_card: bool = False


OPTIONS = {
    "channels_last": Option(memory_format=torch.channels_last),
    "bfloat16": Option({"autocast": "bfloat16"}),
    "bfloat16, channels_last": Option({"autocast": "bfloat16"}, torch.channels_last),
    "torch.compile": Option(prepare=_compiled),
    "CUDA graphs": Option(prepare=_graphed, needs_card=True),
    "bfloat16, torch.compile": Option({"autocast": "bfloat16"}, prepare=_compiled),
}


def pieces(size: Size) -> list[Piece]:
    """Eager steps beside a plain PyTorch loop, then each option, at every batch."""
    made = []
    for batch in size.batches:
        config = size.preset("cifar10", batch=batch)
        made.append(Piece("local steps", f"eager at batch {batch}", partial(step, config, _ignore)))
    for batch in size.batches:
        config = size.preset("cifar10", batch=batch)
        made += [
            Piece("options", f"{name} at batch {batch}", partial(against_eager, name, config, size)) for name in OPTIONS
        ]
    return made


def _ignore(share: float) -> None:
    pass


def against_eager(name: str, config: RunConfig, size: Size) -> list[Row]:
    """A row for no peer, one drawn for each step, and all; medians of turns that the option and eager take.

    memory: bytes that the card held at most during the option's steps, the networks of both included. An option
    that needs a card is left out without one, and its row says so.
    """
    option, device = OPTIONS[name], pick_device(config.compute)
    if option.needs_card and device.type != "cuda":
        return [{"option": name, "batch": config.optimiser.batch, "left_out": "it needs a card"}]
    eager = _Side(config, Option(), size)
    most, flops = peak(config.but(**option.settings), device), eager.flops()
    ours = _Side(config.but(**option.settings), option, size)
    rows = []
    for count in sorted({0, 1, num_classes(config.data) - 1}):
        seconds, eager_seconds, memory = _in_turn(ours.loop(count), eager.loop(count), size)
        rows.append(
            {
                "option": name,
                "batch": config.optimiser.batch,
                "peers": count,
                "images_per_second": config.optimiser.batch / seconds,
                "eager_images_per_second": config.optimiser.batch / eager_seconds,
                "times_as_fast": eager_seconds / seconds,
                "peak_tflops": most / 1e12,
                "share_of_peak": (flops[0] + count * flops[1]) / seconds / most,
                "memory": memory,
            }
        )
    return rows


def _in_turn(ours: OurLoop, eager: OurLoop, size: Size) -> tuple[float, float, int | None]:
    """(seconds a step with the option, and eager; bytes that the card held): medians of turns."""
    steps = max(1, int(size.turn_seconds / min(loop.seconds(WARM_UP) for loop in (ours, eager))))
    seconds: list[float] = []
    eager_seconds: list[float] = []
    memory = None
    for _ in range(size.turns):
        with memory_of(ours.data.device) as held:
            seconds.append(ours.seconds(steps))
        memory = held()
        eager_seconds.append(eager.seconds(steps))
    return statistics.median(seconds), statistics.median(eager_seconds), memory


class _Side:
    """A player's network and its peers from the same start on either side, prepared once for all numbers of peers."""

    def __init__(self, config: RunConfig, option: Option, size: Size):
        self.config, device, shape = config, pick_device(config.compute), sample_shape(config.data)
        self.data = torch.rand(256, *shape, generator=torch.Generator().manual_seed(0)).to(device) * 2 - 1
        layout, autocast = option.memory_format, config.compute.autocast
        built = [build(config, shape, y).to(device).to(memory_format=layout) for y in range(num_classes(config.data))]
        self.network, *peers = built
        self.prepared = option.prepare(self.network, config, size)
        self.peers = [freeze(peer, autocast) for peer in peers]

    def loop(self, count: int) -> OurLoop:
        """Local steps against `count` peers in each."""
        return OurLoop(self.config, self.prepared, self.data, self.peers, count)

    def flops(self) -> tuple[float, float]:
        """Floating-point operations of a step without peers, and those of a peer."""
        alone, with_one = (step_flops(self.config, self.network, self.data, self.peers[:n]) for n in (0, 1))
        return alone, with_one - alone
