"""A federation in one process: the real ServerApp code and the real ClientApp, without Flower's transport."""

import itertools
import random
from collections.abc import Callable, Iterable
from typing import Any

import torch
from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from client.app import app as client_app
from fedmutual.config import RunConfig
from server.app import prepare, serve
from server.bank import Bank

torch.set_num_threads(1)  # of every process that is started for a test, too: the number of threads moves the last bit
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

SMALL = {
    "data": "digits",
    "head-count": 20,
    "imbalance-ratio": 0.2,
    "diffusion-steps": 25,
    "width": 16,
    "depth": 2,
    "batch": 8,
    "rounds": 2,
    "local-steps": 3,
    "ema": 0.5,
    "keep": "last",
    "samples": 0,
}
"""Settings of a federation that takes a second."""

Fault = Callable[[Message, Message], Message | list[Message] | None]


class LocalGrid(Grid):
    """Runs every order through the real ClientApp (`client`), one after the other, in a seeded order of its own.

    `fault(order, reply)` may replace a reply, double it or lose it. `orders` and `replies` keep all that crossed.
    """

    def __init__(
        self,
        classes: Iterable[int],
        fault: Fault = lambda order, reply: reply,
        seed: int = 0,
        client: ClientApp = client_app,
    ):
        self.fault, self.shuffle, self.client = fault, random.Random(seed).shuffle, client
        self.contexts: dict[int, Context] = {}
        self.orders: list[Message] = []
        self.replies: list[Message] = []
        self.ids = itertools.count(1)
        for y in classes:
            self.join(y)

    def join(self, y: int, **node_config: Any) -> int:
        node = 1000 + len(self.contexts)
        self.contexts[node] = Context(1, node, {"partition-id": y, **node_config}, RecordDict(), {})
        return node

    def get_node_ids(self) -> list[int]:
        return list(self.contexts)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        orders = list(messages)
        for order in orders:
            order.metadata.__dict__["_message_id"] = str(next(self.ids))
        self.shuffle(orders)
        replies = []
        for order in orders:
            answer = self.fault(order, self._run(order))
            replies += answer if isinstance(answer, list) else [answer] if answer else []
        self.orders += orders
        self.replies += replies
        return replies

    def _run(self, order: Message) -> Message:
        try:
            return self.client(order, self.contexts[order.metadata.dst_node_id])
        except Exception as error:  # as Flower does: whatever a client raises becomes an error reply
            return Message(Error(code=2, reason=f"<class 'ClientAppException'>:<'{error}'>"), reply_to=order)

    def set_run(self, run: Any) -> None: ...
    def run(self) -> None: ...
    def create_message(self, *args: Any, **kwargs: Any) -> Message: ...
    def get_nodes(self) -> list: ...
    def push_messages(self, messages: Iterable[Message]) -> list[str]: ...
    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]: ...


def federate(config: RunConfig, grid: LocalGrid | None = None) -> Bank:
    """The bank after a run of `config` over `grid` (by default all ten digits)."""
    strategy = prepare(config)
    serve(grid or LocalGrid(range(strategy.bank.classes)), strategy)
    return strategy.bank


class Stopped(BaseException):
    """What `stopping_in` raises: no error that a run may catch."""


def stopping_in(round_: int) -> Callable[[Message, Message], Message]:
    """A fault of a grid that stops the server at the first reply of training in a round."""

    def stop(order: Message, reply: Message) -> Message:
        if order.metadata.message_type == MessageType.TRAIN:
            content = order.content
            now = content["order"]["round"] if "order" in content else content["config"]["server-round"]
            if now == round_:
                raise Stopped
        return reply

    return stop


def networks(bank: Bank) -> dict[int, dict[str, torch.Tensor]]:
    return {y: entry.network for y, entry in sorted(bank.entries.items())}


def assert_same(a: dict[int, dict], b: dict[int, dict], **tolerance: float) -> None:
    """Equal networks: bit for bit, or within a tolerance of torch.testing.assert_close."""
    assert a.keys() == b.keys()
    for y in a:
        torch.testing.assert_close(a[y], b[y], **(tolerance or {"rtol": 0, "atol": 0}))
