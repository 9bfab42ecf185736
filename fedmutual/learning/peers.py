"""Q: whom a class learns from, and how the peers of one round are drawn."""

from collections.abc import Callable, Sequence

import torch

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
