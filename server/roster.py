"""Who is there: which node holds which class. Nodes come, go, come back under another name, and make mistakes."""

import time
from logging import INFO, WARNING

from flwr.app import Message, MessageType, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid

from fedmutual.errors import UserError
from fedmutual.records import Rejected, one_line, unpack_hello

GREETINGS = 3
"""How often a node that answers with an error, or not at all, is asked for its class."""

GREETING_TIMEOUT, GREETING_SECONDS = 120.0, 0.2
"""Seconds in which nodes that are asked together may answer, and how many more there are for each: simulated clients
answer in turn, and a thousand of them on a busy machine were not through in two minutes."""


class RunFailed(RuntimeError):
    """The run cannot go on; says why."""


class Roster:
    """Nodes by class. A class belongs to the first node that claims it, for as long as that node is there."""

    def __init__(self, classes: int):
        self.classes = classes
        self.held: dict[int, int] = {}  # node -> class
        self.asked: dict[int, int] = {}  # node -> how often it was asked
        self.wrong_sizes: dict[int, int] = {}  # node -> the number of clients in its settings
        self.simulated = False  # only clients of a simulation have the number of clients in their settings
        self.refusal = ""

    @property
    def nodes(self) -> dict[int, int]:
        """{class: node} of the clients that are there."""
        return {y: node for node, y in self.held.items()}

    def wait_for(self, wanted: int, grid: Grid, timeout: float) -> None:
        """Greet until `wanted` classes are held.

        Raises:
            RunFailed: time is up, or as many nodes are there and will not do.
            UserError: the federation was started with a number of clients that is not the number of classes.
        """
        deadline = time.monotonic() + timeout
        while True:
            strangers = self.greet(grid)
            if len(self.held) >= wanted:
                return
            hopeless = not strangers and len(self.held) + len(self.asked) >= wanted
            if hopeless or time.monotonic() > deadline:
                why = f": {self.refusal}" if self.refusal else ""
                raise RunFailed(f"{len(self.held)} of {wanted} clients joined{why}")
            time.sleep(0.2)

    def greet(self, grid: Grid) -> list[int]:
        """Ask nodes not met before for their class, and forget those that left; the nodes still to be asked again."""
        present = set(grid.get_node_ids())
        if (set(self.held) | set(self.asked)) - present:
            # A node that was refused for the class of one that left may have it now.
            self.held = {node: y for node, y in self.held.items() if node in present}
            self.asked = {}
        strangers = self._strangers(present)
        orders = [Message(RecordDict(), node, MessageType.QUERY) for node in strangers]
        self.asked |= {node: self.asked.get(node, 0) + 1 for node in strangers}
        taken = set(self.held.values())
        patience = GREETING_TIMEOUT + GREETING_SECONDS * len(orders)
        for reply in grid.send_and_receive(orders, timeout=patience) if orders else []:
            self._introduce(reply, taken)
        sizes = list(self.wrong_sizes.values())
        if not self.held and sizes and len(sizes) >= sizes[0]:
            raise UserError(f"{self._size_differs(sizes[0])}: set num-supernodes={self.classes}")
        return self._strangers(present)

    def _strangers(self, present: set[int]) -> list[int]:
        return sorted(node for node in present - set(self.held) if self.asked.get(node, 0) < GREETINGS)

    def _introduce(self, reply: Message, taken: set[int]) -> None:
        """Give a node the class that it claims, unless that is among those `taken`."""
        node = reply.metadata.src_node_id
        if reply.has_error():  # it may be asked again
            return self._refuse(node, reason_of(reply))
        try:
            y, partitions = unpack_hello(reply.content)
        except Rejected as rejected:
            self.asked[node] = GREETINGS
            return self._refuse(node, str(rejected))
        refusal, self.simulated = "", self.simulated or partitions != 0
        if partitions not in (0, self.classes):
            self.wrong_sizes[node] = partitions
            refusal = f"{self._size_differs(partitions)}: correct its num-partitions"
        elif y >= self.classes:
            refusal = f"it claims class {y}, and the classes are 0..{self.classes - 1}"
        elif y in taken:
            refusal = f"it claims class {y}, which another node holds"
        if refusal:
            self.asked[node] = GREETINGS
            return self._refuse(node, refusal)
        log(INFO, "node %s holds class %d", node, y)
        self.held[node] = y
        taken.add(y)
        del self.asked[node]

    def _size_differs(self, partitions: int) -> str:
        return f"the federation has {partitions} clients and the data {self.classes} classes"

    def _refuse(self, node: int, refusal: str) -> None:
        self.refusal = refusal
        log(WARNING, "node %s is left out: %s", node, refusal)


def reason_of(reply: Message) -> str:
    """What a client raised, on one line: the end of the traceback that Flower and Ray wrap around it."""
    lines = (reply.error.reason or "").strip().splitlines() or [f"error code {reply.error.code}"]
    text = lines[-1].rpartition("Message: ")[2].rpartition(":<'")[2]
    return one_line(text.removesuffix("'>"))
