"""A Ray cluster that runs already, and what must hold on all its nodes before clients can run there.

The project's own code is shipped with the job, so that it is the same everywhere. Python and its packages are the
nodes' own: those that a result depends on are compared. Clients keep their states in one folder that all nodes share.
"""

import contextlib
import logging
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import client
import fedmutual
import server
import simulations
from fedmutual.errors import UserError
from fedmutual.run_folder import versions
from simulations.engine.cluster import end_kept_ray, innermost
from simulations.engine.pool import Shelf

PACKAGES = (fedmutual, client, server, simulations)

COMPARED = ("python", "ray", "flwr", "torch", "numpy", "scikit-learn", "diffusers")
"""What has to have the same version on all nodes."""

REACH = 10.0
"""Seconds that the head may take to take up a connection."""

PATIENCE = 120.0
"""Seconds that a node may take to answer, the time in which it unpacks the project's code included."""


class Node(NamedTuple):
    """A machine of the cluster, by its address, with its cores and GPUs."""

    address: str
    id: str
    cores: int
    gpus: int


@dataclass(frozen=True)
class Seen:
    """What a node tells of itself."""

    versions: Mapping[str, str]
    has_store: bool
    has_data: bool


class Cluster:
    """The cluster at `address`, which is host:port, or auto: what RAY_ADDRESS names, else the one that runs here.

    Raises:
        UserError: it cannot be joined from this machine.
    """

    def __init__(self, address: str):
        if address.startswith("ray://"):
            raise UserError(
                f"--ray {address} is for Ray's own client, which Flower does not use: run this command on a node of "
                "the cluster, with --ray auto"
            )
        self.address = address
        _reach(address)
        with self.joined():
            self.nodes = [_node(node) for node in ray.nodes() if node["Alive"]]

    @property
    def cores(self) -> int:
        """Of all nodes together."""
        return sum(node.cores for node in self.nodes)

    @property
    def gpus(self) -> int:
        """Of all nodes together."""
        return sum(node.gpus for node in self.nodes)

    @contextmanager
    def joined(self) -> Iterator[Shelf]:
        """This process has a part in the cluster until the end of the block; what it started there ends then.

        Yields where processes are put that may be taken again.

        Raises:
            UserError: it cannot be joined.
        """
        shipped = [str(Path(package.__path__[0])) for package in PACKAGES]
        variables = {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        end_kept_ray()
        with tempfile.TemporaryDirectory() as neutral:
            try:
                with contextlib.chdir(neutral):  # its processes add the folder to their paths
                    ray.init(
                        address=self.address,
                        runtime_env={"py_modules": shipped, "env_vars": variables},
                        log_to_driver=False,
                        logging_level=logging.CRITICAL,
                    )
            except Exception as error:
                ray.shutdown()
                raise UserError(
                    f"--ray {self.address}: this machine cannot join: {innermost(error)}: start Ray here first "
                    "(ray start --address=HOST:PORT), with the Python that this command has"
                ) from error
            try:
                yield Shelf()
            finally:
                ray.shutdown()

    def check(self, store: Path, data: str) -> None:
        """See that every node has the same packages, shares the folder `store`, and sees the file or folder `data`.

        Raises:
            UserError: the first node that does not; says what to do.
        """
        with self.joined():
            token = secrets.token_hex(8)
            mark = store / f".seen-by-{socket.gethostname()}-{token}"
            try:
                store.mkdir(parents=True, exist_ok=True)
                mark.write_text(token)
            except OSError as error:
                raise UserError(f"store = {store} cannot be written: {error.strerror}") from None
            try:
                for node in self.nodes:
                    _judge(node, _ask(node, str(mark), data), store, data)
                    if not _answer(mark, node).exists():
                        raise _not_shared(node, store)
            finally:
                for path in store.glob(f"{mark.name}*"):
                    path.unlink()


def _reach(address: str) -> None:
    """Raises `UserError` where nothing answers at host:port; Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        if address != "auto":
            raise UserError(f"--ray {address}: give HOST:PORT of the cluster's head, or auto")
        return
    try:
        socket.create_connection((host, int(port)), REACH).close()
    except OSError as error:
        raise UserError(f"--ray {address}: nothing answers there ({error}): is Ray's head running?") from None


def _node(node: Mapping[str, Any]) -> Node:
    has = node["Resources"]
    return Node(node["NodeManagerAddress"], node["NodeID"], int(has.get("CPU", 0)), int(has.get("GPU", 0)))


def _answer(mark: Path, node: Node) -> Path:
    """What a node writes beside the mark that it has seen."""
    return mark.with_name(f"{mark.name}.{node.id}")


def look_around(mark: str, answer: str, data: str) -> Seen:
    """What a node sees; it answers in the store, where it sees the mark of the process that asks."""
    has_store = False
    with contextlib.suppress(OSError):  # the folder is there, and may not be written
        if has_store := Path(mark).exists():
            Path(answer).write_text(os.uname().nodename)
    return Seen(versions(), has_store, not data or Path(data).exists())


def _ask(node: Node, mark: str, data: str) -> Seen:
    there = NodeAffinitySchedulingStrategy(node.id, soft=False)
    ask = ray.remote(look_around).options(num_cpus=0, scheduling_strategy=there, max_retries=0)
    try:
        seen: Seen = ray.get(ask.remote(mark, str(_answer(Path(mark), node)), data), timeout=PATIENCE)
    except Exception as error:
        raise UserError(
            f"node {node.address} cannot run clients: {innermost(error)}: install there what is installed here"
        ) from error
    return seen


def _judge(node: Node, seen: Seen, store: Path, data: str) -> None:
    here = versions()
    for package in COMPARED:
        if seen.versions.get(package) != here.get(package):
            raise UserError(
                f"node {node.address} has {package} {seen.versions.get(package, 'not at all')}, and this machine "
                f"{here.get(package, 'not at all')}: install the same version on all nodes"
            )
    if not seen.has_store:
        raise _not_shared(node, store)
    if not seen.has_data:
        raise UserError(f"node {node.address} does not see data-path = {data}: put the data where all nodes see them")


def _not_shared(node: Node, store: Path) -> UserError:
    return UserError(
        f"node {node.address} does not share store = {store}, where clients keep their states: name a folder that all "
        "nodes read and write, with -s store=FOLDER"
    )
