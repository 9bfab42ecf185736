"""Q: whom a class learns from, and how the peers of one round are drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedmutual.config import RunConfig
from fedmutual.learning.player import predict
from fedmutual.seeds import generator


def uniform(y: int, candidates: Sequence[int]) -> list[float]:
    """Q_y(y') = 1 / |candidates|."""
    return [1 / len(candidates)] * len(candidates)


PEER_WEIGHTS: dict[str, Callable[[int, Sequence[int]], list[float]]] = {"uniform": uniform}
"""Q by name: (class, candidate peers) -> one weight a candidate, summing to 1."""


def draw_peers(
    rule: str, y: int, candidates: Sequence[int], count: int, seed: int, round_: int
) -> tuple[list[int], list[float]]:
    """The peers of class y in a round and their weights.

    All `candidates` when `count` is 0 or reaches them; else `count` of them without replacement by Q_y, from
    (seed, y, round, "peers"), with Q_y renormalised over those drawn.
    """
    candidates = sorted(candidate for candidate in candidates if candidate != y)
    if not candidates:
        return [], []
    weights = PEER_WEIGHTS[rule](y, candidates)
    if 0 < count < len(candidates):
        rng = generator(seed, y, round_, "peers")
        drawn = sorted(torch.multinomial(torch.tensor(weights), count, generator=rng).tolist())
        total = sum(weights[index] for index in drawn)
        candidates, weights = [candidates[i] for i in drawn], [weights[i] / total for i in drawn]
    return list(candidates), weights


def draw_for_steps(weights: Sequence[float], count: int, steps: int, rng: torch.Generator) -> Tensor:
    """How much each peer counts in each of `steps` steps that draw `count` peers by Q, `weights: [peers]`.

    Returns [steps, peers] on the CPU, rows summing to 1: systematic sampling (Madow 1949), count points spaced evenly
    from a uniform start over the cumulated Q, so that a row is Q in the mean, and no peer is met twice in a step
    unless Q_y gives it more than 1 / count. With 0, or as many as there are peers, every row is Q itself.
    """
    q = torch.tensor(weights, dtype=torch.float64)
    if not 0 < count < len(weights):
        return q.expand(steps, -1)
    points = (torch.rand(steps, 1, dtype=torch.float64, generator=rng) + torch.arange(count)) / count
    drawn = torch.searchsorted(q.cumsum(0)[:-1], points, right=True)
    return torch.zeros(steps, len(q), dtype=torch.float64).scatter_add_(1, drawn, torch.full_like(points, 1 / count))


BLOCK = 2**18
"""Numbers of x_t drawn, and shown to the peers, at once: 128 steps of batch 32 on 8x8 images."""

PASS = 2**16
"""Numbers that go through a peer at once on a CPU: a U-Net's activations for more fall out of the cache."""


@dataclass(frozen=True)
class Peers:
    """The frozen networks that one player sees, and their weights Q_y, which sum to 1.

    `shares: [steps, peers]`, on the CPU, are the weights in each of several steps, where they are not Q in all.
    """

    networks: Sequence[nn.Module] = ()
    weights: Sequence[float] = ()
    shares: Tensor | None = None

    @torch.no_grad()
    def mean(self, x: Tensor, t: Tensor, autocast: bool = False) -> Tensor | None:
        """E_Q s_{y'}(x, t), the shape of `x: [rows, *dims]`; None when there are no peers.

        With `shares` the rows are those of their steps in turn, and a peer runs on the rows of the steps in which
        it has a share.
        """
        if not self.networks:
            return None
        shares = torch.tensor([self.weights], dtype=torch.float64) if self.shares is None else self.shares
        size, total = len(x) // len(shares), torch.zeros_like(x)
        parts = [(x[row : row + size], t[row : row + size], total[row : row + size]) for row in range(0, len(x), size)]
        at_once = max(1, (PASS if x.device.type == "cpu" else BLOCK) // (size * x[0].numel()))
        for network, weights in zip(self.networks, shares.T.tolist(), strict=True):
            drawn = [(weight, *part) for weight, part in zip(weights, parts, strict=True) if weight]
            for start in range(0, len(drawn), at_once):
                weight, rows, times, totals = zip(*drawn[start : start + at_once], strict=True)
                outputs = predict(network, torch.cat(rows), torch.cat(times), autocast).split(size)
                torch._foreach_add_(totals, torch._foreach_mul(outputs, weight))
        return total


def effective_beta(config: RunConfig, count: int) -> float:
    """beta_y by the rule: beta, or beta r / (r + n_y), which spares a class with many samples its peers' pull."""
    if config.mutual.rule == "constant":
        return config.mutual.beta
    return config.mutual.beta * config.mutual.scarcity / (config.mutual.scarcity + count)
