"""`oc`: *Long-tailed Diffusion Models with Oriented Calibration*, its T2H (Zhang et al.; ICLR 2024).

The clean sample that a noised one is to be denoised to is drawn anew from the batch, each as likely as it is to have
been noised to it, and is taken where its class has as many samples as the noised one's or more. So a rare class is
taught by its likely neighbours of larger ones, while the label stays its own. There is no strength to set. As in the
authors' code one sample is drawn in place of a weighted mean. Ours: their dropping of labels for guidance is left out.
"""

import torch
from torch import Tensor, nn

from fedmutual.baselines import Data, OnRound, Trained, ignore
from fedmutual.baselines.pooled import train_conditional
from fedmutual.config import RunConfig
from fedmutual.device import dtype_of
from fedmutual.diffusion import make_process
from fedmutual.diffusion.process import expand
from fedmutual.learning.batches import Batch
from fedmutual.learning.conditional import by_sample
from fedmutual.learning.objective import denoised, denoising_loss, denoising_target


def transfer_probabilities(x: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """q(x_0^j | x_t^i) among the samples of the batch, `[batch, batch]`, rows summing to 1:

    exp( -||x_t^i - alpha_i x_0^j||² / (2 sigma_i²) ) / sum_k exp( -||x_t^i - alpha_i x_0^k||² / (2 sigma_i²) )

    x: x_t, x0: `[batch, *dims]`; alpha, sigma: of each x_t, `[batch]`.
    """
    mode = "donot_use_mm_for_euclid_dist"  # whose differences are exact, where sigma is small
    distance = torch.cdist((x / expand(alpha, x)).flatten(1), x0.flatten(1), compute_mode=mode)
    return (-(distance * (alpha / sigma)[:, None]).square() / 2).softmax(1)


def towards_head(drawn: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """For each row of the batch the row that was drawn for it, or itself where that one's class is smaller: `[batch]`.

    drawn, labels: `[batch]`; counts: training samples of each class, `[K]`.
    """
    itself = torch.arange(len(drawn), device=drawn.device)
    return torch.where(counts[labels[drawn]] >= counts[labels], drawn, itself)


def oc(config: RunConfig, data: Data, on_round: OnRound = ignore) -> Trained:
    """Descends ||s(x_t^i, t, y_i) - target||², whose target makes x_t^i of x_0^j, j drawn and let through as above."""
    device, parametrisation = data[0].train.device, config.diffusion.parametrisation
    process = make_process(config.diffusion, device, dtype_of(config.compute))
    counts = torch.tensor([len(part.train) for part in data], device=device)

    def loss(network: nn.Module, batch: Batch, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        index = torch.searchsorted(process.times, batch.t)
        alpha, sigma = (expand(table[index], batch.x) for table in (process.alpha, process.sigma))
        x0 = denoised(parametrisation, batch.x, batch.target, alpha, sigma)
        likely = transfer_probabilities(batch.x, x0, process.alpha[index], process.sigma[index])
        drawn = torch.multinomial(likely, 1, generator=rng).squeeze(1)
        source = x0[towards_head(drawn, labels, counts)]
        target = denoising_target(parametrisation, source, (batch.x - alpha * source) / sigma, alpha, sigma)
        own = denoising_loss(network(batch.x, batch.t, labels), target, batch.denoising).mean()
        return own, own.detach(), own.new_zeros(())

    return train_conditional(config, data, by_sample, loss, on_round)
