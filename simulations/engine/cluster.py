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
from contextlib import contextmanager
from pathlib import Path

import ray

from fedmutual.records import one_line
from server.roster import RunFailed

SOCKET_PATH = 107 if sys.platform == "linux" else 103
"""Bytes that the path of a socket may have."""

SESSION = len("/fm-12345678/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store.1")
"""Bytes that Ray's longest socket path has beyond the folder for temporary files."""


@contextmanager
def own_ray(cpus: int, gpus: int) -> Iterator[None]:
    """Ray with so many cores and GPUs, until the end of the block. A Ray that this process has started is used as is.

    Raises:
        RunFailed: Ray does not start; its logs are kept then.
    """
    if ray.is_initialized():
        yield
        return
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
        yield
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
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "OMP_NUM_THREADS": "1", "RAY_ADDRESS": None}


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
