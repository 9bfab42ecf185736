"""Federated averaging's networks: what a client trains, and which of its parameters are averaged with those of others.

A *part* names both. `network`: one conditional network, all of it; `whole`: a network a class, all of it; `body`: a
network a class without its first and last layers, which stay with the client (FedPer: Arivazhagan, Aggarwal, Singh and
Choudhary, 2019, who keep the last layers; a generator ends in the data at both sides).
"""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from fedmutual.config import RunConfig
from fedmutual.errors import UserError
from fedmutual.learning.player import Player
from fedmutual.networks import OfClass, build, build_conditional

Part = Literal["network", "whole", "body"]

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Of Adam. Those of a parameter travel under its name after one of these and a slash."""


def build_averaged(part: Part, config: RunConfig, shape: tuple[int, ...], classes: int) -> nn.Module:
    """The network that every client and the server start from; drawn from (seed, "all", 0, "network").

    Raises:
        UserError: no body can be told from the rest of the network.
    """
    if part == "network":
        return build_conditional(config, shape, classes)
    network = build(config.but(shared_init=True), shape, 0)
    if part == "body" and not hasattr(network, "ENDS"):
        raise UserError(
            f"fedper needs a network of several layers, and {config.network.kind} has one: "
            "leave fedper out, or set network = mlp"
        )
    return network


def averaged_parameters(part: Part, network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a network by `build_averaged` that are averaged, in its order."""
    ends: tuple[str, ...] = tuple(f"{end}." for end in network.ENDS) if part == "body" else ()  # type: ignore[union-attr]
    return {name: parameter for name, parameter in network.named_parameters() if not name.startswith(ends)}


def of_class(part: Part, network: nn.Module, y: int) -> nn.Module:
    """`network` in the call shape of class y's own."""
    return OfClass(network, y) if part == "network" else network


@torch.no_grad()
def take_over(player: Player, parameters: Mapping[str, nn.Parameter], arrays: Mapping[str, Tensor]) -> None:
    """Set `parameters` of the player's network to `arrays`, and their moments where there are some."""
    for name, parameter in parameters.items():
        parameter.copy_(arrays[name])
        if f"{MOMENTS[0]}/{name}" in arrays:
            moments = {moment: arrays[f"{moment}/{name}"].to(parameter) for moment in MOMENTS}
            player.optimizer.state[parameter] = {"step": torch.tensor(float(player.step)), **moments}


def moments_of(player: Player, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The moments of `parameters`, under the names that they travel by; an optimiser without them has none."""
    states = {name: player.optimizer.state[parameter] for name, parameter in parameters.items()}
    return {
        f"{moment}/{name}": state[moment] for name, state in states.items() for moment in MOMENTS if moment in state
    }


def add_proximal_term(parameters: Iterable[nn.Parameter], mu: float) -> None:
    """Add mu / 2 ||w - w_0||² to whatever loss is descended next, w_0 the parameters now (Li et al., 2020).

    Its gradient mu (w - w_0) joins each parameter's as soon as that is there, ahead of clipping.
    """

    def hold(parameter: nn.Parameter, start: Tensor) -> None:
        def pull_back(own: Tensor) -> None:
            if own.grad is not None:
                own.grad.add_(own.detach() - start, alpha=mu)

        parameter.register_post_accumulate_grad_hook(pull_back)

    for parameter in parameters:
        hold(parameter, parameter.detach().clone())
