"""Whom a class learns from: Q, its draws for rounds and steps, the peers' frozen networks, and beta_y."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedmutual.config import Autocast, Mutual
from fedmutual.diffusion.process import expand
from fedmutual.learning.player import predict
from fedmutual.seeds import generator


def uniform(y: int, others: int) -> Tensor:
    """Q_y(y') = 1 / K' over the K' = `others` candidates that are not y."""
    return torch.full((others,), 1 / others, dtype=torch.float64)


PEER_WEIGHTS: dict[str, Callable[[int, int], Tensor]] = {"uniform": uniform}
"""Q by name: (class, number of candidate peers) -> their weights, [candidates], summing to 1."""


def draw_peers(
    rule: str, y: int, candidates: Sequence[int], count: int, seed: int, round_: int
) -> tuple[list[int], list[float]]:
    """The peers of class y in a round and their weights.

    All `candidates`, which are in order, but y itself when `count` is 0 or reaches them; else `count` of them without
    replacement by Q_y, from (seed, y, round, "peers"), with Q_y renormalised over those drawn. A draw makes no list of
    all candidates, since every class makes one in every round.
    """
    place = bisect_left(candidates, y)
    own = place < len(candidates) and candidates[place] == y
    others = len(candidates) - own
    if not others:
        return [], []
    weights = PEER_WEIGHTS[rule](y, others)
    if not 0 < count < others:
        return [candidate for candidate in candidates if candidate != y], weights.tolist()
    rng = generator(seed, y, round_, "peers")
    drawn = torch.multinomial(weights.float(), count, generator=rng).sort().values
    chosen = weights[drawn].tolist()
    total = sum(chosen)
    return [candidates[i + (own and i >= place)] for i in drawn.tolist()], [weight / total for weight in chosen]


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


PASS = 2**16
"""Numbers that go through a peer at once on a CPU: a U-Net's activations for more fall out of the cache."""


class ByNoise(NamedTuple):
    """Q_y and beta_y omega(t) / lambda(t) by ranges of noise, on the CPU; see `fedmutual.learning.stacking`.

    q: [ranges, peers], rows summing to 1, or 0 where no peer counts; strength: [ranges].
    """

    q: Tensor
    strength: Tensor


@dataclass(frozen=True)
class Peers:
    """The frozen networks that one player sees, and their weights Q_y, which sum to 1.

    `shares: [steps, peers]`, on the CPU, are the weights in each of several steps, where they are not Q in all. With
    `by_noise` they are those of each range of noise, `[steps, ranges, peers]`, and `weights` have no part.
    """

    networks: Sequence[nn.Module] = ()
    weights: Sequence[float] = ()
    shares: Tensor | None = None
    by_noise: ByNoise | None = None

    def drawn(self, count: int, steps: int, rng: torch.Generator) -> Tensor:
        """The `shares` of steps that draw `count` peers each, as `draw_for_steps`; 0: all."""
        if self.by_noise is None:
            return draw_for_steps(self.weights, count, steps, rng)
        drawn = [draw_for_steps(row, count, steps, rng) for row in self.by_noise.q.tolist()]
        return torch.stack(drawn, 1) * (self.by_noise.strength > 0)[:, None]

    @torch.no_grad()
    def mean(self, x: Tensor, t: Tensor, autocast: Autocast = "none") -> Tensor | None:
        """E_Q s_{y'}(x, t), the shape of `x: [rows, *dims]`, for `t: [rows]`; None when there are no peers.

        With `shares` the rows are those of their steps in turn, and a peer runs on the rows of the steps in which
        it has a share. A GPU takes all of a peer's rows at once, a CPU `PASS` numbers.
        """
        if not self.networks:
            return None
        shares = torch.tensor([self.weights], dtype=torch.float64) if self.shares is None else self.shares
        size, total = len(x) // len(shares), torch.zeros_like(x)
        parts = [(x[row : row + size], t[row : row + size], total[row : row + size]) for row in range(0, len(x), size)]
        at_once = max(1, PASS // (size * x[0].numel())) if x.device.type == "cpu" else len(parts)
        for network, weights in zip(self.networks, shares.T.tolist(), strict=True):
            drawn = [(weight, *part) for weight, part in zip(weights, parts, strict=True) if weight]
            for start in range(0, len(drawn), at_once):
                weight, rows, times, totals = zip(*drawn[start : start + at_once], strict=True)
                outputs = predict(network, torch.cat(rows), torch.cat(times), autocast).split(size)
                torch._foreach_add_(totals, torch._foreach_mul(outputs, weight))
        return total

    @torch.no_grad()
    def mean_by_noise(self, x: Tensor, t: Tensor, level: Tensor, by_noise: ByNoise, autocast: Autocast) -> Tensor:
        """As `mean`, with the weights of each row's range of noise, `level: [rows]`; 0 where no peer counts."""
        shares = by_noise.q[None] if self.shares is None else self.shares
        step = torch.arange(len(x)) // (len(x) // len(shares))
        weights, total = shares[step, level.cpu()].to(x), torch.zeros_like(x)
        at_once = max(1, PASS // x[0].numel()) if x.device.type == "cpu" else len(x)
        for network, weight in zip(self.networks, weights.T, strict=True):
            for rows in weight.nonzero().squeeze(1).split(at_once):
                if len(rows):
                    outputs = predict(network, x[rows], t[rows], autocast)
                    total[rows] += expand(weight[rows], outputs) * outputs
        return total


def freeze(network: nn.Module, autocast: Autocast) -> nn.Module:
    """`network` as a peer, in place: evaluation mode, no gradients, parameters in the type that it runs in."""
    network.eval().requires_grad_(False)
    if autocast == "bfloat16":
        for parameter in network.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    return network


def effective_beta(mutual: Mutual, count: int) -> float:
    """beta_y of a class of `count` samples by the rule: beta, or beta r / (r + n_y), or 1.

    The scarcity rule spares a class with many samples its peers' pull. With `auto` the strength that
    `fedmutual.learning.stacking` finds for each range of noise is all there is, and beta its largest value.
    """
    if mutual.rule == "constant":
        return mutual.beta
    if mutual.rule == "auto":
        return 1.0
    return mutual.beta * mutual.scarcity / (mutual.scarcity + count)
