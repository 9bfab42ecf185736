"""Ray nodes as processes of this machine, started as a person starts them: `ray start --block`."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]

RAY = str(Path(sys.executable).parent / "ray")

SOON = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "3",
}
"""How soon a node that does not answer any more counts as dead."""


class Nodes:
    """A head with one core, and more nodes of one core each that `add` starts; all end with `close`."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fm-", dir="/tmp"))
        self.processes: list[subprocess.Popen] = []
        port, client_port = (str(free_port()) for _ in range(2))
        places = ("--temp-dir", str(self.folder), "--ray-client-server-port", client_port)
        said = self._start("--head", "--port", port, *places, "--include-dashboard", "false")
        self.address = f"{said.partition('Local node IP: ')[2].split()[0]}:{port}"

    def add(self) -> None:
        self._start("--address", self.address)

    def _start(self, *options: str) -> str:
        """Start a node; what it has said once it runs."""
        log = self.folder / f"node-{len(self.processes)}.log"
        sizes = ("--num-cpus", "1", "--num-gpus", "0", "--object-store-memory", "100000000")
        ports = ("--min-worker-port", "0", "--max-worker-port", "0")
        environment = {**os.environ, **SOON, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
        environment |= {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
        command = [RAY, "start", "--block", "--log-style", "record", *options, *sizes, *ports]
        with log.open("w") as file:
            process = subprocess.Popen(
                command, env=environment, stdout=file, stderr=file, cwd=self.folder, start_new_session=True
            )
        self.processes.append(process)
        deadline = time.monotonic() + 180
        while "--block" not in (said := log.read_text()):
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.2)
        return said

    def close(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
            process.wait(60)
        shutil.rmtree(self.folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])
