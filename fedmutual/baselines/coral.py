"""`coral`: *CORAL: Disentangling Latent Representations in Long-Tailed Diffusion* (Rodriguez et al.; NeurIPS 2025).

arXiv 2506.15933. A supervised contrast of the labels at the network's bottleneck, strongest at low noise. The numbers
are those of the authors' code: lambda 0.5, temperature 0.1, by which they multiply the contrast once more, and 0.3 in
the weight over t. Ours: the projection is linear and as wide as the bottleneck; an MLP, which has none, is read at the
input of its last layer; their dropping of labels for guidance is left out.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedmutual.baselines import Data, OnRound, Trained, ignore
from fedmutual.baselines.pooled import train_conditional
from fedmutual.config import RunConfig
from fedmutual.diffusion import make_process
from fedmutual.errors import UserError
from fedmutual.learning.batches import Batch
from fedmutual.learning.conditional import by_sample, denoising
from fedmutual.seeds import derive

TEMPERATURE = 0.1
DECAY = 0.3
"""Of the weight exp((1 - t / T) / DECAY)."""


def supervised_contrast(features: Tensor, labels: Tensor) -> Tensor:
    """The mean over examples that share their label with another one of

    - 1 / |P_i| sum_{p in P_i} log( exp(z_i z_p / tau) / sum_{a != i} exp(z_i z_a / tau) )

    (Khosla et al., 2020), P_i the others of i's label and z the features divided by their norm; 0 where there is none.
    features: `[batch, width]`, labels: `[batch]`.
    """
    z = nn.functional.normalize(features, dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    likelihood = (z @ z.T / TEMPERATURE).masked_fill(itself, -torch.inf).log_softmax(1)
    same = (labels[:, None] == labels) & ~itself
    others = same.sum(1)
    of_each = -torch.where(same, likelihood, 0.0).sum(1) / others.clamp(min=1)
    return of_each.sum() / (others > 0).sum().clamp(min=1)


def time_weight(t: Tensor, horizon: float) -> Tensor:
    """The mean over the batch of exp((1 - t / T) / 0.3)."""
    return ((1 - t / horizon) / DECAY).exp().mean()


def watch_bottleneck(network: nn.Module) -> Callable[[], Tensor]:
    """A function that gives the features `[batch, width]` of the last forward pass.

    Raises:
        UserError: the network's features are not trained.
    """
    seen: dict[str, Tensor] = {}
    inside = cast(Any, network)
    if hasattr(network, "unet"):
        inside.unet.mid_block.register_forward_hook(lambda module, args, output: seen.update(last=output.mean((2, 3))))
    elif hasattr(network, "outer"):
        inside.outer.register_forward_pre_hook(lambda module, args: seen.update(last=args[0]))
    else:
        raise UserError("coral shapes features, and random features are not trained: leave coral out")
    return lambda: seen["last"]


def bottleneck_width(network: nn.Module) -> int:
    """How many features `watch_bottleneck` gives."""
    inside = cast(Any, network)
    return int(inside.unet.config.block_out_channels[-1] if hasattr(network, "unet") else inside.outer.in_features)


def coral(config: RunConfig, data: Data, on_round: OnRound = ignore) -> Trained:
    horizon, watched = make_process(config.diffusion).horizon, {}

    def with_projection(network: nn.Module) -> nn.Module:
        watched["features"] = watch_bottleneck(network)
        width = bottleneck_width(network)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(config.seed, "all", 0, "projection"))
            network.projection = nn.Linear(width, width).to(next(network.parameters()).dtype)
        return network

    def loss(network: nn.Module, batch: Batch, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        whole, own, _ = denoising(network, batch, labels, rng)
        contrast = supervised_contrast(network.projection(watched["features"]()), labels)  # type: ignore[operator]
        pull = config.rivals.contrast * TEMPERATURE * time_weight(batch.t, horizon) * contrast
        return whole + pull, own, pull.detach()

    return train_conditional(config, data, by_sample, loss, on_round, with_projection)
