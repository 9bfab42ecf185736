"""The networks of a run, read from its checkpoints."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from fedmutual.baselines.memory import Memory
from fedmutual.checkpoint import CheckpointError
from fedmutual.config import RunConfig
from fedmutual.data.source import num_classes, sample_shape
from fedmutual.device import dtype_of
from fedmutual.diffusion import make_process
from fedmutual.errors import UserError
from fedmutual.networks import OfClass, build, build_conditional
from fedmutual.records import Network
from fedmutual.run_folder import CONFIG, SHARED, checkpoints, holds_run, newest_checkpoint, read_checkpoint
from fedmutual.settings import read_settings


def run_config(folder: Path) -> RunConfig:
    """The settings of the run in `folder`.

    Raises:
        UserError: there is no run.
    """
    if not holds_run(folder):
        raise UserError(f"{folder} holds no run: name a folder that `fedmutual simulate` wrote")
    return RunConfig.of(read_settings(folder / CONFIG))


def read_networks(folder: Path, which: str = "last") -> tuple[int, dict[int, Network]]:
    """(round, {class: network}) of the checkpoint `which`: last, best (smallest gradient norm), or a round's number.

    Where all classes share one conditional network, every class has that one.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    round_, networks = _read(folder, which)
    if SHARED in networks:
        return round_, dict.fromkeys(range(num_classes(run_config(folder).data)), networks[SHARED])
    return round_, _of_classes(networks)


def _read(folder: Path, which: str) -> tuple[int, dict[int | str, Network]]:
    """(round, networks) of a checkpoint as it is laid out."""
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        raise UserError(f"{folder} holds no whole checkpoint: let the run finish a round first")
    if which != "last":
        paths = {str(round_): path for round_, path in checkpoints(folder).items()}
        wanted = str(checkpoint.best[0]) if which == "best" else which
        if wanted == "0":
            raise UserError("no round had a reply of every class, so none is best: use --round last")
        if wanted not in paths:
            raise UserError(f"no checkpoint of round {wanted}: there are {', '.join(paths)}, last and best")
        try:
            checkpoint = read_checkpoint(paths[wanted])
        except CheckpointError as error:
            raise UserError(str(error)) from None
    return checkpoint.round, {place: entry.network for place, entry in checkpoint.networks.items()}


def _of_classes(networks: Mapping[int | str, Network]) -> dict[int, Network]:
    return {place: network for place, network in networks.items() if isinstance(place, int)}


def class_networks(folder: Path, which: str, device: torch.device) -> tuple[int, dict[int, nn.Module]]:
    """(round, {class: its network}) of a run's checkpoint, as `read_networks`.

    Each is (x, t) -> output, in evaluation mode on `device`, whatever the method: the class's own network, the
    conditional one at the class's label, or the exact minimiser that `memory` stands for.
    """
    config = run_config(folder)
    shape, classes = sample_shape(config.data), num_classes(config.data)
    round_, states = _read(folder, which)
    if SHARED in states:
        shared = _ready(build_conditional(config, shape, classes), states[SHARED], device)
        return round_, {y: OfClass(shared, y).eval() for y in range(classes)}
    networks: dict[int, nn.Module] = {}
    for y, state in sorted(_of_classes(states).items()):
        if set(state) == {"samples"}:
            process = make_process(config.diffusion, device, dtype_of(config.compute))
            networks[y] = Memory(state["samples"].to(device), process, config.diffusion.parametrisation).eval()
        else:
            networks[y] = _ready(build(config, shape, y), state, device)
    return round_, networks


def _ready(network: nn.Module, state: Network, device: torch.device) -> nn.Module:
    network.load_state_dict(state)
    return network.to(device).eval().requires_grad_(False)
