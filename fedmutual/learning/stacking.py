"""Stacking (Wolpert 1992): how much a class should take from each of its peers, by samples it does not train on.

With e_k = s_k(x_t, t) - target the error of network k on a held-out sample, k = 0 the class's own, the weights of a
range of noise are

    w = argmin over w >= 0, sum_k w_k = 1 of E lambda(t) ||sum_k w_k s_k - target||² = w' G w,
    G_kl = E lambda <e_k, e_l>

and of the way from its own network alone to w a class goes as far as held-out samples vouch for (`weigh`). The mutual
term with beta_y omega(t) = lambda(t) (1 - w_0) / w_0 and Q_y(k) = w_k / (1 - w_0) has its minimum at that mixture.
When that is done, and what follows, is in `fedmutual.learning.weighing`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from fedmutual.config import RunConfig
from fedmutual.diffusion import Process
from fedmutual.diffusion.process import expand
from fedmutual.learning.batches import level_of
from fedmutual.learning.objective import denoising_target
from fedmutual.learning.player import predict
from fedmutual.seeds import generator
from fedmutual.theory.choice import folds, surest

LEVELS = 5
"""Ranges of noise with weights of their own: equal parts of the training times."""

DRAWS = 2
"""Of time and noise, for each held-out sample and range."""

FOLDS = 5
"""Parts of the held-out samples: how good weights are is asked of those they were not made from."""

WAY = tuple(step / 100 for step in range(101))
"""Shares of the way from the own network to the stacked weights, the safe one first."""


@torch.no_grad()
def error_products(
    networks: Sequence[nn.Module],
    x0: Tensor,
    config: RunConfig,
    process: Process,
    rng: torch.Generator,
    draws: int = DRAWS,
) -> Tensor:
    """lambda(t) <e_k, e_l> / d of every sample, `x0: [n, *dims]`, the mean of `draws`: [levels, n, K, K] on the CPU."""
    repeated, weight = x0.repeat(draws, *[1] * (x0.ndim - 1)), process.weight(config.diffusion.lambda_weight)
    times, levels, rows = torch.arange(len(process), device=x0.device), min(LEVELS, len(process)), []
    for level in range(levels):
        inside = times[level_of(times, len(process), levels) == level]
        index = inside[torch.randint(len(inside), (len(repeated),), generator=rng, device=x0.device)]
        noise = torch.randn(repeated.shape, dtype=x0.dtype, device=x0.device, generator=rng)
        alpha, sigma = expand(process.alpha[index], noise), expand(process.sigma[index], noise)
        target = denoising_target(config.diffusion.parametrisation, repeated, noise, alpha, sigma)
        x, t, scale = process.noised(repeated, index, noise), process.times[index], expand(weight[index].sqrt(), noise)
        errors = [scale * (predict(network, x, t, config.compute.autocast) - target) for network in networks]
        rows.append(products(torch.stack(errors)).unflatten(0, (draws, -1)).mean(0))
    return torch.stack(rows).cpu()


def products(errors: Tensor) -> Tensor:
    """<e_k, e_l> / d of every example, [n, K, K], for `errors: [K, n, *dims]`."""
    flat = errors.flatten(2).double().transpose(0, 1)
    return flat @ flat.mT / flat.shape[-1]


def on_simplex(gram: Tensor) -> Tensor:
    """argmin of w' G w over w >= 0 with sum 1, [K], for `gram: [K, K]`, positive semidefinite.

    v = argmin over v >= 0 of v' G v + (1 - sum v)^2 is c w for some c > 0: at the best c the objective is
    q / (1 + q), which grows with q = w' G w. So one non-negative least-squares problem gives the exact answer.
    """
    scaled = gram.numpy() / max(float(gram.diagonal().mean()), np.finfo(np.float64).tiny)
    values, vectors = np.linalg.eigh(scaled)
    root = np.sqrt(values.clip(0))[:, None] * vectors.T
    size = len(scaled)
    solution, _ = nnls(np.vstack([root, np.ones(size)]), np.append(np.zeros(size), 1.0))
    return torch.from_numpy(solution / solution.sum())


def weigh(products: Tensor, caution: float) -> Tensor:
    """Weights of the networks, the own first, [K], by the products of errors of n samples, `[n, K, K]`.

    Samples in one fold judge the weights of the others, and `surest` says by them how far to go from the own
    network to the weights of all. With fewer than two samples nothing can be judged: the own network alone.
    """
    alone = torch.zeros(products.shape[-1], dtype=torch.float64)
    alone[0] = 1
    count = len(products)
    way = torch.tensor(WAY, dtype=torch.float64)[:, None]
    losses = torch.zeros(len(WAY), count, dtype=torch.float64)
    for kept, held_out in folds(count, FOLDS):
        mixed = alone + way * (on_simplex(products[kept].mean(0)) - alone)
        losses[:, held_out] = torch.einsum("ak,nkl,al->an", mixed, products[held_out], mixed)
    if count < 2:
        return alone
    return alone + surest(losses, WAY, caution) * (on_simplex(products.mean(0)) - alone)


def stack(
    own: nn.Module,
    peers: Sequence[nn.Module],
    held_out: Tensor,
    config: RunConfig,
    process: Process,
    y: int,
    round_: int,
    draws: int = DRAWS,
) -> Tensor:
    """The weights of class y's own network and its peers' in each range of noise, [levels, 1 + peers].

    Randomness: (seed, y, round, "stacking").
    """
    rng = generator(config.seed, y, round_, "stacking", device=held_out.device)
    table = error_products([own, *peers], held_out, config, process, rng, draws)
    return torch.stack([weigh(one, config.mutual.caution) for one in table])


class Stacked(nn.Module):
    """(x, t) -> sum_k w_k(t) s_k(x, t), with `weights: [levels, K]` of `stack`, at the training times of `process`."""

    def __init__(self, networks: Sequence[nn.Module], weights: Tensor, process: Process):
        super().__init__()
        self.networks, self.process = nn.ModuleList(networks), process
        self.weights = weights.to(process.alpha)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        index = torch.searchsorted(self.process.times, t.contiguous())
        weights = self.weights[level_of(index, len(self.process), len(self.weights))]
        total = torch.zeros_like(x)
        for network, weight in zip(self.networks, weights.T, strict=True):
            if weight.any():
                total += expand(weight, x) * network(x, t)
        return total
