"""`cm`: capacity manipulation (Hong, Yao, Shen, Li, Zhang and Wang; ICLR 2026, *Improving Diffusion Models for
Class-imbalanced Training Data via Capacity Manipulation*).

A weight is W + B A: W is for what all classes share, and the capacity of the low rank B A is reserved for rare ones. A
frequent class must be denoised alike without it (consistency), and a rare one differently (diversity). Once trained, B
A is added to W, so that the network is as large as that of `pooled`.

The numbers are those of the code that the authors released: strengths 1 and 0.2, a tenth of the largest rank, and the
convolutions of the U-Net's second half. Ours: the diversity moves the output with B A alone, as with gradients to both
outputs, which the released code has, it has no lower bound, and rare digits diverge in the first round; an MLP has its
hidden layers and its last one in place of that half; the targets of `oc`, which their configuration descends on as
well, are left out, and so is their dropping of labels.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedmutual.baselines import Data, OnRound, Trained, ignore
from fedmutual.baselines.pooled import State, train_conditional
from fedmutual.config import RunConfig
from fedmutual.diffusion.process import expand
from fedmutual.errors import UserError
from fedmutual.learning.batches import Batch
from fedmutual.learning.conditional import by_sample
from fedmutual.learning.objective import denoising_loss
from fedmutual.seeds import generator

RANK = 0.1
"""Of B A over the largest that it could have."""

DIVERSITY = 0.2
"""Weight of the diversity over that of the consistency."""


LEAST = -0.9
"""The smallest weight: from -1 on, the denoising loss of weight 1 beside it leaves no lower bound."""


def manipulation_weights(counts: Tensor, strength: float = 1.0) -> Tensor:
    """strength K (p_y - 0.2 q_y) of each class, `LEAST` or more, `[K]`.

    p_y is its share of all samples, q_y its share of the sum of 1 / counts; counts: training samples of each class,
    `[K]`.
    """
    inverse = 1 / counts
    weights = len(counts) * (counts / counts.sum() - DIVERSITY * inverse / inverse.sum())
    return (strength * weights).clamp(min=LEAST)


def manipulation_loss(reserved: Tensor, general: Tensor, weight: Tensor) -> Tensor:
    """K (p_y - 0.2 q_y) ||s_{W + BA}(x_t, t, y) - s_W(x_t, t, y)||² of each example, `[batch]`.

    Above 0 the weight draws the two together, and below 0 the first away from the second, whose gradient stops there.
    reserved, general: the two outputs, `[batch, *dims]`; weight: `[batch]`.
    """
    return denoising_loss(reserved, torch.where(expand(weight < 0, general), general.detach(), general), weight)


def reserved_weights(network: nn.Module) -> list[str]:
    """The names of the weights that have a part of low rank.

    Raises:
        UserError: the network's layers are not trained.
    """
    if hasattr(network, "unet"):
        layers = cast(Any, network).unet.up_blocks.named_modules(prefix="unet.up_blocks")
        wide = [name for name, layer in layers if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)]
        return [f"{name}.weight" for name in wide]
    if hasattr(network, "hidden"):
        return [name for name in network.state_dict() if name.startswith(("hidden.", "outer.")) and "weight" in name]
    raise UserError("cm reserves a part of each layer, and random features are not trained: leave cm out")


class Reserved(nn.Module):
    """A conditional network with low-rank parts: (x, t, y) -> the output with W + B A, or with W alone.

    Of a weight [out, in, k, k], B is [out k, rank k] and A [rank k, in k]. B starts at 0, so that nothing is added.
    """

    def __init__(self, network: nn.Module, seed: int):
        super().__init__()
        self.network, self.names = network, reserved_weights(network)
        rng = generator(seed, "all", 0, "reserved")
        self.first, self.second = nn.ParameterList(), nn.ParameterList()
        for name in self.names:
            weight = network.get_parameter(name)
            out, into, side = *weight.shape[:2], weight.shape[2] if weight.ndim > 2 else 1
            rank = side * max(1, int(RANK * min(out, into)))
            drawn = torch.randn(rank, into * side, generator=rng, dtype=weight.dtype) / math.sqrt(3 * into * side)
            self.first.append(nn.Parameter(drawn))
            self.second.append(nn.Parameter(torch.zeros(out * side, rank, dtype=weight.dtype)))

    def forward(self, x: Tensor, t: Tensor, y: Tensor, reserved: bool = True) -> Tensor:
        weights = zip(self.names, self.first, self.second, strict=True) if reserved else ()
        sums = {name: _sum(self.network.get_parameter(name), first, second) for name, first, second in weights}
        output: Tensor = functional_call(self.network, sums, (x, t, y))
        return output


def merged(trained: nn.Module, state: State) -> dict[str, Tensor]:
    """The state of the network alone that does what `trained`, a `Reserved`, does with the state `state`."""
    names: list[str] = cast(Reserved, trained).names
    own = {name.removeprefix("network."): tensor for name, tensor in state.items() if name.startswith("network.")}
    low_rank = ((state[f"first.{index}"], state[f"second.{index}"]) for index in range(len(names)))
    return own | {name: _sum(own[name], *factors) for name, factors in zip(names, low_rank, strict=True)}


def _sum(weight: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return weight + (second @ first).view(weight.shape)


def cm(config: RunConfig, data: Data, on_round: OnRound = ignore) -> Trained:
    """Descends the denoising loss with W + B A, and the loss above of the strength `manipulation`."""
    counts = torch.tensor([len(part.train) for part in data], dtype=torch.float64)
    weights = manipulation_weights(counts, config.rivals.manipulation).to(data[0].train)

    def with_reserve(network: nn.Module) -> nn.Module:
        return Reserved(network, config.seed)

    def loss(network: nn.Module, batch: Batch, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        output = network(batch.x, batch.t, labels)
        own = denoising_loss(output, batch.target, batch.denoising).mean()
        general = network(batch.x, batch.t, labels, reserved=False)
        pull = manipulation_loss(output, general, weights[labels]).mean()
        return own + pull, own.detach(), pull.detach()

    return train_conditional(config, data, by_sample, loss, on_round, with_reserve, merged)
