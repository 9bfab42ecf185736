"""The command that follows a run while it trains."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulations.cli.options import RunFolder
from simulations.terminal import moment, phases

if TYPE_CHECKING:
    from simulations.runs.folder import Run


def watch(
    run: RunFolder,
    every: Annotated[float, typer.Option(min=0.5, help="Seconds between two looks at the run, at the least.")] = 5.0,
    out: Annotated[Path | None, typer.Option(help="The page; by default report.html in RUN.")] = None,
) -> None:
    """Write a run's report again and again while it trains, as a page that loads itself anew in the browser.

    It ends with the training, and Ctrl-C ends it before; the run does not notice either.
    """
    page = out or run / "report.html"
    try:
        with moment("starting up"):
            from simulations.report.watch import ENDED, refuse_other
            from simulations.report.watch import watch as follow
        refuse_other(run)
        print(f"page: {page}", flush=True)
        with phases() as shown:

            def on_page(seen: "Run") -> None:
                if shown.shown is None:
                    shown.begin("training", seen.course.rounds, "rounds", seen.course.done, timed=False)
                shown.advance(seen.course.done, seen.course.in_words(seen.classes))

            last = follow(run, page, every, on_page)
    except KeyboardInterrupt:
        print(f"{run} is no longer watched")
        return
    so_far = f"after {last.course.done} of {last.course.rounds} rounds"
    if last.facts.status not in ENDED:
        raise RuntimeError(
            f"no process trains {run} any more: it ended {so_far} without a word; if it can, "
            f"fedmutual simulate --resume {run} goes on"
        )
    print(f"{run} is {last.facts.status} {so_far}")
