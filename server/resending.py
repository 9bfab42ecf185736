"""An order whose client's process died is sent again, while there is time: what comes back is one reply for each order.

A client that had carried the order out answers it from its store, so that a round counts once.
"""

import time
from collections.abc import Iterable
from logging import WARNING
from typing import Any

from flwr.app import Message, MessageType
from flwr.common.logger import log
from flwr.serverapp import Grid

from server.flower import CLIENT_DIED, SIMULATED_CLIENT_DIED, GridOver
from server.roster import Roster

SENDINGS = 4
"""How often an order is sent while the client's process dies over it: memory may be too short for it each time."""

PAUSE = 5.0
"""Seconds before a simulated client is sent its order again, twice as many each time: Ray has to start a process."""


class Resending(GridOver):
    """A grid over `grid` that sends the orders to train again; `roster` tells whether clients are simulated."""

    def __init__(self, grid: Grid, roster: Roster):
        super().__init__(grid)
        self.roster = roster

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """All replies in time; that of a client that died is replaced by the reply to its order sent again."""
        orders, began = list(messages), time.monotonic()
        replies: list[Message] = []
        fresh = list(self.grid.send_and_receive(orders, timeout=timeout))
        by_id = {
            order.metadata.message_id: order for order in orders if order.metadata.message_type == MessageType.TRAIN
        }
        for sending in range(2, SENDINGS + 1):
            died = {reply.metadata.reply_to_message_id for reply in fresh if self._died(reply)} & by_id.keys()
            pause = PAUSE * 2 ** (sending - 2) if self.roster.simulated else 0.0
            left = None if timeout is None else began + timeout - time.monotonic() - pause
            if not died or (left is not None and left <= 0):
                break
            time.sleep(pause)
            replies += [reply for reply in fresh if not self._died(reply)]
            fresh = self._send_again([by_id[message_id] for message_id in sorted(died)], sending, left)
        return replies + fresh

    def _send_again(self, orders: list[Message], sending: int, timeout: float | None) -> list[Message]:
        """The replies to copies of these orders, as replies to the orders themselves."""
        copies = []
        for order in orders:
            node, round_ = order.metadata.dst_node_id, _round_of(order)
            y = self.roster.held.get(node)
            log(WARNING, "round %s, class %s: its process died: order %d of %d", round_, y, sending, SENDINGS)
            copies.append(Message(order.content, node, order.metadata.message_type))
        answers = list(self.grid.send_and_receive(copies, timeout=timeout))
        sent = {copy.metadata.message_id: order for copy, order in zip(copies, orders, strict=True)}
        return [_readdressed(answer, sent.get(answer.metadata.reply_to_message_id)) for answer in answers]

    def _died(self, reply: Message) -> bool:
        """Whether Flower replies for a client whose process has ended without a reply, or while it was sending it."""
        codes = SIMULATED_CLIENT_DIED if self.roster.simulated else CLIENT_DIED
        return reply.has_error() and reply.error.code in codes


def _round_of(order: Message) -> Any:
    """The round of an order of ours, or of a strategy of Flower's."""
    records = order.content.config_records
    return records["order"]["round"] if "order" in records else records["config"]["server-round"]


def _readdressed(reply: Message, order: Message | None) -> Message:
    """The same reply, to `order`; one to nothing that was sent stays as it is."""
    if order is None:
        return reply
    return Message(reply.error if reply.has_error() else reply.content, reply_to=order)
