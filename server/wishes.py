"""Whom a client is sent: the peers that it asked for, and others by chance, among which it may find better ones.

With `ask-for-peers` a client asks in each reply for the peers that helped it most when it weighed them. In the next
round these have at most half of its `peers-per-round`; the rest are drawn by Q, as all are where nobody asks. So likely
peers are found over rounds, and lose their place to likelier ones: epsilon-greedy choice (Sutton and Barto 2018,
section 2.4) with a half in place of epsilon.
"""

from collections.abc import Iterable, Sequence

import torch
from flwr.app import RecordDict

from fedmutual.config import RunConfig
from fedmutual.learning.peers import draw_peers
from fedmutual.records import Rejected, unpack_asked
from fedmutual.run_folder import HistoryLine
from fedmutual.seeds import generator


class Wishes:
    """{class: the peers that it asked for last}; the history of a run holds them too, and a resumed run reads it."""

    def __init__(self, history: Iterable[HistoryLine] = ()):
        self.asked: dict[int, list[int]] = {}
        for line in history:
            if line.status == "ok":
                self.asked[line.class_] = list(line.asked or ())

    def peers(self, config: RunConfig, y: int, candidates: Sequence[int], round_: int) -> tuple[list[int], list[float]]:
        """The peers of class y in a round and their weights, from `candidates` in their order.

        What it asked for, as far as it is there, and from (seed, y, round, "peers") as many others as make
        `peers-per-round`.
        """
        count, rule, seed = config.mutual.peers_per_round, config.mutual.peer_weights, config.seed
        drawn, weights = draw_peers(rule, y, candidates, count, seed, round_)
        kept = [z for z in self.asked.get(y, ()) if z in candidates]
        if not kept or len(drawn) < count:
            return drawn, weights
        others = [z for z in drawn if z not in kept]
        order = torch.randperm(len(others), generator=generator(seed, y, round_, "other-peers")).tolist()
        chosen = sorted(kept + [others[place] for place in order[: count - len(kept)]])
        return chosen, [1 / len(chosen)] * len(chosen)


def asked_in(content: RecordDict, config: RunConfig, y: int, classes: int) -> list[int]:
    """The peers that the reply of class y asks for.

    Raises:
        Rejected: it may not ask, or asks for more than half of its peers, for itself, or for a class that is none.
    """
    asked = unpack_asked(content)
    allowed = config.mutual.peers_per_round // 2 if config.federation.ask_for_peers else 0
    if len(asked) > allowed:
        raise Rejected(f"it asks for {len(asked)} peers, and may ask for {allowed}")
    if any(z >= classes or z == y for z in asked):
        raise Rejected(f"it asks for peers {asked}, and the others are the classes 0..{classes - 1} without {y}")
    return asked
