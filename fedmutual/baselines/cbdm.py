"""`cbdm`: *Class-Balancing Diffusion Models* (Qin, Zheng, Yao, Zhou, Zhang; CVPR 2023)."""

import torch
from torch import Tensor, nn

from fedmutual.baselines import Data, OnRound, Trained, ignore
from fedmutual.baselines.pooled import train_conditional
from fedmutual.config import RunConfig
from fedmutual.diffusion import make_process
from fedmutual.learning.batches import Batch
from fedmutual.learning.conditional import by_sample
from fedmutual.learning.objective import denoising_loss, mutual_loss

COMMITMENT = 1 / 4
"""gamma, the weight of the commitment term."""


def cbdm_loss(
    output: Tensor, other: Tensor, target: Tensor, denoising: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """(denoising part, regulariser) of one example each, `[batch]`; a step descends their sum:

    ||e(x_t, y) - eps||² + w(t) [ ||e(x_t, y) - sg e(x_t, y')||² + gamma ||sg e(x_t, y) - e(x_t, y')||² ]

    with w(t) = tau t / T, gamma = 1/4, y' drawn as often as the label has samples, and sg the stop of gradients.
    output: e(x_t, y), other: e(x_t, y'), target: `[batch, *dims]`; denoising: lambda(t), weight: w(t), `[batch]`.
    The paper's tau = 0.001 multiplies t = 0..1000: here, as in the authors' code, that is tau = 1.
    """
    regulariser = mutual_loss(output, other, weight) + COMMITMENT * mutual_loss(other, output, weight)
    return denoising_loss(output, target, denoising), regulariser


def cbdm(config: RunConfig, data: Data, on_round: OnRound = ignore) -> Trained:
    counts = torch.tensor([len(part.train) for part in data], dtype=torch.float64)
    counts = counts.to(data[0].train.device)
    horizon = make_process(config.diffusion).horizon

    def loss(network: nn.Module, batch: Batch, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        others = torch.multinomial(counts, len(labels), replacement=True, generator=rng)
        # One pass for both labels: half the overhead of two.
        both = network(batch.x.repeat(2, *[1] * (batch.x.ndim - 1)), batch.t.repeat(2), torch.cat([labels, others]))
        output, other = both.chunk(2)
        weight = config.rivals.tau * batch.t / horizon
        own, regulariser = cbdm_loss(output, other, batch.target, batch.denoising, weight)
        own, regulariser = own.mean(), regulariser.mean()
        return own + regulariser, own.detach(), regulariser.detach()

    return train_conditional(config, data, by_sample, loss, on_round)
