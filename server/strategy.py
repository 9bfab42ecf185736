"""Mutual learning as a Flower strategy: it never averages; it shows each client its peers.

A round: greet newcomers, order local steps from the taking-part clients with their peers' networks, check
every reply into the bank, write history and checkpoint. Nothing that one client does ends the run.
"""

import json
import time
from collections.abc import Callable, Iterable
from logging import INFO, WARNING
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedmutual.config import RunConfig, UserError
from fedmutual.learning.peers import draw_peers
from fedmutual.records import Rejected, pack_order, size_of
from fedmutual.seeds import generator
from server.bank import Bank, Entry
from server.journal import Journal

PATIENCE = 3
"""Rounds in a row without one accepted reply after which a run stops."""

GREETING_TIMEOUT = 120.0


class RunFailed(RuntimeError):
    """The run cannot go on; says why."""


class MutualLearning(Strategy):
    """Individual gradient descent over clients (the paper's Algorithm 1, federated)."""

    def __init__(self, config: RunConfig, bank: Bank, journal: Journal, on_round: Callable[[list[dict]], None]):
        self.config, self.bank, self.journal, self.on_round = config, bank, journal, on_round
        self.round = journal.round
        self.first_round = journal.round + 1
        self.classes: dict[int, int] = {}  # node -> class, of the nodes that are there
        self.refused: dict[int, str] = {}  # node -> why it is left out
        self.orders: dict[int, Message] = {}  # class -> this round's order
        self.fruitless = 0

    def summary(self) -> None:
        """Nothing to say: the run folder holds the settings."""

    # A round, on its way out

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One order for each taking-part client, with its peers."""
        self.round += 1
        self._greet(grid)
        nodes = {y: node for node, y in self.classes.items()}
        pool = self._pool()
        self.orders = {y: self._order(y, nodes[y], pool) for y in self._participants() if y in nodes}
        self.started = time.monotonic()
        return list(self.orders.values())

    def _greet(self, grid: Grid) -> None:
        """Learn the class of every node not met before; before the first round, wait until enough are there."""
        wanted = self.config.min_clients or self.bank.classes
        deadline = time.monotonic() + self.config.timeout
        while True:
            present = list(grid.get_node_ids())
            # A class whose node has left is free: its holder may come back on another machine, with another key.
            self.classes = {node: y for node, y in self.classes.items() if node in present}
            strangers = [node for node in present if node not in self.classes]
            orders = [Message(RecordDict(), node, MessageType.QUERY) for node in strangers]
            replies = grid.send_and_receive(orders, timeout=GREETING_TIMEOUT) if orders else []
            sizes = [self._introduce(reply) for reply in replies]
            if not self.classes and sizes and 0 < sizes[0] <= sizes.count(sizes[0]):
                raise UserError(f"{self._size_differs(sizes[0])}: set num-supernodes={self.bank.classes}")
            if self.round > self.first_round or len(self.classes) >= wanted:
                return
            if time.monotonic() > deadline:
                raise RunFailed(f"{len(self.classes)} of {wanted} clients joined in {self.config.timeout:.0f} s")
            time.sleep(0.2)

    def _introduce(self, reply: Message) -> int:
        """Take down a newcomer's class, or say once why not; the federation's size by its settings where it is wrong.

        A second claim to a class is refused while the first node is there.
        """
        node = reply.metadata.src_node_id
        if reply.has_error():
            self._refuse(node, reason_of(reply))
            return 0
        hello = reply.content.metric_records.get("hello", {})
        y, partitions = hello.get("class", -1), hello.get("partitions", 0)
        if partitions not in (0, self.bank.classes):
            self._refuse(node, f"{self._size_differs(partitions)}: correct its num-partitions")
            return partitions if isinstance(partitions, int) else 0
        if not isinstance(y, int) or not 0 <= y < self.bank.classes:
            self._refuse(node, f"it claims class {y}, and the classes are 0..{self.bank.classes - 1}")
        elif y in self.classes.values():
            self._refuse(node, f"it claims class {y}, which another node holds")
        else:
            log(INFO, "node %s holds class %d", node, y)
            self.classes[node] = y
        return 0

    def _size_differs(self, partitions: int) -> str:
        return f"the federation has {partitions} clients and the data {self.bank.classes} classes"

    def _refuse(self, node: int, reason: str) -> None:
        if self.refused.get(node) != reason:  # it is asked anew each round, and may have been set right
            log(WARNING, "node %s is left out: %s", node, reason)
        self.refused[node] = reason

    def _participants(self) -> list[int]:
        """The classes that take part: a share of all, drawn from (seed, round)."""
        count = max(1, round(self.config.participation * self.bank.classes))
        order = torch.randperm(self.bank.classes, generator=generator(self.config.seed, "server", self.round, "part"))
        return sorted(order[:count].tolist())

    def _pool(self) -> dict[int, Entry]:
        """Who can be a peer: the classes that have reported; before anyone has, everyone as initialised."""
        if not self.config.beta:
            return {}
        return self.bank.entries or {y: self.bank.initial(y) for y in range(self.bank.classes)}

    def _order(self, y: int, node: int, pool: dict[int, Entry]) -> Message:
        config = self.config
        peers, weights = draw_peers(config.peer_weights, y, list(pool), config.peers_per_round, config.seed, self.round)
        entries = {f"peer-{z}": pool[z] for z in peers}
        records = {name: entry.record for name, entry in entries.items()}
        if peers and config.exchange == "mean":
            records, weights = {"peer-mean": self.bank.mean(list(entries.values()), weights)}, [1.0]
        order = pack_order(
            settings=json.dumps(config.settings()),
            run=self.journal.run,
            attempt=self.journal.attempt,
            round=self.round,
            checkpointed=self.journal.round,
            peers=list(records),
            weights=weights,
        )
        return Message(RecordDict({"order": order, **records}), node, MessageType.TRAIN)

    # A round, on its way back

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[None, MetricRecord]:
        """Check every reply into the bank, then history and checkpoint."""
        waiting = {order.metadata.message_id: y for y, order in self.orders.items()}
        held = self.classes.values()
        idle = {y: "" if y in held else "its client is not there" for y in range(self.bank.classes)}
        lines = {y: self._line(y, "idle", reason) for y, reason in idle.items()}
        for reply in replies:
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
        if self.round % self.config.checkpoint_every == 0 or self.round == self.config.rounds:
            self.journal.checkpoint(self.bank, self.round, worst_gradient_norm(rows))
        self.on_round(rows)
        return None, MetricRecord()

    def _check_in(self, y: int, reply: Message) -> dict[str, Any]:
        """One reply into the bank; the line of the history that tells what became of it."""
        if reply.has_error():
            return self._line(y, "error", reason_of(reply))
        received = size_of(reply.content)
        try:
            numbers = self.bank.accept(y, self.journal.attempt, self.round, reply.content)
        except Rejected as rejected:
            return self._line(y, "rejected", str(rejected)) | {"bytes_up": received}
        fields = {"loss": "loss", "mutual": "mutual", "gradient-norm": "grad_norm", "held-out-loss": "held_out"}
        fields |= {"samples": "samples", "seconds": "seconds", "count": "count"}
        found = {field: numbers[name] for name, field in fields.items() if name in numbers}
        return self._line(y, "ok", "") | {"bytes_up": received} | found

    def _line(self, y: int, status: str, reason: str) -> dict[str, Any]:
        if status in ("error", "rejected", "missing"):
            log(WARNING, "round %d, class %d: %s: %s", self.round, y, status, reason)
        sent = size_of(self.orders[y].content) if y in self.orders else 0
        numbers = dict.fromkeys(("loss", "mutual", "grad_norm", "held_out", "samples", "seconds"))
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


def reason_of(reply: Message) -> str:
    """An error reply's reason on one line."""
    text = " ".join((reply.error.reason or f"error code {reply.error.code}").split())
    return text.partition(":<'")[2].removesuffix("'>") or text
