"""Ten clients on one card: what a round of a minute costs beyond gradient steps, and what sharing the card gains."""

import importlib.util
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from fedmutual.config import RunConfig
from fedmutual.data import num_classes, sample_shape
from fedmutual.device import pick_device
from fedmutual.learning.peers import freeze
from fedmutual.networks import build
from simulations.upkeep.gpu_proof.findings import Piece, Row
from simulations.upkeep.gpu_proof.plain import PlainFederation
from simulations.upkeep.gpu_proof.sizes import Size
from simulations.upkeep.local_step import OurLoop

SHARED = {"network": "mlp", "width": 16, "depth": 2, "dropout": 0.0, "local-steps": 3}
"""Of the federation that is run alone and in two processes: its networks must not differ by a bit."""


def pieces(size: Size, data: Path, out: Path) -> list[Piece]:
    """Plain processes, one and several at once; and the same rounds through Flower and Ray, where these are."""
    config = size.preset("cifar10", data_path=str(data), imbalance="none", **size.plain_settings)
    shared = config.but(**{key.replace("-", "_"): value for key, value in SHARED.items()})
    made = [Piece("clients", "two processes share the device", partial(shared_device, shared, out))]
    for at_once in size.at_once:
        measure = partial(plain_rounds, config, at_once, out, size)
        made.append(Piece("clients", f"{at_once} plain processes", measure))
    if importlib.util.find_spec("flwr") and importlib.util.find_spec("ray"):
        made.append(Piece("clients", "Flower and Ray", partial(through_flower, config, size)))
    return made


def shared_device(config: RunConfig, out: Path) -> list[Row]:
    """Two rounds by this process and by two at once on the same device: the same networks, bit for bit."""
    ends = []
    for at_once in (1, 2):
        with TemporaryDirectory(dir=out) as work, PlainFederation(config, Path(work), at_once) as federation:
            for number in (1, 2):
                federation.round(number, config.local_steps)
            ends.append(federation.networks(2))
    same = all(torch.equal(ends[0][y][name], ends[1][y][name]) for y in ends[0] for name in ends[0][y])
    if not same:
        raise AssertionError("clients in two processes at once end elsewhere than one after the other")
    return [{"path": "two processes share the device", "passed": True}]


def plain_rounds(config: RunConfig, at_once: int, out: Path, size: Size) -> list[Row]:
    """A round of about `round_seconds`, after a short one in which processes start and everything is compiled.

    overhead: wall time, times the clients at once, over the seconds of all gradient steps.
    """
    steps = steps_for(config, size.round_seconds)
    with TemporaryDirectory(dir=out) as work, PlainFederation(config, Path(work), at_once) as federation:
        federation.round(1, 2)
        rows = federation.round(2, steps)
    return [_row(f"{at_once} plain", config, at_once, steps, rows[0]["round_seconds"], sum(r["seconds"] for r in rows))]


def steps_for(config: RunConfig, seconds: float) -> int:
    """Local steps that fill a round of so many seconds if the clients had the device in turn."""
    device, shape = pick_device(config.compute), sample_shape(config.data)
    data = torch.rand(64, *shape, device=device) * 2 - 1
    peers = [
        freeze(build(config, shape, y).to(device), config.compute.autocast) for y in range(num_classes(config.data))
    ]
    loop = OurLoop(config, build(config, shape, 0).to(device), data, peers[1:], len(peers) - 1)
    loop.seconds(2)
    return max(2, int(seconds / len(peers) / loop.seconds(4)))


def through_flower(config: RunConfig, size: Size) -> list[Row]:
    """The second of two rounds of the real simulation, with as many steps as the plain ones."""
    from simulations.upkeep.bench import federated_round

    steps = steps_for(config, size.round_seconds)
    row = federated_round(config.but(rounds=2, local_steps=steps), lambda share: None)[0]
    wall, at_once = row["seconds"], row["at_once"]
    return [_row("Flower and Ray", config, at_once, steps, wall, wall * at_once / row["ratio"])]


def _row(how: str, config: RunConfig, at_once: int, steps: int, wall: float, compute: float) -> Row:
    images = num_classes(config.data) * steps * config.optimiser.batch
    return {
        "how": how,
        "classes": num_classes(config.data),
        "at_once": at_once,
        "steps": steps,
        "round_seconds": wall,
        "overhead": wall * at_once / compute,
        "images_per_second": images / wall,
    }
