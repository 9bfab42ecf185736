"""The deployed federation on one laptop: a SuperLink and three hospitals, each with a key and private images.

Everything that separate machines would do happens here in separate processes on loopback, and ends with them.
"""

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, NoReturn

import numpy as np
from rich.table import Table

from fedmutual.errors import UserError
from fedmutual.run_folder import holds_run, read_history
from simulations.deployment.loopback import Deployment, DeploymentFailed
from simulations.terminal import console, progress

IMAGES = {0: 120, 1: 60, 2: 25}
"""Images in each hospital's folder, by class: a common, an uncommon and a rare disease."""

ROUNDS = 5

SETTINGS = {
    "data": "folder",
    "classes": len(IMAGES),
    "shape": "1,8,8",
    "imbalance": "none",
    "test": 0,
    "held-out": 10,
    "rounds": ROUNDS,
    "local-steps": 300,
    "width": 64,
    "timeout": 120.0,
    "samples": 0,
}

TIME_LIMIT = 280.0


def demo(out: Path) -> None:
    """Deploy, train, show, stop.

    Raises:
        UserError: `out` holds a run.
        DeploymentFailed: a process did not do its part.
    """
    if holds_run(out):
        raise UserError(f"{out} already holds a run: remove it, or name another folder")
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    with TemporaryDirectory(prefix="fedmutual-demo-") as folder, Deployment(Path(folder), len(IMAGES)) as federation:
        say("certificate authority, server certificate and a key for each hospital are written")
        federation.start_superlink()
        say(f"SuperLink answers on 127.0.0.1:{federation.port} (TLS, registered keys only)")
        for y, count in IMAGES.items():
            hospital = Path(folder) / f"hospital-{y}"
            write_images(hospital / "images", y, count)
            federation.register(federation.keys / f"client-{y}.pub")
            private = {"data_path": str(hospital / "images"), "store": str(hospital / "store")}
            federation.start_supernode(f"client-{y}", federation.keys / f"client-{y}", partition_id=y, **private)
        federation.wait_for_supernodes(len(IMAGES))
        say(f"{len(IMAGES)} SuperNodes are online, each beside its own images")
        train(federation, out)
    say("everything is stopped")
    terminal = console()
    terminal.print(rounds_table(read_history(out)))
    terminal.print(f"run folder: {out}")


def train(federation: Deployment, out: Path) -> None:
    """Submit the run and wait for its end, with a bar.

    Raises:
        DeploymentFailed: it did not complete, or not in time.
    """
    run = federation.run({**SETTINGS, "out": str(out.resolve())})
    with progress("training", ROUNDS, "rounds") as advance:

        def ended() -> bool:
            advance(max((line["round"] for line in read_history(out)), default=0))
            return federation.status(run).startswith("finished")

        federation.wait(ended, "the run finishes", TIME_LIMIT, every=3.0)
    if (status := federation.status(run)) != "finished:completed":
        raise DeploymentFailed(f"the run ended as {status}: {federation.why(run)}")


def write_images(folder: Path, y: int, count: int) -> None:
    """One hospital's private folder: PNG images of one class."""
    from PIL import Image
    from sklearn.datasets import load_digits

    folder.mkdir(parents=True)
    digits = load_digits()
    for number, image in enumerate(digits.images[digits.target == y][:count]):
        Image.fromarray((image / 16 * 255).astype(np.uint8)).save(folder / f"{number:04d}.png")


def rounds_table(history: Sequence[Mapping[str, Any]]) -> Table:
    """Held-out losses, a row a class and a column a round, the class that is worst in the end first."""
    rounds = sorted({line["round"] for line in history})
    cells = {(line["class"], line["round"]): line for line in history}
    last = {y: cells[y, rounds[-1]]["held_out"] for y in {line["class"] for line in history}}
    table = Table("class", "images", box=None, padding=(0, 2, 0, 0), title="held-out loss, worst class first")
    for round_ in rounds:
        table.add_column(f"round {round_}", justify="right")
    for y in sorted(last, key=lambda y: -np.inf if last[y] is None else -last[y]):
        shown = [cells[y, round_]["held_out"] for round_ in rounds]
        words = [
            cells[y, round_]["status"] if loss is None else f"{loss:.4f}"
            for round_, loss in zip(rounds, shown, strict=True)
        ]
        table.add_row(str(y), str(IMAGES[y]), *words)
    return table


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Leave the demo by its clean-up, which a second Ctrl-C must not cut short."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def say(text: str) -> None:
    """A step that is done."""
    print(text, file=sys.stderr, flush=True)
