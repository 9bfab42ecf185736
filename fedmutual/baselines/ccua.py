"""`ccua`: the alignment loss of *Contrastive Conditional-Unconditional Alignment* (Chen, Villa, Liang, Lu, Tang; 2025).

arXiv 2507.09052. The label is held to matter little where nearly all is noise, so that a rare class is denoised there
as all classes together are: the nearest relative of the mutual term, whose peers' mean takes the place of the
prediction without a label. Ours after the paper: its second loss, an unsupervised contrast between the images of a
batch, and its batch resampling are left out; the weight t / T stands for its "large timesteps", and the default of
`alignment` and the stop of gradients are ours, as we could not read the authors' values.
"""

import torch
from torch import Tensor, nn

from fedmutual.baselines import Data, OnRound, Trained, ignore
from fedmutual.baselines.pooled import train_conditional
from fedmutual.config import RunConfig
from fedmutual.diffusion import make_process
from fedmutual.learning.batches import Batch
from fedmutual.learning.conditional import by_sample
from fedmutual.learning.objective import denoising_loss, mutual_loss
from fedmutual.networks import build_conditional

DROPPED = 0.1
"""Share of examples that are denoised without their label, from which the network learns to do without."""


def alignment_loss(output: Tensor, unconditional: Tensor, weight: Tensor) -> Tensor:
    """w(t) ||e(x_t, y) - sg e(x_t, none)||² of each example, `[batch]`, with w(t) = alignment t / T.

    output, unconditional: `[batch, *dims]`; weight: w(t), `[batch]`; sg stops gradients.
    """
    return mutual_loss(output, unconditional, weight)


def ccua(config: RunConfig, data: Data, on_round: OnRound = ignore) -> Trained:
    """Trains with one label more than there are classes, which stands for none and is not published."""
    none, shape = len(data), tuple(data[0].train.shape[1:])
    horizon = make_process(config.diffusion).horizon

    def loss(network: nn.Module, batch: Batch, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        without = torch.full_like(labels, none)
        dropped = torch.rand(len(labels), generator=rng, device=labels.device) < DROPPED
        output = network(batch.x, batch.t, torch.where(dropped, without, labels))
        with torch.no_grad():
            unconditional = network(batch.x, batch.t, without)
        own = denoising_loss(output, batch.target, batch.denoising).mean()
        weight = config.rivals.alignment * batch.t / horizon
        pull = alignment_loss(output, unconditional, weight).mean()
        return own + pull, own.detach(), pull.detach()

    def with_none(network: nn.Module) -> nn.Module:
        return build_conditional(config, shape, none + 1)

    return train_conditional(config, data, by_sample, loss, on_round, with_none)
