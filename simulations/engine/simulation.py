"""Starts Flower's simulation engine: Ray runs the clients, one CPU each, GPU shares where there is a GPU."""

import logging
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

# Read when Flower and Ray are imported: nothing is reported to anybody, and no banner is printed.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Ray would give its processes niceness 15, and two busy processes beside a simulation then made a round of 37 s take
# 447 s; to have it yield, start the whole command with nice.
os.environ.setdefault("RAY_worker_niceness", "0")

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from client.app import app as client_app
from fedmutual.config import RunConfig
from fedmutual.course import OnPhase
from fedmutual.data import check, num_classes
from fedmutual.data.check import OnRead
from fedmutual.data.fingerprint import refuse_changed, write_fingerprints
from fedmutual.device import pick_device
from fedmutual.errors import UserError
from fedmutual.learning.igd import NO_STEPS
from fedmutual.privacy.dp_sgd import accountant
from fedmutual.run_folder import read_history, run_folder
from server.app import prepare, serve
from server.flower import GridOver, indexed_messages, pool_of_clients
from server.journal import Journal
from server.orders import OnRound, Run
from server.roster import RunFailed
from simulations.engine.cluster import end_kept_ray, innermost, own_ray
from simulations.engine.joined import Cluster
from simulations.engine.lending import lend_records
from simulations.engine.pool import ClientProcesses

CLIENT_CPUS = 1
"""Cores of a client."""

POLL = 0.1
"""Seconds between two looks for replies, as in Flower's grid of a simulation."""

RAY_OPTIONS = {"enable_task_events": False}
"""Ray does not keep an account of every order, which would grow by 4 MB in a hundred rounds of ten clients."""


class Prepared(Protocol):
    """What a simulation reads of a run that a method has prepared; all else is between the method's own functions."""

    @property
    def journal(self) -> Journal: ...


P = TypeVar("P", bound=Prepared)


class App(NamedTuple, Generic[P]):
    """A federated method, in the order in which its data flow.

    `prepare` makes the run folder and what the server holds, from the run's settings and those that clients are sent
    in their place; `serve` trains over a grid, and reports each round; `client` is what a client runs.
    """

    prepare: Callable[[RunConfig, Mapping[str, Any]], P]
    serve: Callable[[Grid, P, OnRound], None]
    client: ClientApp


MUTUAL: App[Run] = App(prepare, serve, client_app)


class Simulation(Generic[P]):
    """A federation of one client a class, on this machine or on the Ray cluster `ray` (see `Cluster`).

    `cpus` clients train at once (0: one for each core this process may use, or the cluster has); `gpus` are shared
    among them (-1: all there are). Clients keep their states in the run folder unless `store` says otherwise. `on_read`
    is called with each class that is read.

    Raises:
        UserError: settings, data, a run folder or a cluster that cannot work, before anything is started.
    """

    def __init__(
        self,
        config: RunConfig,
        cpus: int = 0,
        gpus: int = -1,
        app: App[P] = MUTUAL,  # type: ignore[assignment]
        on_read: OnRead = lambda done, total: None,
        ray: str = "",
    ):
        if not config.local_steps:
            raise UserError(NO_STEPS)
        if config.publishing.mode == "dp-sgd":
            accountant()  # each client needs it, and Ray is not started to find that out
        if not config.federation.out:  # a folder that is named by the time is named once
            config = config.but(out=str(run_folder(config)))
        self.app = app
        self.config, self.classes = config, num_classes(config.data)
        self.cluster = Cluster(ray) if ray else None
        self.at_once = clients_at_once(self.classes, cpus)
        if self.cluster:
            self.at_once = min(self.classes, self.cluster.cores, cpus or self.cluster.cores)
        self.gpus = _gpus(config, gpus, self.cluster)
        checked = check(config.data, config.seed, on_read)
        self.counts, self.notices = checked.source.counts, checked.notices
        if config.federation.resume:
            refuse_changed(run_folder(config), checked.fingerprints, checked.source.names)
        for_clients = settings_for_clients(config, bool(self.gpus))
        if self.cluster:
            self.cluster.check(Path(for_clients["store"]), for_clients.get("data-path", ""))
        elif config.federation.store:
            _check_store(Path(for_clients["store"]))
        self.prepared = app.prepare(config, for_clients)
        if not config.federation.resume:
            write_fingerprints(self.journal.folder, checked.fingerprints)

    @property
    def journal(self) -> Journal:
        """The run folder."""
        return self.prepared.journal

    def run(self, on_round: OnRound = lambda rows: None, on_phase: OnPhase = lambda *phase: None) -> Path:
        """Train the rounds that are left; the run folder. `on_phase` is told when Ray starts, and when it trains.

        Raises:
            RunFailed: no client gets through, or Flower or Ray fails.
        """
        began, journal = time.monotonic(), self.journal
        if journal.round < self.config.rounds:
            self._start_flower(on_round, on_phase)
        history = read_history(journal.folder)
        journal.write_run(
            status="done",
            training_counts=self.counts,
            clients_at_once=self.at_once,
            wall_seconds=(journal.read_run().get("wall_seconds") or 0.0) + time.monotonic() - began,
            overhead=overhead(history, self.at_once),
        )
        return journal.folder

    def _start_flower(self, on_round: OnRound, on_phase: OnPhase) -> None:
        server, over = ServerApp(), threading.Event()
        on_phase("starting Ray")

        @server.main()
        def main(grid: Grid, context: Context) -> None:
            on_phase("training", self.config.rounds, "rounds", self.journal.round)
            self.app.serve(_Ending(grid, over), self.prepared, on_round)

        # A GPU takes whole clients: as many as make `at_once` of them over all GPUs.
        share = 1 / math.ceil(self.at_once / self.gpus) if self.gpus else 0
        # Ray prints what it has to say of a killed process, and standard output is for a command's answer.
        ray = self.cluster.joined() if self.cluster else own_ray(self.at_once, self.gpus)
        with redirect_stdout(sys.stderr), _quiet_flower(), ray as shelf:
            lend_records()
            try:
                with pool_of_clients(partial(ClientProcesses, self.at_once, shelf)), indexed_messages():
                    run_simulation(
                        server,
                        self.app.client,
                        num_supernodes=self.classes,
                        backend_config={
                            "client_resources": {"num_cpus": CLIENT_CPUS, "num_gpus": share, **RAY_OPTIONS}
                        },
                    )
            except (KeyboardInterrupt, SystemExit):  # which the thread of the server does not see
                self.journal.write_run(status="stopped")
                raise
            except RuntimeError as error:
                if error.__cause__ is None or isinstance(error, RunFailed):
                    raise
                end_kept_ray()  # it may be Ray that has failed, and the next simulation starts with another
                raise RunFailed(f"Flower's simulation failed: {innermost(error)}") from error
            finally:
                over.set()


