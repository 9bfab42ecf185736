"""The terminal: what is going on and how long it will take, and a console that prints names as they are."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.live import Live
from rich.text import Text

from fedmutual.course import roughly, seconds_left

BAR, NARROW_BAR, WIDE = 20, 6, 110
"""Characters of a bar on a wide terminal and on another, and of a line that is wide: what is said must find room."""

FIRST = 2.0
"""Seconds after which a phase is worth a line, where there is no terminal."""


class Phases:
    """What is going on, one phase after the other, on stderr: a bar on a terminal, else a line now and then.

    then: what comes after these phases, as a line tells it. A notebook and a pipe are no terminals, though they may set
    FORCE_COLOR; there every line is whole and stays.
    """

    def __init__(self, then: str = ""):
        self.then = then
        self.shown: _Bar | _Lines | None = None

    def begin(self, what: str, total: int = 0, unit: str = "", done: int = 0, timed: bool = True) -> None:
        """End what was going on, and go on with `what`: `done` of `total` of its units are done.

        `timed`: the units are alike, so that those that are done tell how long the others will take.
        """
        self.end()
        phase = Phase(what, total, unit, done, self.then, timed)
        self.shown = _Bar(phase) if _is_terminal() else _Lines(phase)

    def advance(self, done: int, note: str = "") -> None:
        """So many units are done by now; `note`: what else there is to say."""
        if self.shown:
            self.shown.phase.advance(done, note)

    def step(self, y: int) -> None:
        """One unit more is done, that of class y."""
        if self.shown:
            self.shown.phase.advance(self.shown.phase.done + 1)

    def read(self, done: int, total: int) -> None:
        """So many classes are read, of a total that only shows when the data are opened."""
        if self.shown:
            self.shown.phase.total, self.shown.phase.unit = total, "classes"
            self.shown.phase.advance(done)

    def end(self, failed: bool = False) -> None:
        """Leave the last state of what was going on, or nothing where it `failed`: an error is one line."""
        shown, self.shown = self.shown, None
        if shown:
            shown.stop(failed)


@contextmanager
def phases(then: str = "") -> Iterator[Phases]:
    """`Phases` that end with the block."""
    shown = Phases(then)
    try:
        yield shown
    except BaseException:
        shown.end(failed=True)
        raise
    shown.end()


@contextmanager
def progress(what: str, total: int = 0, unit: str = "") -> Iterator[Callable[..., None]]:
    """One phase; yields its `advance`, a function that takes how many of `total` are done."""
    with phases() as shown:
        shown.begin(what, total, unit)
        yield shown.advance


@contextmanager
def moment(what: str) -> Iterator[None]:
    """What takes a moment, such as to import libraries: it is shown on a terminal, and no line of a log."""
    with phases() as shown:
        if _is_terminal():
            shown.begin(what)
        yield


class Phase:
    """The state of one phase, and its words. The time left is estimated by the median of the last units' times."""

    def __init__(self, what: str, total: int, unit: str, done: int = 0, then: str = "", timed: bool = True):
        self.what, self.total, self.unit, self.done, self.then, self.timed = what, total, unit, done, then, timed
        self.note = ""
        self.began = self.last = time.monotonic()
        self.durations: list[float] = []

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def advance(self, done: int, note: str = "") -> None:
        now, units = time.monotonic(), done - self.done
        if units > 0:
            self.durations += [(now - self.last) / units] * units
            self.last = now
        self.done, self.note = done, note

    @property
    def counted(self) -> str:
        """3/40 rounds."""
        return f"{self.done}/{self.total} {self.unit}".strip() if self.total else ""

    @property
    def left(self) -> str:
        """about 3 min left: what is left, without the part of the present unit that is over."""
        units = self.total - self.done
        seconds = seconds_left(self.durations, units)
        if not seconds or not self.timed:
            return ""
        present = min(time.monotonic() - self.last, seconds / units)
        return f"about {roughly(seconds - present)} left" if seconds > present else "almost done"

    def words(self) -> str:
        """3/40 rounds, about 6 min left, NOTE, 30 s so far; then THEN."""
        said = ", ".join(filter(None, (self.counted, self.left, self.note, f"{roughly(self.elapsed)} so far")))
        return f"{said}; then {self.then}" if self.then else said

    def last_words(self) -> str:
        """40/40 rounds in 7 min, NOTE."""
        return ", ".join(filter(None, (f"{self.counted or 'done'} in {roughly(self.elapsed)}", self.note)))


class _Bar:
    """A phase on a terminal: one line that is rewritten in place, never folded, so that notebooks can show it too."""

    def __init__(self, phase: Phase):
        self.phase, self.over = phase, False
        self.console = Console(stderr=True)
        self.live = Live(get_renderable=self._line, console=self.console, refresh_per_second=4)
        self.live.start()

    def _line(self) -> Text:
        phase = self.phase
        said = phase.last_words() if self.over else phase.words()
        long = BAR if self.console.width >= WIDE else NARROW_BAR
        filled = long * min(phase.done, phase.total) // phase.total if phase.total else 0
        bar = [("━" * filled, "green"), ("━" * (long - filled) + " ", "bright_black")] if phase.total else []
        return Text.assemble(f"{phase.what} ", *bar, said, no_wrap=True, overflow="ellipsis")

    def stop(self, failed: bool) -> None:
        self.over = True
        self.live.transient = failed
        self.live.stop()


class _Lines:
    """A phase as lines, by the clock: more of them in the beginning, and fewer the longer it lasts."""

    def __init__(self, phase: Phase):
        self.phase, self.told = phase, False
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._tell, daemon=True)
        self.thread.start()

    def _tell(self) -> None:
        wait = FIRST
        while not self.over.wait(wait):
            self.told = True
            _say(f"{self.phase.what}: {self.phase.words()}")
            wait = pause(self.phase.elapsed)

    def stop(self, failed: bool) -> None:
        self.over.set()
        self.thread.join()
        if self.told and not failed:
            _say(f"{self.phase.what}: {self.phase.last_words()}")


def pause(elapsed: float) -> float:
    """Seconds until the next line of a phase that has lasted so long: a tenth of them, from 10 s to 5 min."""
    return min(max(10.0, elapsed / 10), 300.0)


def _say(line: str) -> None:
    with suppress(OSError, ValueError):  # nobody reads stderr any more, which is no reason to end the work
        print(line, file=sys.stderr, flush=True)


def _is_terminal() -> bool:
    return sys.stderr.isatty() and Console(stderr=True).is_interactive


def console(least: int = 0) -> Console:
    """A terminal that prints names as they are: brackets in the name of a class or a folder are no markup.

    It is at least `least` characters wide: what is printed has columns of numbers, which must not be folded.
    """
    width = Console().width
    return Console(markup=False, highlight=False, width=max(width, least) if least > width else None)
