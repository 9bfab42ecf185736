"""The terminal: a progress bar, and a console that prints names as they are."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A bar on stderr if that is a terminal; yields a function that takes how many of `total` are done."""
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit)]
    columns += [TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        try:
            yield lambda done: bar.update(task, completed=done)
        except BaseException:
            bar.live.transient = True  # an error is one line, without half a bar before it
            raise


def console(least: int = 0) -> Console:
    """A terminal that prints names as they are: brackets in the name of a class or a folder are no markup.

    It is at least `least` characters wide: what is printed has columns of numbers, which must not be folded.
    """
    width = Console().width
    return Console(markup=False, highlight=False, width=max(width, least) if least > width else None)
