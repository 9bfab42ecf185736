"""A round on its way out: which clients take part, and what each of them is sent."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from flwr.app import Message, MessageType, RecordDict

from fedmutual.config import RunConfig
from fedmutual.records import pack_order
from fedmutual.seeds import generator
from server.bank import Bank, Entry
from server.journal import Journal
from server.wishes import Wishes

OnRound = Callable[[list[dict[str, Any]]], None]
"""Is called with the lines of the history of each round, as soon as the round is over."""


@dataclass(frozen=True)
class Run:
    """What a server holds of a run. `for_clients` are settings that its clients are sent in place of the run's own.

    wishes: the peers that its clients ask for, where they may.
    """

    config: RunConfig
    bank: Bank
    journal: Journal
    for_clients: Mapping[str, Any] = field(default_factory=dict)
    wishes: Wishes = field(default_factory=Wishes)

    def with_steps(self, local_steps: int) -> "Run":
        """The same run with another number of local steps."""
        return replace(self, config=self.config.but(local_steps=local_steps))


@dataclass(frozen=True)
class Round:
    """The orders of one round, {class: order}, and when they were made (`time.monotonic`)."""

    number: int
    orders: dict[int, Message]
    started: float


def order_round(run: Run, number: int, nodes: Mapping[int, int]) -> Round:
    """One order for each client that takes part in that round, with its peers; `nodes` are {class: node}."""
    pool = _pool(run)
    candidates, settings = sorted(pool), json.dumps({**run.config.settings(), **run.for_clients})
    orders = {
        y: _order(run, number, y, nodes[y], pool, candidates, settings) for y in _participants(run, number, set(nodes))
    }
    return Round(number, orders, time.monotonic())


def _participants(run: Run, number: int, present: set[int]) -> list[int]:
    """The classes that take part: a share of all, of those that are there, drawn from (seed, round)."""
    classes = run.bank.classes
    count = max(1, round(run.config.federation.participation * classes))
    order = torch.randperm(classes, generator=generator(run.config.seed, "server", number, "part"))
    return sorted([y for y in order.tolist() if y in present][:count])


def _pool(run: Run) -> dict[int, Entry]:
    """Who can be a peer: the classes that have reported; before anyone has, everyone as initialised."""
    if not run.config.mutual.beta:
        return {}
    return run.bank.entries or {y: run.bank.initial(y) for y in range(run.bank.classes)}


def _order(
    run: Run, number: int, y: int, node: int, pool: Mapping[int, Entry], candidates: Sequence[int], settings: str
) -> Message:
    """What is sent to one client: nothing here may take longer the more classes there are."""
    config, bank, mutual = run.config, run.bank, run.config.mutual
    peers, weights = run.wishes.peers(config, y, candidates, number)
    entries = {f"peer-{z}": pool[z] for z in peers}
    records = {name: entry.record for name, entry in entries.items()}
    if peers and mutual.exchange == "mean":
        records, weights = {"peer-mean": bank.mean(list(entries.values()), weights)}, [1.0]
    order = pack_order(
        settings=settings,
        run=run.journal.run,
        attempt=run.journal.attempt,
        round=number,
        checkpointed=run.journal.round,
        reported=bank.entries[y].round if y in bank.entries else 0,
        peers=list(records),
        weights=weights,
    )
    return Message(RecordDict({"order": order, **records}), node, MessageType.TRAIN)
