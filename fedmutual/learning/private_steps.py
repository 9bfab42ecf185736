"""A step of DP-SGD: each sample's gradient is clipped by itself, and their sum is noised.

    g = (1 / b) ( sum_{i in B} clip_C(grad l_i) + z C N(0, I) ),   clip_C(v) = v min(1, C / ||v||)

B takes each sample with probability q = min(1, batch / n), so that it may be empty, and b = q n is its mean size. The
loss of a sample is the mean over k draws of time and noise (noise multiplicity, Dockhorn et al. 2023),

    l_i = 1/k sum_j [ L_y + beta_y M_y ](x_i, t_j, xi_j),

where the peers' networks are public, so that the mutual term is a function of the sample as well. Its gradient is
clipped once, and more draws cost no privacy. C is the setting `clip`, z `noise-multiplier` and k `noise-multiplicity`.

Which samples are taken, and what is drawn for them, comes from a secret stream too. Were it a public one, an added
sample would move the draws of others, and more than its own gradient would change.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedmutual.config import RunConfig
from fedmutual.diffusion import Process
from fedmutual.learning.batches import Batch, drawn
from fedmutual.learning.objective import denoising_loss, mutual_loss
from fedmutual.learning.peers import Peers
from fedmutual.learning.player import Player, advance, predict
from fedmutual.privacy.dp_sgd import sampling_rate
from fedmutual.privacy.secret import SecretStream

AT_ONCE = 2**26
"""Numbers in the gradients of samples that are held at once."""


class Sampled(NamedTuple):
    """One step's inputs, `[samples, draws, ...]` each (`Batch`); None where no sample was taken. expected: b."""

    batch: Batch | None
    expected: float


def poisson(
    data: Tensor, peers: Peers, shares: Tensor, process: Process, config: RunConfig, secret: SecretStream
) -> Iterator[Sampled]:
    """The inputs of `local_steps` steps on class `data: [n, *dims]`.

    `shares: [local_steps, peers]` says how much each peer counts in each step.
    """
    rate, draws = sampling_rate(config, len(data)), config.publishing.noise_multiplicity
    rng = torch.Generator(data.device).manual_seed(secret.seed())
    for step in range(config.local_steps):
        rows = (secret.uniform(len(data)) < rate).nonzero().squeeze(1).to(data.device)
        if not len(rows):
            yield Sampled(None, rate * len(data))
            continue
        x0 = data[rows].repeat_interleave(draws, 0)
        flat = drawn(x0, replace(peers, shares=shares[step : step + 1]), process, config, rng)
        apart = (part if part is None else part.unflatten(0, (len(rows), draws)) for part in flat)
        yield Sampled(Batch._make(apart), rate * len(data))


def private_step(
    player: Player, sampled: Sampled, beta: float, config: RunConfig, secret: SecretStream
) -> tuple[Tensor, ...]:
    """One update; (denoising loss, mutual loss, norm of the noised gradient), scalars on the device.

    The losses are of clean samples, which no epsilon bounds: they are for their owner alone.
    """
    parameters = dict(player.network.named_parameters())
    total, losses = clipped_sum(player.network, sampled.batch, beta, config)
    deviation = config.publishing.noise_multiplier * config.optimiser.clip
    for name, parameter in parameters.items():
        noise = deviation * secret.normal(*parameter.shape)
        parameter.grad = (total[name] + noise.to(parameter)) / sampled.expected
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters.values() if parameter.grad is not None])
    advance(player, config.optimiser, config.rounds * config.local_steps)
    return *losses, norm


def clipped_sum(
    network: nn.Module, batch: Batch | None, beta: float, config: RunConfig
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    """({parameter: sum of the samples' clipped gradients}, means over samples of L_y and M_y).

    An empty batch has the sum 0 and no means. A sample whose gradient is not finite counts as 0, and so stops nothing.
    """
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    if batch is None:
        none = next(iter(parameters.values())).new_full((), torch.nan)
        return total, (none, none)
    measured = []
    size = max(1, AT_ONCE // sum(parameter.numel() for parameter in parameters.values()))
    for part in batch.split(size):
        gradients, losses = gradients_of_samples(network, parameters, part, beta, config)
        for name, gradient in clipped(gradients, config.optimiser.clip).items():
            total[name] += gradient
        measured.append(losses)
    own, pull = (torch.cat(column).mean() for column in zip(*measured, strict=True))
    return total, (own, pull)


def gradients_of_samples(
    network: nn.Module, parameters: dict[str, Tensor], batch: Batch, beta: float, config: RunConfig
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    """({parameter: `[samples, *shape]`}, (L_y, M_y), `[samples]` each) at `parameters`, by torch.func.

    Hooks in the layers, which Opacus has by default, are not used: on convolutions of diffusers' U-Net they give zeros.
    """
    buffers = dict(network.named_buffers())

    def loss(
        parameters: dict[str, Tensor], x: Tensor, t: Tensor, *rest: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        target, denoising, mutual, *mean = rest

        def call(x: Tensor, t: Tensor) -> Tensor:
            output: Tensor = functional_call(network, (parameters, buffers), (x, t))
            return output

        output = predict(call, x, t, config.compute.autocast)
        own = denoising_loss(output, target, denoising).mean()
        pull = mutual_loss(output, mean[0], mutual).mean() if mean else torch.zeros_like(own)
        return own + beta * pull, (own.detach(), pull.detach())

    inputs = [batch.x, batch.t, batch.target, batch.denoising, batch.mutual]
    inputs += [batch.peer_mean] if batch.peer_mean is not None else []
    each = vmap(grad(loss, has_aux=True), in_dims=(None, *(0 for _ in inputs)), randomness="different")
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention has no rule for vmap, which would call it a sample a time
        gradients, losses = each(parameters, *inputs)
    return gradients, losses


def clipped(gradients: dict[str, Tensor], limit: float) -> dict[str, Tensor]:
    """The sum over samples of gradients `[samples, *shape]`, each scaled down to the norm `limit` over all of them."""
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients.values()]).norm(dim=0)
    factor = torch.where(norms.isfinite(), (limit / (norms + 1e-6)).clamp(max=1), 0)
    if not norms.isfinite().all():
        gradients = {name: gradient.nan_to_num(0, 0, 0) for name, gradient in gradients.items()}
    return {name: torch.tensordot(factor, gradient, dims=1) for name, gradient in gradients.items()}
