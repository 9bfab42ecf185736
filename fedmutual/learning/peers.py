"""Q: whom a class learns from, and how the peers of one round are drawn."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

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
