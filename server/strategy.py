"""Mutual learning as a Flower strategy: it never averages; it shows each client its peers.

A round: greet newcomers, order local steps from the taking-part clients with their peers' networks, order them
anew where a client's process has died over them, check every reply into the bank, write history and checkpoint.
Nothing that one client does ends the run.
"""

import json
import time
from collections.abc import Callable, Iterable
from logging import WARNING
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedmutual.config import RunConfig
from fedmutual.learning.peers import draw_peers
from fedmutual.records import Rejected, pack_order, size_of
from fedmutual.seeds import generator
from server.bank import Bank, Entry
from server.intake import Refusal
from server.journal import Journal
from server.roster import Roster, RunFailed, reason_of

PATIENCE = 3
"""Rounds in a row without one accepted reply after which a run stops."""

MEASURED = ("step", "loss", "mutual", "grad_norm", "held_out", "seconds")
"""What a line of the history holds of a reply. A `step` that falls back tells of a client whose store did."""

ORDERS = 4
"""How often a round's order is sent while the client's process dies over it: memory may be short for good."""

DEATHS = (ErrorCode.CLIENT_APP_CRASHED, ErrorCode.MESSAGE_UNAVAILABLE)
"""Flower's codes for a client process that died."""

SIMULATED_DEATHS = (*DEATHS, ErrorCode.UNKNOWN)
"""In a simulation also the code that covers whatever Ray says of a process that it has lost or is starting anew."""

PAUSE = 5.0
"""Seconds before a simulated client is sent its order anew, twice as many each time: Ray has to start a process."""


