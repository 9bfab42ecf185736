"""A Ray of this simulation's own: no other Ray on the machine, and nothing in the user's folder, has a part in it.

Flower would start Ray as the surroundings have it: it would join a Ray that somebody else started here, or one that
RAY_ADDRESS names; its processes would import a `client.py` that lies where the user stands; and its sockets would lie
under TMPDIR, whose path may be too long for them. Flower uses a Ray that runs already, so that one is started here.
"""

import contextlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import ray

from fedmutual.records import one_line
from server.roster import RunFailed
from simulations.engine.pool import Shelf

SOCKET_PATH = 107 if sys.platform == "linux" else 103
"""Bytes that the path of a socket may have."""

SESSION = len("/fm-12345678/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store.1")
"""Bytes that Ray's longest socket path has beyond the folder for temporary files."""


class _Kept:
    """A Ray that outlives the simulation that started it: what ends it, what it has, and its idle processes."""

    def __init__(self) -> None:
        self.ending, self.has, self.shelf = ExitStack(), (0, 0), Shelf()

    def start(self, cpus: int, gpus: int) -> None:
        """Have a Ray with exactly so many cores and GPUs."""
        if not ray.is_initialized() or self.has != (cpus, gpus):
            self.ending.close()
            self.shelf = self.ending.enter_context(_started(cpus, gpus))
            self.has = (cpus, gpus)


_kept: _Kept | None = None


@contextmanager
def kept_ray() -> Iterator[None]:
    """Simulations of the block share one Ray and its processes, which the first of them starts.

    To start Ray, and to import PyTorch in each process, takes longer than a small arm of a comparison trains.
    """
    global _kept
    if _kept is not None:
        yield
        return
    _kept = _Kept()
    try:
        with _kept.ending:
            yield
    finally:
        _kept = None


def end_kept_ray() -> None:
    """End the Ray that is kept, if any: before this process joins another one, or where it may have failed."""
    if _kept is not None:
        _kept.ending.close()


@contextmanager
def own_ray(cpus: int, gpus: int) -> Iterator[Shelf]:
    """Ray with so many cores and GPUs, until the end of the block, or of the `kept_ray` around it.

    Yields where processes are put that may be taken again.

    Raises:
        RunFailed: Ray does not start; its logs are kept then.
    """
    if _kept is None:
        with _started(cpus, gpus) as shelf:
            yield shelf
    else:
        _kept.start(cpus, gpus)
        yield _kept.shelf


@contextmanager
def _started(cpus: int, gpus: int) -> Iterator[Shelf]:
    folder = new_folder()
    try:
        with _environment(_for_workers()), contextlib.chdir(folder):  # its processes add the folder to their paths
            ray.init(
                address="local",
                num_cpus=cpus,
                num_gpus=gpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                _temp_dir=str(folder),
            )
    except Exception as error:
        ray.shutdown()
        raise RunFailed(
            f"Ray does not start: {innermost(error)}: its logs are in {folder}/session_latest/logs"
        ) from error
    try:
        yield Shelf()
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def new_folder() -> Path:
    """Where Ray keeps its sockets and logs: below RAY_TMPDIR or TMPDIR, or /tmp where these are too long or unusable.

    Raises:
        RunFailed: none of them will do.
    """
    longest = SOCKET_PATH - SESSION
    for place in (os.environ.get("RAY_TMPDIR"), os.environ.get("TMPDIR"), "/tmp", "/var/tmp"):
        if place and len(os.fsencode(os.path.realpath(place))) <= longest:
            with contextlib.suppress(OSError):  # there is no such folder, or nothing can be written to it
                return Path(tempfile.mkdtemp(prefix="fm-", dir=os.path.realpath(place)))
    raise RunFailed(f"Ray has no folder for its sockets: set TMPDIR to one whose path has at most {longest} characters")


def _for_workers() -> dict[str, str | None]:
    """What Ray's processes find in their environment: this process's paths, and one thread for each client.

    Of more threads than cores each waits for the others, busily: on two cores a user's OMP_NUM_THREADS=2 made rounds
    of two clients eleven times as long.
    """
    paths = [os.path.abspath(path) for path in sys.path]
    paths += [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    others = {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": None, "PYTHONSAFEPATH": None}  # Ray starts in a neutral folder
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), **others}


@contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Change the environment for a block; None takes a variable out."""
    before = {name: os.environ.get(name) for name in changes}
    _set(changes)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def innermost(error: BaseException) -> str:
    """The error that all others around it stem from, in one line."""
    while (inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        error = inner
    return one_line(str(error) or type(error).__name__)
