"""Mutual learning as a Flower strategy: it never averages; it shows each client its peers.

A round: greet newcomers, order local steps from the taking-part clients with their peers' networks, check every
reply into the bank, write history and checkpoint. Nothing that one client does ends the run.
"""

import time
from collections.abc import Iterable
from logging import WARNING
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedmutual.privacy.versions import sent_epsilon
from fedmutual.records import Rejected, size_of
from server.intake import Refusal
from server.orders import OnRound, Round, Run, order_round
from server.roster import Roster, RunFailed, reason_of
from server.wishes import asked_in

PATIENCE = 3
"""Rounds in a row without one accepted reply after which a run stops."""

MEASURED = ("step", "loss", "mutual", "grad_norm", "held_out", "seconds")
"""What a line of the history holds of a reply. A `step` that falls back tells of a client whose store did."""

FAILED = ("error", "rejected", "missing")
"""States of an order that brought no network."""


class MutualLearning(Strategy):
    """Individual gradient descent over clients (the paper's Algorithm 1, federated).

    Flower calls `configure_train` and then `aggregate_train` for each round; `run` says what is trained, `roster` who
    is there, and `on_round` is called with what became of a round.
    """

    def __init__(self, run: Run, roster: Roster, on_round: OnRound):
        self.run, self.roster, self.on_round = run, roster, on_round
        self.done_before = run.journal.round
        self.under_way: Round | None = None
        self.fruitless = 0
        self.epsilon = sent_epsilon(run.config, run.bank.shape)
        self.most = run.journal.read_run().epsilon

    def summary(self) -> None:
        """Nothing to say: the run folder holds the settings."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One order for each taking-part client, with its peers."""
        settings = self.run.config.federation
        if server_round == 1:
            self.roster.wait_for(settings.min_clients or self.run.bank.classes, grid, settings.timeout)
        else:
            self.roster.greet(grid)
        self.under_way = order_round(self.run, self.done_before + server_round, self.roster.nodes)
        return list(self.under_way.orders.values())

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[None, None]:
        """Check every reply into the bank, then history and checkpoint.

        Raises:
            RunFailed: no client gets through.
            Unwritable: the run folder's disk is full.
        """
        round_, self.under_way = self.under_way, None
        if round_ is None:
            raise RuntimeError("replies came before a round was ordered")
        lines = self._check_in_all(round_, replies)
        seconds = time.monotonic() - round_.started
        rows = [{**line, "round_seconds": seconds} for line in lines.values()]
        config, journal = self.run.config, self.run.journal
        journal.append(rows)
        self._state_epsilon(rows)
        self._judge(rows, first=server_round == 1)
        if round_.number % config.federation.checkpoint_every == 0 or round_.number == config.rounds:
            journal.checkpoint(self.run.bank, round_.number, worst_gradient_norm(rows))
        self.on_round(rows)
        return None, None

    def _check_in_all(self, round_: Round, replies: Iterable[Message]) -> dict[int, dict[str, Any]]:
        """{class: line of the history} of the round; the networks that pass are in the bank."""
        waiting = {order.metadata.message_id: y for y, order in round_.orders.items()}
        present = self.roster.nodes
        idle = {y: "" if y in present else "its client is not there" for y in range(self.run.bank.classes)}
        lines = {y: _line(round_, y, "idle", reason) for y, reason in idle.items()}
        for reply in replies:
            y = waiting.pop(reply.metadata.reply_to_message_id, None)
            if y is None:
                log(WARNING, "round %d: a second reply, or one to no order, is left aside", round_.number)
            else:
                lines[y] = self._check_in(round_, y, reply)
        return lines | {y: _line(round_, y, "missing", "no reply in time") for y in waiting.values()}

    def _check_in(self, round_: Round, y: int, reply: Message) -> dict[str, Any]:
        """One reply into the bank; the line of the history that tells what became of it."""
        if reply.has_error():
            status = "rejected" if isinstance(reply.error, Refusal) else "error"
            return _line(round_, y, status, reason_of(reply))
        received = size_of(reply.content)
        try:
            asked = asked_in(reply.content, self.run.config, y, self.run.bank.classes)
            numbers = self.run.bank.accept(y, self.run.journal.attempt, round_.number, reply.content)
        except Rejected as rejected:
            return _line(round_, y, "rejected", str(rejected)) | {"bytes_up": received}
        names = {"grad_norm": "gradient-norm", "held_out": "held-out-loss"}
        measured: dict[str, Any] = {field: numbers.get(names.get(field, field)) for field in MEASURED}
        measured |= {"count": numbers["count"]} if "count" in numbers else {}
        measured |= {"asked": asked} if asked else {}
        self.run.wishes.asked[y] = asked
        epsilon = numbers.get("epsilon", self.epsilon)  # of DP-SGD each client knows its own, of the rest the settings
        measured |= {"epsilon": epsilon} if epsilon is not None else {}
        return _line(round_, y, "ok", "") | {"bytes_up": received} | measured

    def _state_epsilon(self, rows: list[dict[str, Any]]) -> None:
        """Keep in the run's facts the largest epsilon that a class has told of."""
        told = [row["epsilon"] for row in rows if row.get("epsilon") is not None]
        if told and max(told) > (self.most or 0):
            self.most = max(told)
            self.run.journal.write_run(epsilon=self.most, delta=self.run.config.publishing.delta)

    def _judge(self, rows: list[dict[str, Any]], first: bool) -> None:
        """Stop a run in which no reply is accepted: at once in an attempt's first round, else after `PATIENCE`."""
        if any(row["status"] == "ok" for row in rows):
            self.fruitless = 0
            return
        self.fruitless += 1
        if first or self.fruitless >= PATIENCE:
            failures = [row["reason"] for row in rows if row["status"] in FAILED]
            reason = failures[0] if failures else "none is there"
            raise RunFailed(f"round {rows[0]['round']}: no client got through: {reason}")

    # Held-out losses come with the training replies: a second message a round would double its cost.

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        return None


def _line(round_: Round, y: int, status: str, reason: str) -> dict[str, Any]:
    """A line of the history for class y, without measurements; failures are logged too."""
    if status in FAILED:
        log(WARNING, "round %d, class %d: %s: %s", round_.number, y, status, reason)
    sent = size_of(round_.orders[y].content) if y in round_.orders else 0
    line: dict[str, Any] = {"round": round_.number, "class": y, "status": status, "reason": reason}
    return line | dict.fromkeys(MEASURED) | {"bytes_down": sent, "bytes_up": 0}


def worst_gradient_norm(rows: list[dict[str, Any]]) -> float:
    """max_y ||grad_y||, by which the paper picks the iterate; infinite unless every class has told its own."""
    return max(float("inf") if row["grad_norm"] is None else row["grad_norm"] for row in rows)
