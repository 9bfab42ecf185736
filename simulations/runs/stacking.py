"""A run's networks mixed with their peers' by what held-out samples say: for sampling, where nothing is trained."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from fedmutual.config import RunConfig
from fedmutual.data import ClassData, open_source
from fedmutual.data.fingerprint import fingerprint, refuse_changed
from fedmutual.diffusion import Process
from fedmutual.errors import UserError
from fedmutual.learning.stacking import Stacked, stack


def parts_to_weigh(folder: Path, config: RunConfig, networks: Mapping[int, nn.Module]) -> dict[int, ClassData]:
    """{class: its samples}, of which the held-out ones say what its peers are worth.

    Raises:
        UserError: data that are not here or have changed, no held-out samples, or no peers.
    """
    source = open_source(config.data, config.seed, keep=True)
    parts = {y: source.load(y) for y in networks}
    refuse_changed(folder, {y: fingerprint(part.train) for y, part in parts.items()}, source.names)
    if not all(len(part.held_out) for part in parts.values()):
        raise UserError("peers are weighed on held-out samples, and this run kept none: train with held-out above 0")
    if len(networks) < 2:
        raise UserError("this run has one class, and so no peers")
    return parts


def stacked_networks(
    folder: Path, config: RunConfig, networks: Mapping[int, nn.Module], process: Process, round_: int
) -> dict[int, nn.Module]:
    """{class: the mixture of its own network and its peers' that its held-out samples ask for}.

    Raises:
        UserError: as `parts_to_weigh`, or networks are published in part.
    """
    if config.publishing.in_parts:
        raise UserError("networks published in part cannot be mixed: nobody holds those of other classes whole")
    parts, mixtures = parts_to_weigh(folder, config, networks), {}
    for y, part in parts.items():
        everyone = [networks[y], *(network for z, network in networks.items() if z != y)]
        held_out = part.held_out.to(process.alpha)
        weights = stack(everyone[0], everyone[1:], held_out, config, process, y, round_)
        mixtures[y] = Stacked(everyone, weights, process).eval()
    return dict(mixtures)
