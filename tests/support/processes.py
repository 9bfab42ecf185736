"""A federation of real processes that are killed: a server, and for each message a client process of its own.

Processes are forked from a warm parent, so that a kill strikes the run and not its imports. Each reports the
moments that it passes to the one that watches it; at the moment that a seeded draw has chosen, or some
milliseconds after it, it gets SIGKILL. A client process that was killed is started anew with the same message, as
a SuperNode does; one whose server was killed goes on, as on another machine. A server is resumed.
"""

import functools
import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401  (an optimiser imports it, for seconds: once here, and not in every process)
from flwr.app import Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as MessageProto

import client.app
import client.store
import fedmutual.saved_networks
from fedmutual.config import RunConfig
from server.journal import Journal
from server.strategy import MutualLearning
from tests.support.federation import LocalGrid, federate

CLIENT = (
    "client loads its state",
    "client trains",
    "client writes its state",
    "client has written, not yet renamed",
    "client has saved, not yet dropped old states",
    "client has saved, not yet replied",
    "client replies",
)
SERVER = (
    "server opens its folder",
    "server gives orders",
    "server waits for replies",
    "server checks replies",
    "server appends to the history",
    "server has its history, not yet its checkpoint",
    "server writes a checkpoint",
    "server has written, not yet renamed",
    "server has its checkpoint, not yet dropped old ones",
)

DELAY = 0.03
"""Longest time in seconds between a moment and the kill that it sets off."""


@dataclass(frozen=True)
class Strike:
    """Kill at the `occurrence`-th passing of `moment`, or `delay` seconds after it, wherever the process is by then."""

    moment: str
    occurrence: int
    delay: float

    @classmethod
    def draw(cls, rng: random.Random, moments: tuple[str, ...], occurrences: int) -> "Strike":
        return cls(rng.choice(moments), rng.randint(1, occurrences), rng.uniform(0, DELAY))


class Victim:
    """This process, as its watcher is told of it."""

    role: str
    watcher: Connection
    strike: Strike | None
    passed: Counter[str]

    @classmethod
    def watched(cls, role: str, watcher: Connection, strike: Strike | None) -> None:
        cls.role, cls.watcher, cls.strike, cls.passed = role, watcher, strike, Counter()

    @classmethod
    def at(cls, moment: str) -> None:
        moment = f"{cls.role} {moment}"
        cls.passed[moment] += 1
        with suppress(OSError):  # the watcher was killed
            cls.watcher.send(moment)
        if cls.strike == Strike(moment, cls.passed[moment], 0.0):
            parent = os.getppid()
            while os.getppid() == parent:  # held at this very moment until the kill comes, or its sender is killed
                time.sleep(0.001)