class MutualLearning(Strategy):
    """Individual gradient descent over clients (the paper's Algorithm 1, federated)."""

    def __init__(self, config: RunConfig, bank: Bank, journal: Journal, on_round: Callable[[list[dict]], None]):
        self.config, self.bank, self.journal, self.on_round = config, bank, journal, on_round
        self.round = journal.round
        self.first_round = journal.round + 1
        self.roster = Roster(bank.classes)
        self.for_clients: dict[str, Any] = {}  # settings that a simulation gives its clients
        self.orders: dict[int, Message] = {}  # class -> this round's order
        self.fruitless = 0

    def summary(self) -> None:
        """Nothing to say: the run folder holds the settings."""

    # A round, on its way out

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One order for each taking-part client, with its peers."""
        self.round, self.grid = self.round + 1, grid
        if self.round == self.first_round:
            self.roster.wait_for(
                self.config.federation.min_clients or self.bank.classes, grid, self.config.federation.timeout
            )
        else:
            self.roster.greet(grid)
        nodes = self.roster.nodes
        pool = self._pool()
        self.orders = {y: self._order(y, nodes[y], pool) for y in self._participants(set(nodes))}
        self.started = time.monotonic()
        return list(self.orders.values())

    def _participants(self, present: set[int]) -> list[int]:
        """The classes that take part: a share of all, of those that are there, drawn from (seed, round)."""
        count = max(1, round(self.config.federation.participation * self.bank.classes))
        order = torch.randperm(self.bank.classes, generator=generator(self.config.seed, "server", self.round, "part"))
        return sorted([y for y in order.tolist() if y in present][:count])

    def _pool(self) -> dict[int, Entry]:
        """Who can be a peer: the classes that have reported; before anyone has, everyone as initialised."""
        if not self.config.mutual.beta:
            return {}
        return self.bank.entries or {y: self.bank.initial(y) for y in range(self.bank.classes)}

    def _order(self, y: int, node: int, pool: dict[int, Entry]) -> Message:
        config = self.config
        peers, weights = draw_peers(
            config.mutual.peer_weights, y, list(pool), config.mutual.peers_per_round, config.seed, self.round
        )
        entries = {f"peer-{z}": pool[z] for z in peers}
        records = {name: entry.record for name, entry in entries.items()}
        if peers and config.mutual.exchange == "mean":
            records, weights = {"peer-mean": self.bank.mean(list(entries.values()), weights)}, [1.0]
        order = pack_order(
            settings=json.dumps({**config.settings(), **self.for_clients}),
            run=self.journal.run,
            attempt=self.journal.attempt,
            round=self.round,
            checkpointed=self.journal.round,
            reported=self.bank.entries[y].round if y in self.bank.entries else 0,
            peers=list(records),
            weights=weights,
        )
        return Message(RecordDict({"order": order, **records}), node, MessageType.TRAIN)

    def give_up(self) -> None:
        """Forget the round that was ordered, and have the clients forget it too."""
        self.round = self.journal.round
        self.journal.begin_attempt()

    # A round, on its way back

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[None, None]:
        """Check every reply into the bank, then history and checkpoint."""
        answered = self._insist(replies)
        waiting = {order.metadata.message_id: y for y, order in self.orders.items()}
        held = self.roster.nodes
        idle = {y: "" if y in held else "its client is not there" for y in range(self.bank.classes)}
        lines = {y: self._line(y, "idle", reason) for y, reason in idle.items()}
        for reply in answered:
            y = waiting.pop(reply.metadata.reply_to_message_id, None)
            if y is None:
                log(WARNING, "round %d: a second reply, or one to no order, is left aside", self.round)
            else:
                lines[y] = self._check_in(y, reply)
        lines |= {y: self._line(y, "missing", "no reply in time") for y in waiting.values()}
        seconds = time.monotonic() - self.started
        rows = [{**line, "round_seconds": seconds} for line in lines.values()]
        self.journal.append(rows)
        self._judge(rows)
        if self.round % self.config.federation.checkpoint_every == 0 or self.round == self.config.rounds:
            self.journal.checkpoint(self.bank, self.round, worst_gradient_norm(rows))
        self.on_round(rows)
        return None, None

    def _insist(self, replies: Iterable[Message]) -> list[Message]:
        """All replies of the round: a client whose process died gets its order anew, while there is time.

        If it had carried the order out, it answers from its store, so that a round counts once.
        """
        kept, fresh = [], list(replies)
        for sending in range(2, ORDERS + 1):
            classes = {order.metadata.message_id: y for y, order in self.orders.items()}
            died = {classes.get(reply.metadata.reply_to_message_id) for reply in fresh if self._died(reply)} - {None}
            pause = PAUSE * 2 ** (sending - 2) if self.roster.simulated else 0.0
            left = self.started + self.config.federation.timeout - time.monotonic() - pause
            if not died or left <= 0:
                break
            time.sleep(pause)
            kept += [reply for reply in fresh if not self._died(reply)]
            for y in died:
                log(WARNING, "round %d, class %d: its process died: order %d of %d", self.round, y, sending, ORDERS)
                order = self.orders[y]
                self.orders[y] = Message(order.content, order.metadata.dst_node_id, MessageType.TRAIN)
            fresh = list(self.grid.send_and_receive([self.orders[y] for y in died], timeout=left))
        return kept + fresh

    def _died(self, reply: Message) -> bool:
        """Whether Flower replies for a client whose process has ended without a word, or in the midst of its reply."""
        deaths = SIMULATED_DEATHS if self.roster.simulated else DEATHS
        return reply.has_error() and reply.error.code in deaths

    def _check_in(self, y: int, reply: Message) -> dict[str, Any]:
        """One reply into the bank; the line of the history that tells what became of it."""
        if reply.has_error():
            return self._line(y, "rejected" if isinstance(reply.error, Refusal) else "error", reason_of(reply))
        received = size_of(reply.content)
        try:
            numbers = self.bank.accept(y, self.journal.attempt, self.round, reply.content)
        except Rejected as rejected:
            return self._line(y, "rejected", str(rejected)) | {"bytes_up": received}
        names = {"grad_norm": "gradient-norm", "held_out": "held-out-loss"}
        found = {field: numbers.get(names.get(field, field)) for field in MEASURED}
        found |= {"count": numbers["count"]} if "count" in numbers else {}
        return self._line(y, "ok", "") | {"bytes_up": received} | found

    def _line(self, y: int, status: str, reason: str) -> dict[str, Any]:
        if status in ("error", "rejected", "missing"):
            log(WARNING, "round %d, class %d: %s: %s", self.round, y, status, reason)
        sent = size_of(self.orders[y].content) if y in self.orders else 0
        numbers = dict.fromkeys(MEASURED)
        line = {"round": self.round, "class": y, "status": status, "reason": reason}
        return line | numbers | {"bytes_down": sent, "bytes_up": 0}

    def _judge(self, rows: list[dict[str, Any]]) -> None:
        """Stop a run in which nobody gets anywhere: at once in an attempt's first round, else after `PATIENCE`."""
        failures = [row["reason"] for row in rows if row["status"] in ("error", "rejected", "missing")]
        if any(row["status"] == "ok" for row in rows):
            self.fruitless = 0
            return
        self.fruitless += 1
        if self.round == self.first_round or self.fruitless >= PATIENCE:
            raise RunFailed(
                f"round {self.round}: no client got through: {failures[0] if failures else 'none is there'}"
            )

    # Held-out losses come with the training replies: a second message a round would double its cost.

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        return None


def worst_gradient_norm(rows: list[dict[str, Any]]) -> float:
    """max_y ||grad_y||, by which the paper picks the iterate; infinite unless every class has replied."""
    return max(row["grad_norm"] if row["status"] == "ok" else float("inf") for row in rows)
