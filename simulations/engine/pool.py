"""The processes that clients take turns in: as many as are wanted, wherever Ray has room, and new ones for dead ones.

Flower's own pool gives an order to a process that is dead as readily as to one that lives, and again at once when it
comes back as an error: while the node of one process was gone, that process ate the orders of all others. It also
takes all cores that a cluster has.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

POLL = 0.5
"""Seconds between two looks for a process that has started."""

PATIENCE = 300.0
"""Seconds without any process that lives, after which orders are given back as errors."""

Resources = Mapping[str, Any]


class Shelf:
    """Processes that no simulation uses; the next one with the same resources takes them. They end with Ray."""

    def __init__(self) -> None:
        self._processes: dict[tuple[Any, ...], list[Any]] = {}

    def of(self, resources: Resources) -> list[Any]:
        """Those that have these resources; the list is the shelf's own."""
        return self._processes.setdefault(tuple(sorted(resources.items())), [])


class ClientProcesses:
    """Processes by the interface that Flower's Ray backend has for its pool; each is a Ray actor.

    most: how many there are at most; fewer where the cluster has no room for so many. shelf: where processes come from,
    as far as there are any, and where they are put in the end.

    Raises:
        ValueError: no node has what one process needs.
    """

    def __init__(
        self,
        most: int,
        shelf: Shelf,
        actor_type: Any,
        client_resources: dict[str, Any],
        actor_kwargs: dict[str, Any],
    ):
        self.start = lambda: actor_type.options(**client_resources).remote(**actor_kwargs)
        self._shelf = shelf.of(client_resources)
        self._kept = not client_resources.get("num_gpus")  # one that is not at work must not hold a GPU's memory
        self.num_actors = 0
        self.actors_capacity = min(most, room(ray.nodes(), client_resources))
        if not self.actors_capacity:
            needs = f"{client_resources['num_cpus']:g} cores and {client_resources.get('num_gpus', 0):g} of a GPU"
            raise ValueError(f"no node has the {needs} that a client needs")
        self._idle: SimpleQueue[Any] = SimpleQueue()
        self._busy: dict[Any, Any] = {}  # order -> the process that carries it out
        self._starting: dict[Any, Any] = {}  # sign of life to come -> process
        self._lock, self._last_alive = threading.Lock(), time.monotonic()

    def add_actors_to_pool(self, num_actors: int) -> None:
        """Take or start processes; each takes orders from when it lives."""
        for _ in range(num_actors):
            self._await(self._shelf.pop() if self._shelf else self.start())
        self.num_actors += num_actors

    def is_actor_available(self) -> bool:
        """Whether a process waits for an order."""
        return not self._idle.empty()

    def submit(self, actor_fn: Callable[..., Any], job: tuple[Any, ...]) -> Any:
        """Have a process carry out `job`, as soon as one is free.

        Raises:
            RuntimeError: for `PATIENCE` there has been none that lives.
        """
        process = self._free_process()
        order = actor_fn(process, *job)
        self._busy[order] = process
        return order

    def fetch_result_and_return_actor_to_pool(self, future: Any) -> tuple[Any, Any]:
        """(reply, context) of an order."""
        try:
            _, message, context = ray.get(future)
        except RayTaskError:  # the client itself has failed, and its process is well
            raise
        except RayError:
            self._replace(self._busy.pop(future))
            raise
        self.add_actor_back_to_pool(future)
        return message, context

    def add_actor_back_to_pool(self, future: Any) -> None:
        """The process that had this order takes another one; a dead one has been replaced by then."""
        if (process := self._busy.pop(future, None)) is not None:
            self._last_alive = time.monotonic()
            self._idle.put(process)

    def terminate_all_actors(self) -> None:
        """Put idle processes without a GPU on the shelf, and end all others."""
        while not self._idle.empty():
            process = self._idle.get()
            if self._kept:
                self._shelf.append(process)
            else:
                ray.kill(process)
        for process in (*self._busy.values(), *self._starting.values()):
            ray.kill(process)

    def _free_process(self) -> Any:
        while True:
            self._welcome()
            try:
                return self._idle.get(timeout=POLL)
            except Empty:
                if self._busy:
                    self._last_alive = time.monotonic()
                elif time.monotonic() - self._last_alive > PATIENCE:
                    raise RuntimeError(f"for {PATIENCE:g} s no process of a client has lived") from None

    def _welcome(self) -> None:
        """Those that have started wait for orders from now on; one that could not start is replaced."""
        with self._lock:
            signs = list(self._starting)
            started = ray.wait(signs, num_returns=len(signs), timeout=0)[0] if signs else []
            processes = [(sign, self._starting.pop(sign)) for sign in started]
        for sign, process in processes:
            try:
                ray.get(sign)
            except RayError:
                self._replace(process)
            else:
                self._last_alive = time.monotonic()
                self._idle.put(process)

    def _replace(self, process: Any) -> None:
        """Another process in place of a dead one, on any node that has room, also later."""
        ray.kill(process)
        self._await(self.start())

    def _await(self, process: Any) -> None:
        """It takes orders once it gives a sign of life."""
        with self._lock:
            self._starting[process.__ray_ready__.remote()] = process


def room(nodes: Sequence[Mapping[str, Any]], resources: Resources) -> int:
    """How many processes with these resources fit on the nodes; each on one node."""
    needs = {"CPU": resources["num_cpus"], "GPU": resources.get("num_gpus", 0)}
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    return sum(min(int(has.get(kind, 0) / need) for kind, need in needs.items() if need) for has in alive)