def _watch(owner: Any, name: str, during: str, after: str = "") -> None:
    """Have calls of `owner.name` report the moment when they begin and the one when they have ended."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def watched(*arguments: Any, **options: Any) -> Any:
        Victim.at(during)
        result = function(*arguments, **options)
        if after:
            Victim.at(after)
        return result

    setattr(owner, name, watched)


def _watch_everything() -> None:
    _watch(client.app.Store, "restore", "loads its state")
    _watch(client.app, "local_steps", "trains")
    _watch(client.app.Store, "keep", "writes its state", "has saved, not yet replied")
    _watch(client.store, "save", "writes its state", "has saved, not yet dropped old states")
    _watch(MutualLearning, "configure_train", "gives orders", "waits for replies")
    _watch(MutualLearning, "aggregate_train", "checks replies")
    _watch(Journal, "append", "appends to the history", "has its history, not yet its checkpoint")
    _watch(fedmutual.saved_networks, "save", "writes a checkpoint", "has its checkpoint, not yet dropped old ones")
    _watch(Path, "replace", "has written, not yet renamed")


@dataclass
class Watched:
    """A process under watch: the last moment it reported, and when it is due to be killed."""

    process: BaseProcess
    connection: Connection
    strike: Strike | None
    moment: str = "starts"
    passed: Counter[str] | None = None
    due: float | None = None
    struck: bool = False

    def reported(self, moment: str) -> None:
        self.moment = moment
        self.passed = (self.passed or Counter()) + Counter([moment])
        if self.strike and (self.strike.moment, self.strike.occurrence) == (moment, self.passed[moment]):
            self.due = time.monotonic() + self.strike.delay

    def strike_if_due(self) -> None:
        if self.due is not None and time.monotonic() >= self.due and not self.struck:
            self.process.kill()
            self.struck = True


class Kills:
    """The moments at which processes were killed, in a file that outlives them."""

    def __init__(self, path: Path):
        self.path = path

    def add(self, moment: str) -> None:
        with self.path.open("a") as file:
            file.write(moment + "\n")

    def counted(self) -> dict[str, int]:
        return dict(sorted(Counter(self.path.read_text().splitlines()).items()))


class ProcessGrid(LocalGrid):
    """Runs every message in a process of its own, all of a round at once, until each has a reply.

    The first process of every other order is killed at one of the moments in turn; of the others, those started
    anew included, half are killed at a moment that is drawn from (seed, attempt, round, node, how often started).
    """

    def __init__(self, classes: Iterable[int], kills: Kills, seed: int):
        super().__init__(classes)
        self.kills, self.seed = kills, seed
        self.context = multiprocessing.get_context("fork")

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        orders = list(messages)
        for order in orders:
            order.metadata.__dict__["_message_id"] = str(next(self.ids))
        replies: list[Message] = []
        running = {watched.connection: (order, 1, watched) for order in orders for watched in [self._start(order, 1)]}
        while running:
            due = [watched.due for _, _, watched in running.values() if watched.due and not watched.struck]
            ready = wait(list(running), max(0.0, min(due) - time.monotonic()) if due else 1.0)
            for connection in ready:
                order, times, watched = running[connection]
                try:
                    kind, value = "moment", connection.recv()
                    if isinstance(value, bytes):
                        kind, value = "reply", message_from_proto(MessageProto.FromString(value))
                except (EOFError, OSError):
                    kind, value = "death", None
                if kind == "moment":
                    watched.reported(value)
                    continue
                del running[connection]
                watched.process.join()
                if kind == "reply":
                    replies.append(value)
                    continue
                assert watched.struck, f"a client process died by itself after: {watched.moment}"
                self.kills.add(watched.moment)
                again = self._start(order, times + 1)
                running[again.connection] = order, times + 1, again
            for _, _, watched in running.values():
                watched.strike_if_due()
        return replies

    def _start(self, order: Message, times: int) -> Watched:
        strike = self._strike(order, times) if order.content.config_records else None
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = self.context.Process(target=self._carry_out, args=(order, theirs, strike))
        process.start()
        theirs.close()
        return Watched(process, ours, strike)

    def _strike(self, order: Message, times: int) -> Strike | None:
        what, node = order.content.config_records["order"], order.metadata.dst_node_id
        turn = (len(self.contexts) * what["round"] + node) % (2 * len(CLIENT))
        if times == 1 and turn < len(CLIENT):
            return Strike(CLIENT[turn], 1, 0.0)
        rng = random.Random(f"{self.seed}/{what['attempt']}/{what['round']}/{node}/{times}")
        return Strike.draw(rng, CLIENT, 1) if times <= 3 and rng.random() < 0.5 else None

    def _carry_out(self, order: Message, watcher: Connection, strike: Strike | None) -> None:
        Victim.watched("client", watcher, strike)
        reply = self._run(order)
        Victim.at("replies")
        with suppress(OSError):  # the server was killed
            watcher.send(message_to_proto(reply).SerializeToString())


def _serve(settings: dict[str, Any], watcher: Connection, strike: Strike | None, grid: LocalGrid) -> None:
    Victim.watched("server", watcher, strike)
    _watch_everything()
    Victim.at("opens its folder")
    federate(RunConfig.of(settings), grid)


def federate_under_kills(config: RunConfig, folder: Path, seed: int, server_kills: int) -> dict[str, int]:
    """Run `config` to its end though its processes are killed; how many kills fell at which moment.

    The server is killed `server_kills` times, in each of its moments first and then in drawn ones.
    """
    # The parent of all is a fresh process, with everything imported and no thread that a fork would lose.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as parent:
        return parent.submit(_run_to_its_end, config, folder, seed, server_kills).result()


def _run_to_its_end(config: RunConfig, folder: Path, seed: int, server_kills: int) -> dict[str, int]:
    context = multiprocessing.get_context("fork")
    kills, rng, out = Kills(folder / "kills"), random.Random(seed), Path(config.federation.out)
    strikes = [Strike(moment, 1, 0.0) for moment in SERVER]
    strikes += [Strike.draw(rng, SERVER, 2) for _ in range(server_kills - len(SERVER))]
    for strike in (*strikes, None):
        grid = ProcessGrid(range(config.data.classes), kills, seed)
        settings = config.but(resume=(out / "config.toml").exists()).settings()
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = context.Process(target=_serve, args=(settings, theirs, strike, grid))
        process.start()
        theirs.close()
        watched = Watched(process, ours, strike)
        _watch_until_it_ends(watched)
        if not watched.struck:
            assert process.exitcode == 0, f"the server failed after: {watched.moment}"
            break
        kills.add(watched.moment)
    return kills.counted()


def _watch_until_it_ends(watched: Watched) -> None:
    while True:
        left = None if watched.due is None or watched.struck else max(0.0, watched.due - time.monotonic())
        ready = wait([watched.connection, watched.process.sentinel], left)
        if watched.connection in ready:  # whatever was reported before the end is read before the end is seen
            with suppress(EOFError, OSError):
                watched.reported(watched.connection.recv())
                continue
        if ready:
            return watched.process.join()
        watched.strike_if_due()


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The history without what a clock has measured."""
    return [{key: value for key, value in line.items() if "seconds" not in key} for line in history]
