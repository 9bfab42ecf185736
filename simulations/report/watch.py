"""The page of a run that trains, drawn again whenever its history has grown; nothing but the run folder is read."""

import math
import time
from collections.abc import Callable
from pathlib import Path

from fedmutual.errors import UserError
from fedmutual.run_folder import HISTORY, holds_run, is_held, read_facts
from simulations.report.page import render, save
from simulations.runs.arms import arms_of
from simulations.runs.folder import Run, find_runs, read_run

ENDED = ("done", "stopped")
"""Status of a run that nobody trains any more, and that says so."""

SHARE = 0.1
"""Of the time, that is spent on drawing at most: a page of many rounds is drawn less often."""


def refuse_other(folder: Path) -> None:
    """Raises `UserError` where `folder` is not one run's."""
    if holds_run(folder):
        return
    inside = [str(run) for run in find_runs([folder]) if run != folder]
    if inside:
        raise UserError(f"{folder} holds {len(inside)} runs: watch one of them, such as {inside[0]}")
    raise UserError(f"{folder} holds no run: name the folder that a run writes, once it has begun")


def watch(folder: Path, out: Path, every: float, on_page: Callable[[Run], None]) -> Run:
    """Write the page of the run in `folder` to `out` until nobody trains it any more; the run as it is then.

    every: seconds between two looks, at the least. `on_page` is called with what each page shows. The last page does
    not load itself again, also where this is interrupted.

    Raises:
        UserError: as `refuse_other`, a folder that cannot be read, or a page that cannot be written.
    """
    refuse_other(folder)
    seen = -1
    try:
        while True:
            over = not is_held(folder) or read_facts(folder).status in ENDED
            began, size = time.monotonic(), _size(folder / HISTORY)
            if over or size != seen:
                on_page(run := _draw(folder, out, 0 if over else math.ceil(every)))
                seen = size
            if over:
                return run
            time.sleep(max(every, (time.monotonic() - began) / SHARE))
    except KeyboardInterrupt:
        _draw(folder, out, 0)
        raise


def _draw(folder: Path, out: Path, reload: int) -> Run:
    run = read_run(folder)
    save(render(arms_of([run]), reload), out)
    return run


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
