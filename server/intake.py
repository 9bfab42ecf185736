"""What a reply may cost: the server takes no more of one than a limit, and one that cannot be read ends no run.

Flower's own grid fetches all that a node announces, builds it, and only then shows it to the strategy. A few
kilobytes may announce gigabytes (an array that names one of its pieces a thousand times), pieces that never
come are waited for up to two hours, and what does not decode ends the run. Flower gives no hook in between, so
this grid fetches and builds replies itself: piece by piece, each weighed before its body is read.
"""

import time
from collections.abc import Iterable
from math import inf

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from fedmutual.records import Rejected
from server.flower import (
    ARRAY,
    PIECE,
    Announced,
    GridOver,
    PartLost,
    PartPending,
    Replies,
    head_of,
    is_remote,
    message_of,
    pieces_of,
)

POLL = 3.0
"""Seconds between two looks for replies, as in Flower's own grid."""

DESCRIPTION = 2_000_000
"""Bytes of a reply that may be other than pieces of arrays: names, shapes, numbers. Python makes up to 30 times as
much of them in memory; some 4000 parameters fit in."""

ROOM = 4_000_000
"""Bytes that a reply may need beside the values of its network: its description, and the arrays' headers."""

UNREADABLE = 422
"""HTTP's code for content that cannot be processed, as the code of the error that stands for a reply."""


class Refusal(Error):
    """Stands for a reply that was not taken in, and says why."""

    def __init__(self, reason: str):
        super().__init__(UNREADABLE, reason)


def guarded(grid: Grid, limit: int) -> Grid:
    """The grid of a run, on which no reply from another machine costs more than `limit`.

    The replies of a simulation are made on this machine, and pass as they are.
    """
    return Intake(grid, limit) if is_remote(grid) else grid


class Intake(GridOver):
    """A grid over `grid` on which no reply costs more than `limit` bytes, as sent and as arrays."""

    def __init__(self, grid: Grid, limit: int):
        if not is_remote(grid):
            raise TypeError(f"a {type(grid).__name__} is not connected to a SuperLink")
        super().__init__(grid)
        self.limit, self.left = limit, limit
        self.replies = Replies(grid, self._weigh)

    def _weigh(self, size: int) -> None:
        """Called before `size` bytes of a reply are read."""
        self.left -= size
        _check_size(self.left >= 0, self.limit)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """The replies that came in time, with a `Refusal` for each that was not taken in."""
        orders = list(messages)
        self.grid.push_messages(orders)
        waiting = {order.metadata.message_id: order for order in orders}
        announced: dict[str, Announced] = {}
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

    def _receive(self, order: Message, announced: dict[str, Announced]) -> Message | None:
        """The reply to `order`, or what stands for it; None while it is not there as a whole.

        Flower announces a reply once, so `announced` keeps what it is made of.
        """
        message_id, self.left = order.metadata.message_id, self.limit
        answer: Error | RecordDict
        try:
            if message_id not in announced:
                parts = self.replies.announced(message_id)
                if parts is None:
                    return None
                announced[message_id] = parts
            contents = self.replies.fetch(announced[message_id])
            reply = build(announced[message_id].object_id, contents, self.limit)
            # From here on, who replied and to what is what we know, not what the reply says of itself.
            answer = reply.error if reply.has_error() else reply.content
        except PartPending:
            return None
        except PartLost:
            answer = Refusal("a part of the reply is lost")
        except Rejected as rejected:
            answer = Refusal(str(rejected))
        if parts := announced.pop(message_id, None):
            self.replies.confirm(parts)
        return Message(answer, reply_to=order)


def build(message_id: str, contents: dict[str, bytes], limit: int) -> Message:
    """The message that its parts, {id: content}, make up.

    Raises:
        Rejected: they make up none, or arrays of more than `limit` bytes, or their description is too long.
    """
    try:
        heads = {part: head_of(content) for part, content in contents.items()}
        pieces = {part for part, (kind, _) in heads.items() if kind == PIECE}
        _check_size(sum(len(contents[part]) for part in heads.keys() - pieces) <= DESCRIPTION, limit)
        whole = 0
        for part, (kind, children) in heads.items():
            if kind == ARRAY:
                whole += sum(len(contents[piece]) for piece in pieces_of(contents[part], children))
        _check_size(whole <= limit, limit)
        return message_of(message_id, contents)
    except Rejected:
        raise
    except Exception as error:  # hostile bytes make Flower's parsers raise nearly anything
        raise Rejected(f"the reply cannot be read: {type(error).__name__}: {error}") from None


def _check_size(fits: bool, limit: int) -> None:
    if not fits:
        raise Rejected(f"the reply takes more than the {limit / 1e6:.3g} MB of max-reply-mb")
