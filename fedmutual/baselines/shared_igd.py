"""`shared-igd`: individual gradient descent of classes that share one conditional network and one optimiser.

What the paper's public code runs. The classes take turns; at its turn class y takes one step on

L_y(theta) + beta_y E_t omega(t) || s(x_t, t, y) - sg E_{y' != y} s(x_t, t, y') ||²

on its own samples, its peers being the same network under the other labels.
"""

import torch
from torch import Tensor, nn

from fedmutual.baselines import Data, OnRound, Trained, ignore
from fedmutual.baselines.pooled import train_conditional
from fedmutual.config import RunConfig
from fedmutual.learning.batches import Batch
from fedmutual.learning.conditional import in_turn
from fedmutual.learning.objective import denoising_loss, mutual_loss
from fedmutual.learning.peers import effective_beta


def shared_igd(config: RunConfig, data: Data, on_round: OnRound = ignore) -> Trained:
    betas = torch.tensor([effective_beta(config.mutual, len(part.train)) for part in data]).to(data[0].train)

    def loss(network: nn.Module, batch: Batch, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        output = network(batch.x, batch.t, labels)
        peers = peer_mean(network, batch.x, batch.t, labels, len(data))
        own = denoising_loss(output, batch.target, batch.denoising).mean()
        pull = mutual_loss(output, peers, batch.mutual)
        return own + (betas[labels] * pull).mean(), own.detach(), pull.detach().mean()

    return train_conditional(config, data, in_turn, loss, on_round)


@torch.no_grad()
def peer_mean(network: nn.Module, x: Tensor, t: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The mean of the network's outputs under all labels but each example's own, the shape of `x: [batch, *dims]`."""
    steps = torch.arange(1, classes, device=labels.device)
    others = (labels + steps[:, None]) % classes  # [classes - 1, batch]
    repeated = x.repeat(classes - 1, *[1] * (x.ndim - 1))
    outputs: Tensor = network(repeated, t.repeat(classes - 1), others.flatten())
    return torch.unflatten(outputs, 0, others.shape).mean(0)
