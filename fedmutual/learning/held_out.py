"""The denoising loss on samples kept from training."""

import torch
from torch import Tensor, nn

from fedmutual.config import Autocast, Diffusion
from fedmutual.diffusion import Process
from fedmutual.diffusion.process import expand
from fedmutual.learning.objective import denoising_loss, denoising_target
from fedmutual.learning.player import predict
from fedmutual.seeds import generator

HELD_OUT_TIMES = 10


def held_out_times(process: Process) -> Tensor:
    """The indices of the times at which held-out samples are denoised, [`HELD_OUT_TIMES`], rising."""
    return torch.linspace(0, len(process) - 1, HELD_OUT_TIMES, device=process.times.device).round().long()


def mean_loss(losses: Tensor) -> float:
    """The mean of `held_out_losses`, over samples and then over times."""
    return float(torch.stack([row.mean() for row in losses]).mean())


def held_out_loss(
    network: nn.Module,
    data: Tensor,
    diffusion: Diffusion,
    autocast: Autocast,
    process: Process,
    seed: int,
    y: int,
) -> float:
    """The mean of `held_out_losses`."""
    return mean_loss(held_out_losses(network, data, diffusion, autocast, process, seed, y))


@torch.no_grad()
def held_out_losses(
    network: nn.Module,
    data: Tensor,
    diffusion: Diffusion,
    autocast: Autocast,
    process: Process,
    seed: int,
    y: int,
) -> Tensor:
    """The denoising losses on `data: [n, *dims]`, [`HELD_OUT_TIMES`, n], at times spread over the process.

    The draws are the same in every round, (seed, y, 0, "held-out"), so that rounds compare.
    """
    network.eval()
    times = held_out_times(process)
    rng = generator(seed, y, 0, "held-out", device=data.device)
    noise = torch.randn(HELD_OUT_TIMES, *data.shape, dtype=data.dtype, device=data.device, generator=rng)
    losses = []
    for j, xi in zip(times, noise, strict=True):
        index = j.expand(len(data))
        alpha, sigma = expand(process.alpha[index], data), expand(process.sigma[index], data)
        target = denoising_target(diffusion.parametrisation, data, xi, alpha, sigma)
        output = predict(network, process.noised(data, index, xi), process.times[index], autocast)
        losses.append(denoising_loss(output, target, process.weight(diffusion.lambda_weight)[index]))
    return torch.stack(losses)
