"""TensorBoard event files of finished or running runs: the curves, the metrics and a grid of each class's samples."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedmutual.errors import UserError
from fedmutual.run_folder import read_samples
from simulations.runs.folder import CURVES, Run, read_runs
from simulations.runs.sampling import sheet


def write_events(runs: Sequence[Path]) -> list[Path]:
    """Write RUN/tensorboard for each run in `runs`, in place of what an earlier call wrote; the folders.

    Tags are <quantity>/<class>. A step is a gradient step of a client: the round times `local-steps`. Metrics and
    samples stand at the last step. `tensorboard --logdir DIR` shows every run below DIR.

    Raises:
        UserError: the package tensorboard is missing; else as `read_runs`.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "event files need the package tensorboard: install it with pip install 'fedmutual[tensorboard]'"
        ) from None
    folders = []
    for run in read_runs(runs):
        folder = run.folder / "tensorboard"
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        with SummaryWriter(str(folder)) as writer:
            _write(run, writer)
        folders.append(folder)
    return folders


def _write(run: Run, writer: Any) -> None:
    steps = int(run.settings.get("local-steps", 1))
    last = run.rounds_done * steps
    for quantity in CURVES:
        for y, points in run.curve(quantity).items():
            for round_, value in points:
                writer.add_scalar(f"{quantity}/{run.classes[y]}", value, round_ * steps)
    for row in run.rows:
        name = run.classes[row.class_] if isinstance(row.class_, int) else row.class_
        if not math.isnan(row.value):
            writer.add_scalar(f"{row.metric}/{name}", row.value, last)
    store = read_samples(run.folder)
    for kind in ("generated", "real"):
        for y, name in enumerate(run.classes):
            if f"{kind}_{y}" in store and store[f"{kind}_{y}"].ndim == 4:
                grid = sheet(store[f"{kind}_{y}"], columns=8, most=64)
                writer.add_image(f"{kind}/{name}", grid, last, dataformats="HWC")
