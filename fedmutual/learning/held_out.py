"""The denoising loss on samples kept from training."""

import torch
from torch import Tensor, nn

from fedmutual.config import RunConfig
from fedmutual.diffusion import Process
from fedmutual.learning.batches import _batch
from fedmutual.learning.objective import denoising_loss
from fedmutual.learning.peers import Peers
from fedmutual.learning.player import predict
from fedmutual.seeds import generator

HELD_OUT_TIMES = 10


@torch.no_grad()
def held_out_loss(network: nn.Module, data: Tensor, config: RunConfig, process: Process, y: int) -> float:
    """The denoising loss on samples kept from training, each at `HELD_OUT_TIMES` times spread over the process.

    The draws are the same in every round, (seed, y, 0, "held-out"), so that rounds compare.
    """
    network.eval()
    times = torch.linspace(0, len(process) - 1, HELD_OUT_TIMES, device=data.device).round().long()
    rng = generator(config.seed, y, 0, "held-out", device=data.device)
    noise = torch.randn(HELD_OUT_TIMES, *data.shape, dtype=data.dtype, device=data.device, generator=rng)
    losses = []
    for index, xi in zip(times, noise, strict=True):
        batch = _batch(data, index.expand(len(data)), xi, Peers(), process, config)
        output = predict(network, batch.x, batch.t, config.compute.autocast == "bfloat16")
        losses.append(denoising_loss(output, batch.target, batch.denoising).mean())
    return float(torch.stack(losses).mean())
