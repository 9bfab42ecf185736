"""The networks of a run, read from its checkpoints."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fedmutual.baselines.kernel_density import KernelDensity
from fedmutual.baselines.memory import Memory
from fedmutual.baselines.pfdm import build_split
from fedmutual.baselines.predictions import compose
from fedmutual.checkpoint import CheckpointError
from fedmutual.config import RunConfig
from fedmutual.data import sample_shape
from fedmutual.device import dtype_of
from fedmutual.diffusion import make_process
from fedmutual.errors import UserError
from fedmutual.networks import OfClass, build, build_conditional
from fedmutual.networks.owned import class_folder, read_owned
from fedmutual.networks.split import is_split, lacks_private, sent, sent_part
from fedmutual.run_folder import CONFIG, holds_run, read_facts
from fedmutual.saved_networks import (
    SHARED,
    Checkpoint,
    NetworkOfRound,
    checkpoints,
    newest_checkpoint,
    read_checkpoint,
)
from fedmutual.settings import read_stored

if TYPE_CHECKING:
    from fedmutual.records import Network  # Flower is not needed to read a run

HERE = ("data", "data-path", "device", "store")
"""Settings that say where the data and the clients' states lie and what computes: they may differ on a machine to which
a run has moved."""

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
    settings = read_stored(folder / CONFIG)
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


def read_networks(folder: Path, which: str = "last") -> "tuple[int, dict[int, Network]]":
    """(round, {class: network}) of the checkpoint `which`: last, best (smallest gradient norm), or a round's number.

    Where all classes share one conditional network, every class has that one.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    checkpoint = _read(folder, which)
    networks = checkpoint.networks
    if SHARED in networks:
        return checkpoint.round, dict.fromkeys(range(run_shape(folder)[1]), networks[SHARED].network)
    return checkpoint.round, {y: entry.network for y, entry in _of_classes(networks).items()}


def _read(folder: Path, which: str) -> Checkpoint:
    """A checkpoint as it is laid out."""
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
    return checkpoint


def _of_classes(networks: Mapping[int | str, NetworkOfRound]) -> dict[int, NetworkOfRound]:
    return {place: entry for place, entry in networks.items() if isinstance(place, int)}


def class_networks(
    folder: Path, which: str, device: torch.device, here: Mapping[str, Any] = NOTHING_ELSE
) -> tuple[int, dict[int, nn.Module]]:
    """(round, {class: its network}) of a run's checkpoint, as `read_networks`.

    Each is (x, t) -> output, in evaluation mode on `device`, whatever the method: the class's own network, the
    conditional one at the class's label, what `predictions` composes of all, or the exact minimiser that `memory` or
    `kernel-density` stands for. Of networks that were published in part there are those whose owner's store is here,
    see `_whole`; `here` as `run_config`.
    """
    config = run_config(folder, here)
    shape, classes = run_shape(folder)
    checkpoint = _read(folder, which)
    if SHARED in checkpoint.networks:
        shared = _ready(build_conditional(config, shape, classes), checkpoint.networks[SHARED].network, device)
        return checkpoint.round, {y: OfClass(shared, y).eval() for y in range(classes)}
    networks: dict[int, nn.Module] = {}
    untrained = _untrained(folder)
    for y, state in sorted(_whole(folder, config, _of_classes(checkpoint.networks)).items()):
        if "samples" in state:
            networks[y] = _exact(state, config, device)
        else:
            networks[y] = _ready(untrained(y), state, device)
    facts = read_facts(folder)
    if facts.method == "predictions":
        networks = compose(networks, facts.training_counts or (), config, device)
    return checkpoint.round, networks


def _untrained(folder: Path) -> Callable[[int], nn.Module]:
    """Class -> its network as the run's method builds it; the run folder is read once, however many classes it has."""
    config, (shape, classes) = run_config(folder), run_shape(folder)
    if read_facts(folder).method == "pfdm":
        return lambda y: build_split(config, shape, classes, y)
    return lambda y: build(config, shape, y)


def sent_networks(folder: Path, which: str, device: torch.device) -> tuple[int, dict[int, nn.Module]]:
    """(round, {class: what peers and the server hold of its network}) of a run that publishes networks in part."""
    round_, states = read_networks(folder, which)
    untrained = _untrained(folder)
    return round_, {y: _ready(sent_part(untrained(y)), sent(state), device) for y, state in sorted(states.items())}


def publishes_in_part(folder: Path) -> bool:
    """Whether the classes of this run have networks in two parts, of which one is sent."""
    return any(is_split(entry.network) for entry in _read(folder, "last").networks.values())


def _whole(folder: Path, config: RunConfig, entries: Mapping[int, NetworkOfRound]) -> "dict[int, Network]":
    """{class: its whole network}: the checkpoint's own, or that in its owner's store where the server had a part.

    The store is the setting `store`, or that of the simulation in the run folder; it need not know every class.

    A class whose store has lost the network of that round is left out, and the log says so.

    Raises:
        UserError: no store of any class is here, or none has the network of that round.
    """
    if not any(lacks_private(entry.network) for entry in entries.values()):
        return {y: entry.network for y, entry in entries.items()}
    store = Path(config.federation.store).expanduser() if config.federation.store else folder / "clients"
    run = read_facts(folder).run or ""
    owned = {y: place for y in entries if (place := class_folder(store, run, y)).is_dir()}
    if not owned:
        raise UserError(
            f"{folder} holds of each class the part that it published, for t / T from {config.publishing.split:g} on, "
            "which draws no samples: the whole network is in its owner's store, and -s store=DIR names it there"
        )
    networks: dict[int, Network] = {}
    for y, place in owned.items():
        try:
            networks[y] = read_owned(place, entries[y].round)
        except UserError as error:
            if not networks and y == max(owned):
                raise
            logging.getLogger(__name__).warning("%s; class %d is left out", error, y)
    return networks


def _exact(state: "Network", config: RunConfig, device: torch.device) -> nn.Module:
    """The exact denoiser of what stands for a class whose method trains no network."""
    process = make_process(config.diffusion, device, dtype_of(config.compute))
    kept = {name: tensor.to(device) for name, tensor in state.items()}
    parametrisation = config.diffusion.parametrisation
    if "variances" in kept:
        return KernelDensity(kept["samples"], kept["axes"], kept["variances"], process, parametrisation).eval()
    return Memory(kept["samples"], process, parametrisation).eval()


def _ready(network: nn.Module, state: "Network", device: torch.device) -> nn.Module:
    network.load_state_dict(state)
    return network.to(device).eval().requires_grad_(False)
