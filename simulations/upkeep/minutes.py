"""`fedmutual bench minutes`: the minutes that were asked of `simulate`, and those that the whole command took."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedmutual.config import RunConfig
from fedmutual.run_folder import CONFIG, MINUTES
from fedmutual.settings import read_settings


def asked_and_taken(name: str, minutes: Sequence[float]) -> list[dict[str, Any]]:
    """A row for each of `minutes`, with `name` a preset or data of one's own; seconds, and those of the parts.

    The command is a process of its own, so that its start counts.

    Raises:
        RuntimeError: the command failed; says what it said.
    """
    return [_row(name, asked) for asked in minutes]


def _row(name: str, asked: float) -> dict[str, Any]:
    with TemporaryDirectory() as place:
        folder = Path(place) / "run"
        command = [sys.executable, "-m", "fedmutual", "simulate", name, "--minutes", f"{asked:g}", "--out", str(folder)]
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - began
        if done.returncode:
            raise RuntimeError(f"simulate {name} --minutes {asked:g} failed: {done.stderr.strip().splitlines()[-1]}")
        record = json.loads((folder / MINUTES).read_text(encoding="utf-8"))
        config = RunConfig.of(read_settings(folder / CONFIG))
    return {
        "name": "minutes",
        "network": config.network.kind,
        "batch": config.optimiser.batch,
        "peers": config.mutual.peers_per_step,
        "data": name,
        "steps": config.rounds * config.local_steps,
        "seconds": seconds,
        "bare_seconds": 60 * asked,
        "ratio": seconds / (60 * asked),
        "foreseen": record["foreseen"],
        "taken": record["seconds"],
    }