class _Ending(GridOver):
    """A grid that ends the server's thread once the simulation is `over`.

    Where Flower fails, it leaves that thread to greet clients, and to wait for their replies, for minutes.
    """

    def __init__(self, grid: Grid, over: threading.Event):
        super().__init__(grid)
        self.over = over

    def get_node_ids(self) -> Iterable[int]:
        self._go_on()
        return super().get_node_ids()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """All replies in time, as Flower's own grid waits for them."""
        end = math.inf if timeout is None else time.monotonic() + timeout
        waiting, replies = set(self.push_messages(messages)), list[Message]()
        while waiting and time.monotonic() < end:
            self._go_on()
            fresh = list(self.pull_messages(waiting))
            replies += fresh
            waiting -= {reply.metadata.reply_to_message_id for reply in fresh}
            if waiting:
                time.sleep(POLL)
        return replies

    def _go_on(self) -> None:
        if self.over.is_set():
            raise SystemExit  # which ends a thread without a word


def _check_store(store: Path) -> None:
    """Raises `UserError` where clients could not keep their states, of which they would tell in the first round."""
    try:
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=store):
            pass
    except OSError as error:
        raise UserError(f"store = {store} cannot be written to: {error.strerror}: name another folder") from None


def clients_at_once(classes: int, cpus: int = 0) -> int:
    """How many of so many clients train at once; `cpus` 0: one for each core that this process may use."""
    return min(classes, cpus or len(os.sched_getaffinity(0)))


def settings_for_clients(config: RunConfig, has_gpus: bool) -> dict[str, str]:
    """Settings of a simulation's clients: where they are, and on what they run.

    Their processes do not work in the user's folder, so that every path they are sent is absolute.
    """
    whole = config.with_whole_paths()
    changes = {"store": whole.federation.store or str(run_folder(config) / "clients")}
    if whole.data.path:
        changes["data-path"] = whole.data.path
    return changes if has_gpus else {**changes, "device": "cpu"}


@contextmanager
def _quiet_flower() -> Iterator[None]:
    """What matters of Flower's log is in the history; its traceback for every failing client is not wanted."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _gpus(config: RunConfig, wanted: int, cluster: Cluster | None) -> int:
    if cluster:
        there = cluster.gpus if config.compute.device != "cpu" else 0
        if config.compute.device == "cuda" and not there:
            raise UserError("device = cuda, and no node of the cluster has a GPU: use device = auto or cpu")
    else:
        there = torch.cuda.device_count() if pick_device(config.compute).type == "cuda" else 0
    if wanted > there:
        raise UserError(f"--gpus {wanted}, and there are {there} to use {'on the cluster' if cluster else 'here'}")
    if wanted == 0 and config.compute.device == "cuda":
        raise UserError("--gpus 0 leaves device = cuda nothing to run on: use device = auto or cpu")
    return there if wanted < 0 else wanted


def overhead(history: Sequence[Mapping[str, Any]], at_once: int) -> float | None:
    """Wall time of all rounds over that of the clients' gradient steps alone, `at_once` of them at a time; 1 is ideal.

    What is above 1 is Flower, Ray, checks, checkpoints, the clients' loading and saving, and waiting.
    """
    compute = sum(line["seconds"] or 0.0 for line in history)
    wall = sum({line["round"]: line["round_seconds"] for line in history}.values())
    return wall * at_once / compute if compute else None
