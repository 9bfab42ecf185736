"""One player: its network, optimiser and averaged parameters, and one update of them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedmutual.config import RunConfig


@dataclass
class Player:
    """One class's state between rounds: network theta_y, optimiser, averaged parameters, steps taken."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    average: list[Tensor]
    step: int = 0

    @classmethod
    def start(cls, network: nn.Module, config: RunConfig) -> "Player":
        parameters = list(network.parameters())
        options = {"lr": config.optimiser.learning_rate, "weight_decay": config.optimiser.weight_decay}
        if config.optimiser.name == "adam":
            optimizer = torch.optim.AdamW(parameters, fused=True, **options)  # Adam where nothing decays
        else:
            optimizer = torch.optim.SGD(parameters, **options)
        return cls(network, optimizer, [parameter.detach().clone() for parameter in parameters])

    def published(self) -> dict[str, Tensor]:
        """The network that peers receive and samples come from: averaged parameters, and buffers as they are."""
        names = [name for name, _ in self.network.named_parameters()]
        return {**self.network.state_dict(), **dict(zip(names, self.average, strict=True))}


def predict(network: nn.Module, x: Tensor, t: Tensor, autocast: bool) -> Tensor:
    """s(x, t) in the dtype of `x: [batch, *dims]`, worked out in bfloat16 under `autocast`."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        return network(x, t).to(x.dtype)


def freeze(network: nn.Module, config: RunConfig) -> nn.Module:
    """`network` as a peer, in place: evaluation mode, no gradients, parameters in the type that it runs in."""
    network.eval().requires_grad_(False)
    if config.compute.autocast == "bfloat16":
        for parameter in network.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    return network


def learning_rate(config: RunConfig, step: int) -> float:
    """eta at a step counted from 0 over the whole run: linear warm-up, then constant or a half cosine to 0."""
    rate = config.optimiser.learning_rate * min(1.0, (step + 1) / max(1, config.optimiser.warmup))
    if config.optimiser.schedule == "cosine":
        rate *= (1 + math.cos(math.pi * step / (config.rounds * config.local_steps))) / 2
    return rate


def descend(player: Player, parameters: list[Tensor], loss: Tensor, config: RunConfig) -> Tensor:
    """One update of the player along the gradient of `loss`: clip, optimiser, average; the norm before clipping."""
    player.optimizer.zero_grad()
    loss.backward()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if config.optimiser.clip:
        nn.utils.clip_grads_with_norm_(parameters, config.optimiser.clip, norm)
    for group in player.optimizer.param_groups:
        group["lr"] = learning_rate(config, player.step)
    player.optimizer.step()
    # A young average forgets its random start quickly, as in diffusers' EMAModel.
    decay = min(config.optimiser.ema, (1 + player.step) / (10 + player.step))
    with torch.no_grad():
        torch._foreach_lerp_(player.average, parameters, 1 - decay)
    player.step += 1
    return norm
