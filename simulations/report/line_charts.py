"""Small line charts over rounds, one for each class and quantity, as inline SVG in the page's colours.

These alone are written by hand: a page holds up to some hundred of them, and matplotlib takes 25 ms and 8 kB for
one where this takes 0.4 ms and 1.2 kB. All other figures are drawn by matplotlib, in `figures`. Lines differ in
colour and in dashes: style k is the CSS class `s{k}`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (6, 2.5),
    (2, 2),
    (8, 2, 2, 2),
    (10, 3),
    (1, 3),
    (4, 4),
    (6, 2, 2, 2, 2, 2),
)
"""Lengths of dashes and gaps of each line style; more lines than styles repeat them."""

STYLES = len(DASHES)

WIDTH, HEIGHT = 168, 118
LEFT, RIGHT, TOP, BOTTOM = 32, 6, 8, 18


class Series(NamedTuple):
    """One line: its style and its points (x, y), ordered by x and finite."""

    style: int
    points: list[tuple[float, float]]


class Axis(NamedTuple):
    """A range of values laid over a range of pixels, `log` or not."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float, may_log: bool = False) -> "Axis":
        """The axis that holds all `values`; logarithmic if it may be and they span more than a factor 30."""
        values = list(values)
        low, high = min(values), max(values)
        if may_log and low > 0 and high / low > 30:
            return cls(low, high, start, end, log=True)
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        return cls(low if low == 0 else low - margin, high + margin, start, end)

    def place(self, value: float) -> float:
        scale: Callable[[float], float] = math.log if self.log else float
        share = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Two to four round values inside the range."""
        if self.log:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            powers = [10.0**k for k in range(first, last + 1)]
            if len(powers) > 1:
                return powers[:: math.ceil(len(powers) / 4)]
        places = MaxNLocator(3, steps=[1, 2, 5, 10], min_n_ticks=2).tick_values(self.low, self.high)
        return [float(tick) for tick in places if self.low <= tick <= self.high]


def rounds_axis(values: Iterable[float]) -> Axis:
    """The horizontal axis of curves over rounds, without a margin."""
    values = list(values)
    low, high = min(values), max(values)
    return Axis(low, high if high > low else low + 1, LEFT, WIDTH - RIGHT)


def value_axis(values: Iterable[float]) -> Axis:
    """The vertical axis of curves, shared by all panels of a quantity so that classes can be compared."""
    return Axis.over(values, HEIGHT - BOTTOM, TOP, may_log=True)


def line_chart(series: Sequence[Series], across: Axis, up: Axis, label: str) -> Markup:
    """Lines over rounds; `label` says in words what is drawn."""
    parts = []
    for tick in up.ticks():
        y = up.place(tick)
        grid = '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>'
        parts.append(Markup(grid).format(LEFT, WIDTH - RIGHT, y, y))
        parts.append(Markup('<text x="{}" y="{}" class="y">{:g}</text>').format(LEFT - 4, y + 3.5, tick))
    for tick in across.ticks():
        if tick == round(tick):
            text = Markup('<text x="{}" y="{}" class="x">{:g}</text>')
            parts.append(text.format(across.place(tick), HEIGHT - 5, round(tick)))
    base = Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>')
    parts.append(base.format(LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, HEIGHT - BOTTOM))
    parts += [_line(one, across, up) for one in series]
    svg = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>')
    return svg.format(WIDTH, HEIGHT, label, Markup("").join(parts))


def _line(series: Series, across: Axis, up: Axis) -> Markup:
    places = [(across.place(x), up.place(y)) for x, y in series.points]
    style = f"s{series.style % STYLES}"
    if len(places) == 1:
        return Markup('<circle class="dot {}" cx="{}" cy="{}" r="2.5"/>').format(style, *places[0])
    path = " ".join(f"{x},{y}" for x, y in places)
    return Markup('<polyline class="line {}" points="{}"/>').format(style, path)


def swatch(style: int) -> Markup:
    """A short piece of a line, for legends and column heads."""
    line = '<svg class="swatch" viewBox="0 0 26 8" aria-hidden="true"><path class="line s{}" d="M1 4H25"/></svg>'
    return Markup(line).format(style % STYLES)
