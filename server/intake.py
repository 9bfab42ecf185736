"""What a reply may cost: the server takes no more of one than a limit, and one that cannot be read ends no run.

Flower's own grid fetches all that a node announces, builds it, and only then shows it to the strategy. A few
kilobytes may announce gigabytes (an array that names one of its pieces a thousand times), pieces that never
come are waited for up to two hours, and what does not decode ends the run. Flower gives no hook in between, so
this grid fetches and builds replies itself: piece by piece, each weighed before its body is read.
"""

import json
import time
from collections.abc import Iterable
from math import inf
from typing import Any

import httpx
from flwr.app import Array, Error, Message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflate_object_from_contents,
)
from flwr.superlink.grid import HttpGrid

from fedmutual.records import Rejected

POLL = 3.0
"""Seconds between two looks for replies, as in Flower's own grid."""

DESCRIPTION = 2_000_000
"""Bytes of a reply that may be other than pieces of arrays: names, shapes, numbers. Python makes up to 30 times as
much of them in memory; some 4000 parameters fit in."""

FETCHES = ("/v1/runtime/pull-messages", "/v1/runtime/pull-object")

ROOM = 4_000_000
"""Bytes that a reply may need beside the values of its network: its description, and the arrays' headers."""

UNREADABLE = 422
"""HTTP's code for content that cannot be processed, as the code of the error that stands for a reply."""


class Refusal(Error):
    """Stands for a reply that was not taken in, and says why."""

    def __init__(self, reason: str):
        super().__init__(UNREADABLE, reason)


class Intake(Grid):
    """A grid over `grid` on which no reply costs more than `limit` bytes, as sent and as arrays."""

    def __init__(self, grid: HttpGrid, limit: int):
        self.grid, self.limit, self.left = grid, limit, limit
        self.client = grid._runtime_client
        self.client._client.event_hooks["response"].append(self._weigh)

    def _weigh(self, response: httpx.Response) -> None:
        """Called by httpx between a response's head and its body."""
        if response.is_success and response.url.path in FETCHES:
            self.left -= int(response.headers["content-length"])
            _check_size(self.left >= 0, self.limit)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """The replies that came in time, with a `Refusal` for each that was not taken in."""
        orders = list(messages)
        self.grid.push_messages(orders)
        waiting = {order.metadata.message_id: order for order in orders}
        announced: dict[str, ObjectTree] = {}
        replies: list[Message] = []
        deadline = time.monotonic() + (inf if timeout is None else timeout)
        while True:
            for message_id, order in list(waiting.items()):
                reply = self._receive(order, announced)
                if reply is not None:
                    replies.append(reply)
                    del waiting[message_id]
            if not waiting or time.monotonic() > deadline:
                return replies
            time.sleep(POLL)

    def _receive(self, order: Message, announced: dict[str, ObjectTree]) -> Message | None:
        """The reply to `order`, or what stands for it; None while it is not there as a whole.

        Flower announces a reply once, so `announced` keeps what it is made of.
        """
        message_id, self.left = order.metadata.message_id, self.limit
        try:
            if message_id not in announced:
                found = self.client.PullMessages(PullAppMessagesRequest(message_ids=[message_id]))
                for reply, tree in zip(found.messages_list, found.message_object_trees, strict=True):
                    if reply.metadata.reply_to_message_id == message_id:
                        announced[message_id] = tree
            if message_id not in announced:
                return None
            contents = self._fetch(announced[message_id])
            reply = build(announced[message_id].object_id, contents, self.limit)
            # From here on, who replied and to what is what we know, not what the reply says of itself.
            answer = reply.error if reply.has_error() else reply.content
        except ObjectUnavailableError:
            return None
        except ObjectPullError:
            answer = Refusal("a part of the reply is not to be had")
        except Rejected as rejected:
            answer = Refusal(str(rejected))
        if tree := announced.pop(message_id, None):
            self.client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(
                    node=self.grid.node, run_id=self.grid.run.run_id, message_object_id=tree.object_id
                )
            )
        return Message(answer, reply_to=order)

    def _fetch(self, tree: ObjectTree) -> dict[str, bytes]:
        """{id: content} of a reply and all its parts, the reply itself first: it is what a node sends last."""
        pull = make_pull_object_fn_protobuf(self.client.PullObject, self.grid.node, self.grid.run.run_id)
        ids = dict.fromkeys(reversed([part.object_id for part in iterate_object_tree(tree)]))
        return {object_id: pull(object_id) for object_id in ids}

    # The rest is Flower's.

    def set_run(self, run: Any) -> None:
        self.grid.set_run(run)

    @property
    def run(self) -> Any:
        return self.grid.run

    def create_message(self, *arguments: Any, **options: Any) -> Message:
        return self.grid.create_message(*arguments, **options)

    def get_node_ids(self) -> Iterable[int]:
        return self.grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self.grid.pull_messages(message_ids)


def build(message_id: str, contents: dict[str, bytes], limit: int) -> Message:
    """The message that its parts, {id: content}, make up.

    Raises:
        Rejected: they make up none, or arrays of more than `limit` bytes, or their description is too long.
    """
    try:
        heads = {part: get_object_head_values_from_object_content(content) for part, content in contents.items()}
        pieces = {part for part, (kind, _, _) in heads.items() if kind == ArrayChunk.__qualname__}
        _check_size(sum(len(contents[part]) for part in heads.keys() - pieces) <= DESCRIPTION, limit)
        whole = 0
        for part, (kind, children, _) in heads.items():
            if kind == Array.__qualname__:
                named = json.loads(get_object_body(contents[part], Array))["arraychunk_ids"]
                whole += sum(len(contents[children[index]]) for index in named)
        _check_size(whole <= limit, limit)
        message = inflate_object_from_contents(message_id, contents)
        if not isinstance(message, Message):
            raise TypeError(f"a {type(message).__name__} is no reply")
        return message
    except Rejected:
        raise
    except Exception as error:  # hostile bytes make Flower's parsers raise nearly anything
        raise Rejected(f"the reply cannot be read: {type(error).__name__}: {error}") from None


def _check_size(fits: bool, limit: int) -> None:
    if not fits:
        raise Rejected(f"the reply takes more than the {limit / 1e6:.3g} MB of max-reply-mb")
