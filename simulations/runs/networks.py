"""The networks of a run, read from its checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from fedmutual.baselines.kernel_density import KernelDensity
from fedmutual.baselines.memory import Memory
from fedmutual.checkpoint import CheckpointError
from fedmutual.config import RunConfig
from fedmutual.data import sample_shape
from fedmutual.device import dtype_of
from fedmutual.diffusion import make_process
from fedmutual.errors import UserError
from fedmutual.networks import OfClass, build, build_conditional
from fedmutual.records import Network
from fedmutual.run_folder import CONFIG, SHARED, checkpoints, holds_run, newest_checkpoint, read_checkpoint, read_facts
from fedmutual.settings import read_settings

HERE = ("data", "data-path", "device")
"""Settings that say where the data lie and what computes: they may differ on a machine to which a run has moved."""

NOTHING_ELSE: Mapping[str, Any] = MappingProxyType({})


def run_config(folder: Path, here: Mapping[str, Any] = NOTHING_ELSE) -> RunConfig:
    """The settings of the run in `folder`; `here` are those of `HERE` that are other on this machine.

    A run that was trained on a GPU is read on a machine without one.

    Raises:
        UserError: there is no run, or `here` would change what was trained.
    """
    if not holds_run(folder):
        raise UserError(f"{folder} holds no run: name a folder that `fedmutual simulate` wrote")
    other = [key for key in here if key not in HERE]
    if other:
        raise UserError(f"{other[0]} cannot change in a finished run: what may change is {', '.join(HERE)}")
    settings = read_settings(folder / CONFIG)
    if settings.get("device") == "cuda":
        settings["device"] = "auto"
    return RunConfig.of(settings, dict(here))


def run_shape(folder: Path) -> tuple[tuple[int, ...], int]:
    """(shape of one sample, number of classes) of a run; the data need not be there."""
    facts = read_facts(folder)
    shape = facts.shape or sample_shape(run_config(folder).data)  # early runs did not record it
    return tuple(shape), len(facts.class_names)


def without_network(folder: Path) -> list[str]:
    """The names of the classes of a finished run that have no network, as no reply of their clients was accepted."""
    networks = read_networks(folder)[1]
    return [name for y, name in enumerate(read_facts(folder).class_names) if y not in networks]


def read_networks(folder: Path, which: str = "last") -> tuple[int, dict[int, Network]]:
    """(round, {class: network}) of the checkpoint `which`: last, best (smallest gradient norm), or a round's number.

    Where all classes share one conditional network, every class has that one.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    round_, networks = _read(folder, which)
    if SHARED in networks:
        return round_, dict.fromkeys(range(run_shape(folder)[1]), networks[SHARED])
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
    conditional one at the class's label, or the exact minimiser that `memory` or `kernel-density` stands for.
    """
    config = run_config(folder)
    shape, classes = run_shape(folder)
    round_, states = _read(folder, which)
    if SHARED in states:
        shared = _ready(build_conditional(config, shape, classes), states[SHARED], device)
        return round_, {y: OfClass(shared, y).eval() for y in range(classes)}
    networks: dict[int, nn.Module] = {}
    for y, state in sorted(_of_classes(states).items()):
        if "samples" in state:
            networks[y] = _exact(state, config, device)
        else:
            networks[y] = _ready(build(config, shape, y), state, device)
    return round_, networks


def _exact(state: Network, config: RunConfig, device: torch.device) -> nn.Module:
    """The exact denoiser of what stands for a class whose method trains no network."""
    process = make_process(config.diffusion, device, dtype_of(config.compute))
    kept, parametrisation = (
        {name: tensor.to(device) for name, tensor in state.items()},
        config.diffusion.parametrisation,
    )
    if "variances" in kept:
        return KernelDensity(kept["samples"], kept["axes"], kept["variances"], process, parametrisation).eval()
    return Memory(kept["samples"], process, parametrisation).eval()


def _ready(network: nn.Module, state: Network, device: torch.device) -> nn.Module:
    network.load_state_dict(state)
    return network.to(device).eval().requires_grad_(False)
