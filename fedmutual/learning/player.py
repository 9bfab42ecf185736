"""One player: its network, optimiser and averaged parameters, and one update of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedmutual.config import Autocast, Optimiser


@dataclass
class Kept:
    """The round that a class, or a part of its network, is kept at, see `fedmutual.learning.keeping`.

    network: its averaged parameters, of that part; best: `[n]`, held-out losses of the best round up to now, one a
    sample; losses: `[classes]`, what the part adds to the held-out losses that are reported, on the CPU; newest:
    whether it is the newest round, so that what is kept moves with the average.
    """

    network: list[Tensor]
    best: Tensor
    losses: Tensor
    newest: bool = True


@dataclass(frozen=True)
class Weighed:
    """What peers were worth to a class when it last weighed them, see `fedmutual.learning.weighing`.

    round: when that was; classes: the peers'; weights: [levels, 1 + peers], the own network's first, rows summing to 1.
    """

    round: int
    classes: tuple[int, ...]
    weights: Tensor

    def of(self, classes: Sequence[int]) -> Tensor:
        """The weights with peers of these classes, [levels, 1 + classes]; what others had is the own network's."""
        column = {z: place for place, z in enumerate(self.classes, 1)}
        weights = self.weights.new_zeros(len(self.weights), 1 + len(classes))
        for place, z in enumerate(classes, 1):
            if z in column:
                weights[:, place] = self.weights[:, column[z]]
        missing = [place for z, place in column.items() if z not in classes]
        weights[:, 0] = self.weights[:, 0] + self.weights[:, missing].sum(1)
        return weights


@dataclass
class Player:
    """One class's state between rounds: network theta_y, optimiser, averaged parameters, steps taken, what it keeps.

    kept: the round that it publishes, where it chooses one; kept_private: that of the part that is not sent, if any.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    average: list[Tensor]
    step: int = 0
    kept: Kept | None = None
    weighed: Weighed | None = None
    kept_private: Kept | None = None

    @classmethod
    def start(cls, network: nn.Module, optimiser: Optimiser) -> "Player":
        """A player before its first step: the average is the network as it is."""
        parameters = list(network.parameters())
        rate, decay = optimiser.learning_rate, optimiser.weight_decay
        optimizer: torch.optim.Optimizer
        if optimiser.name == "adam":
            optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)  # Adam without a decay
        else:
            optimizer = torch.optim.SGD(parameters, lr=rate, weight_decay=decay)
        return cls(network, optimizer, [parameter.detach().clone() for parameter in parameters])

    def published(self) -> dict[str, Tensor]:
        """The network that peers receive and samples come from: averaged parameters, and buffers as they are."""
        names = [name for name, _ in self.network.named_parameters()]
        parameters = list(self.average)
        if self.kept and not self.kept.newest:
            parameters[: len(self.kept.network)] = self.kept.network
        if self.kept_private and not self.kept_private.newest:
            parameters[-len(self.kept_private.network) :] = self.kept_private.network
        return {**self.network.state_dict(), **dict(zip(names, parameters, strict=True))}


def predict(network: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor, autocast: Autocast) -> Tensor:
    """s(x, t) in the dtype of `x: [batch, *dims]`, `t: [batch]`; worked out in the type that `autocast` names."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast == "bfloat16"):
        return network(x, t).to(x.dtype)


def learning_rate(optimiser: Optimiser, step: int, total_steps: int) -> float:
    """eta at a step counted from 0 over all `total_steps` of the run.

    Linear warm-up, then constant or a half cosine, (1 + cos(pi step / total_steps)) / 2, that ends at 0.
    """
    rate = optimiser.learning_rate * min(1.0, (step + 1) / max(1, optimiser.warmup))
    if optimiser.schedule == "cosine":
        rate *= (1 + math.cos(math.pi * step / total_steps)) / 2
    return rate


def descend(
    player: Player,
    parts: Sequence[tuple[Tensor, ...]],
    loss: Tensor,
    optimiser: Optimiser,
    total_steps: int,
    forgiving: bool = False,
) -> list[Tensor]:
    """One update of the player along the gradient of `loss`, a scalar: clip, optimiser step, average.

    `parts` are all its parameters, in groups that are clipped apart. With `forgiving`, the gradient of any but the
    first counts as 0 where it is not finite. Returns the norm of each one's gradient before clipping, a scalar on the
    device.
    """
    player.optimizer.zero_grad()
    loss.backward()
    norms = [_clipped(part, optimiser.clip) for part in parts]
    for part, norm in zip(parts[1:], norms[1:], strict=True) if forgiving else ():
        for parameter in part:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(~norm.isfinite(), 0)
    advance(player, optimiser, total_steps)
    return norms


def advance(player: Player, optimiser: Optimiser, total_steps: int) -> None:
    """Optimiser step by the gradients that are in place, and average."""
    for group in player.optimizer.param_groups:
        group["lr"] = learning_rate(optimiser, player.step, total_steps)
    player.optimizer.step()
    # A young average forgets its random start quickly, as in diffusers' EMAModel.
    decay = min(optimiser.ema, (1 + player.step) / (10 + player.step))
    with torch.no_grad():
        torch._foreach_lerp_(player.average, list(player.network.parameters()), 1 - decay)
    player.step += 1


def _clipped(parameters: tuple[Tensor, ...], limit: float) -> Tensor:
    """Scale the gradients of `parameters` down to the norm `limit`, 0 for none; their norm before."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:  # no row of the step was this part's
        return parameters[0].new_zeros(())
    norm = nn.utils.get_total_norm(gradients)
    if limit:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm
