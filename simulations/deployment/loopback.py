"""A deployed federation on one machine: SuperLink and SuperNodes as processes, with TLS and keys.

The demo and the tests start it; `with Deployment(folder) as federation:` leaves no process behind, whatever
happens inside. Its processes are known by an environment variable that they hand on to their children.
"""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedmutual.settings import write_settings
from server.app import STOPS
from server.flower import ENVIRONMENT
from simulations.deployment.credentials import write_credentials

APP = Path(__file__).parents[2]
"""The Flower app: the folder with this project's pyproject.toml."""

MARK = "FEDMUTUAL_DEPLOYMENT"
CONNECTION = "loopback"
GRACE = 10.0
"""Seconds that processes get to end by themselves before they are killed."""


class DeploymentFailed(RuntimeError):
    """A process of the federation did not do its part; says which, and where its log is."""


class Deployment:
    """SuperLink and SuperNodes under `root`: credentials, a log and a Flower home of each, the SuperLink's database."""

    def __init__(self, root: Path, clients: int):
        self.root, self.clients, self.port = root.resolve(), clients, free_port()
        self.keys = self.root / "credentials"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        write_credentials(self.keys, clients, [])
        home = self.root / "flower" / "user"
        home.mkdir(parents=True)
        address = {"address": f"127.0.0.1:{self.port}", "root-certificates": str(self.keys / "ca.crt")}
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n{write_settings(address)}',
            encoding="utf-8",
        )

    def __enter__(self) -> "Deployment":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start_superlink(self) -> None:
        """Start the SuperLink, on its database if it has one already, and wait until it answers.

        Raises:
            DeploymentFailed: it ends, or does not answer in time.
        """
        certificates = ["--ssl-ca-certfile", "ca.crt", "--ssl-certfile", "server.crt", "--ssl-keyfile", "server.key"]
        certificates[1::2] = [str(self.keys / name) for name in certificates[1::2]]
        options = ["--enable-supernode-auth", "--disable-runtime-dependency-installation"]
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--database", str(self.root / "superlink.db")]
        self._start("superlink", ["flower-superlink", *certificates, *options, *where])
        self.wait(self._answers, "the SuperLink answers")

    def _answers(self) -> bool:
        context = ssl.create_default_context(cafile=str(self.keys / "ca.crt"))
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as plain:
                context.wrap_socket(plain, server_hostname="localhost").close()
        except OSError:
            return False
        return True

    def start_supernode(self, name: str, key: Path, **node_config: Any) -> None:
        """Start a SuperNode that proves itself with the private `key`; `_` in a node setting's name stands for `-`."""
        settings = " ".join(f"{key.replace('_', '-')}={json.dumps(value)}" for key, value in node_config.items())
        superlink = ["--superlink", f"127.0.0.1:{self.port}", "--root-certificates", str(self.keys / "ca.crt")]
        own = ["--host", "127.0.0.1", "--port", str(free_port()), "--auth-supernode-private-key", str(key)]
        self._start(name, ["flower-supernode", *superlink, *own, "--node-config", settings])

    def wait_for_supernodes(self, count: int) -> None:
        """Wait until `count` SuperNodes are online.

        Raises:
            DeploymentFailed: a process ends, or time runs out.
        """

        def online() -> bool:
            nodes = self.flwr("supernode", "list")["nodes"]
            return sum(node["status"] == "online" for node in nodes) >= count

        self.wait(online, f"{count} SuperNodes are online", every=1.0)

    def register(self, public_key: Path) -> None:
        """Let the holder of a key join: what an administrator does for each new client."""
        self.flwr("supernode", "register", str(public_key))

    def run(self, settings: dict[str, Any]) -> str:
        """Submit the app with these settings; the run's id."""
        path = self.root / "run.toml"
        path.write_text(write_settings(settings), encoding="utf-8")
        return str(self.flwr("run", str(APP), options=["-c", str(path)])["run-id"])

    def status(self, run: str) -> str:
        """`running`, `finished:completed`, `finished:failed` and the like: the only word on how a run ended."""
        (listed,) = self.flwr("list", options=["--run-id", run])["runs"]
        return str(listed["status"])

    def log_of(self, name: str) -> str:
        """What the process of that name has written."""
        return (self.root / f"{name}.log").read_text(errors="replace")

    def why(self, run: str) -> str:
        """What stopped a run, in the words of its server."""
        said = (line.partition(STOPS)[2] for line in self.run_log(run).splitlines() if STOPS in line)
        return next(said, "its log names no reason")

    def run_log(self, run: str) -> str:
        """What the server of a run has logged."""
        return self._flwr("log", run, CONNECTION, "--show").stdout

    def flwr(self, *command: str, options: Sequence[str] = ()) -> dict[str, Any]:
        """The answer of a `flwr` command on this SuperLink.

        Raises:
            DeploymentFailed: it fails.
        """
        done = self._flwr(*command, CONNECTION, *options, "--format", "json")
        try:
            answer = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            answer = {}
        if done.returncode or not answer.get("success"):
            said = " ".join((done.stderr or done.stdout).split())
            raise DeploymentFailed(f"flwr {' '.join(command)} failed: {said[-300:]}")
        return answer

    def _flwr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [executable("flwr"), *arguments]
        return subprocess.run(command, env=self._environment("user"), capture_output=True, text=True)

    def wait(self, holds: Callable[[], bool], what: str, seconds: float = 120.0, every: float = 0.3) -> None:
        """Poll until `holds()`.

        Raises:
            DeploymentFailed: a process that was started has ended by itself, or `seconds` are over.
        """
        deadline = time.monotonic() + seconds
        while not holds():
            for name, process in self.processes.items():
                if process.poll() is not None:
                    said = self.log_of(name).strip().splitlines() or ["nothing"]
                    raise DeploymentFailed(f"{name} ended with code {process.returncode}: {said[-1]}")
            if time.monotonic() > deadline:
                raise DeploymentFailed(f"this has not happened within {seconds:.0f} s: {what}")
            time.sleep(every)

    def stop(self) -> None:
        """Stop everything: SuperNodes first, each with grace, then whatever they have left."""
        names = sorted(self.processes, key=lambda name: name == "superlink")
        for name in names:
            self.processes[name].terminate()
        deadline = time.monotonic() + GRACE
        for name in names:
            try:
                self.processes[name].wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.processes[name].kill()
                self.processes[name].wait()
        while left := self.living():  # children watch their parents, and end by themselves if not in a call
            if time.monotonic() > deadline:
                for pid in left:
                    kill(pid)
            time.sleep(0.1)

    def living(self, program: str = "") -> list[int]:
        """This federation's processes whose command line contains `program`, children's children included."""
        return living(self.root, program)

    def _start(self, name: str, command: list[str]) -> None:
        with (self.root / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [executable(command[0]), *command[1:]],
                env=self._environment(name),
                cwd=self.root,  # neutral: a folder with packages of the app's names would hide those of its bundle
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C in the terminal reaches only us, and we stop the others in order
            )

    def _environment(self, name: str) -> dict[str, str]:
        """Of a process with a Flower home of its own, which reports to nobody and installs nothing."""
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        own = {"FLWR_HOME": str(self.root / "flower" / name), MARK: str(self.root), "PATH": programs}
        # Clients that train at once share the cores: threads that wait for one another would cost more than they do.
        threads = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // self.clients))}
        return {**os.environ, **ENVIRONMENT, **own, **threads}


def living(folder: Path, program: str = "") -> list[int]:
    """Processes of all federations in `folder` whose command line contains `program`."""
    mark = f"{MARK}={folder}".encode()
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            ours = any(variable == mark or variable.startswith(mark + b"/") for variable in environment)
            if ours and program.encode() in (entry / "cmdline").read_bytes():
                pids.append(int(entry.name))
        except OSError:  # it has just ended, or belongs to somebody else
            continue
    return pids


def executable(program: str) -> str:
    """A program of the environment that this Python runs in."""
    return str(Path(sys.executable).parent / program)


def kill(pid: int) -> None:
    """End a process at once, as a power cut would; one that has ended already is no error."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def free_port() -> int:
    """A port on loopback that no program listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
