"""Figures of the report: inline SVG that takes its colours from the page, and PNG grids of sample images.

The SVG is written by hand because a page that is read in light and in dark, on a phone and in print needs
lines and text in the page's own colours and sizes. Series differ in colour and in dashes: style k is the CSS
class `s{k}`.
"""

import base64
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from simulations.runs.sampling import sheet

STYLES = 8
"""Number of line styles; more series than that repeat them."""

WIDTH, HEIGHT = 168, 118
LEFT, RIGHT, TOP, BOTTOM = 32, 6, 8, 18

Array = NDArray[np.floating]


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
    """The vertical axis of curves, shared by all panels of a measure so that classes can be compared."""
    return Axis.over(values, HEIGHT - BOTTOM, TOP, may_log=True)


def line_chart(series: Sequence[Series], across: Axis, up: Axis, label: str) -> Markup:
    """Lines over rounds; `label` says in words what is drawn."""
    body = Markup("").join(_line(one, across, up) for one in series)
    whole = [round(tick) for tick in across.ticks() if tick == round(tick)]
    return _frame(body, across, up, label, whole)


def _line(series: Series, across: Axis, up: Axis) -> Markup:
    places = [(across.place(x), up.place(y)) for x, y in series.points]
    style = f"s{series.style % STYLES}"
    if len(places) == 1:
        return Markup('<circle class="dot {}" cx="{}" cy="{}" r="2.5"/>').format(style, *places[0])
    path = " ".join(f"{x},{y}" for x, y in places)
    return Markup('<polyline class="line {}" points="{}"/>').format(style, path)


def _frame(body: Markup, across: Axis, up: Axis, label: str, x_ticks: Sequence[float]) -> Markup:
    """Axes, grid lines and tick labels around `body`."""
    parts = []
    for tick in up.ticks():
        y = up.place(tick)
        grid = '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>'
        parts.append(Markup(grid).format(LEFT, WIDTH - RIGHT, y, y))
        parts.append(Markup('<text x="{}" y="{}" class="y">{:g}</text>').format(LEFT - 4, y + 3.5, tick))
    for tick in x_ticks:
        text = Markup('<text x="{}" y="{}" class="x">{:g}</text>')
        parts.append(text.format(across.place(tick), HEIGHT - 5, tick))
    base = Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>')
    parts.append(base.format(LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, HEIGHT - BOTTOM))
    return _svg(Markup("").join(parts) + body, label)


def _svg(body: Markup, label: str) -> Markup:
    svg = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>')
    return svg.format(WIDTH, HEIGHT, label, body)


def swatch(style: int) -> Markup:
    """A short piece of a series' line, for legends and column heads."""
    line = '<svg class="swatch" viewBox="0 0 26 8" aria-hidden="true"><path class="line s{}" d="M1 4H25"/></svg>'
    return Markup(line).format(style % STYLES)


def _span(groups: Iterable[Array]) -> tuple[float, float]:
    """The range of one coordinate, without the outermost half per cent of each group."""
    bounds = np.concatenate([np.quantile(group, [0.005, 0.995]) for group in groups if len(group)])
    return float(bounds.min()), float(bounds.max())


def histogram(real: Array | None, generated: Mapping[int, Array], label: str, bins: int = 30) -> Markup:
    """1-D densities: real samples as a grey area, `generated` ([n], by style) as lines."""
    groups = [group for group in (real, *generated.values()) if group is not None]
    low, high = _span(groups)
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)

    def outline(values: Array) -> list[tuple[float, float]]:
        share = np.histogram(values, edges)[0] / (max(len(values), 1) * (edges[1] - edges[0]))
        steps = [(x, y) for y, ends in zip(share, pairwise(edges), strict=True) for x in ends]
        return [(edges[0], 0.0), *steps, (edges[-1], 0.0)]

    lines = [Series(style, outline(values)) for style, values in generated.items()]
    area = outline(real) if real is not None else []
    across = Axis(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
    heights = [y for _, y in area] + [y for line in lines for _, y in line.points]
    up = Axis.over(heights, HEIGHT - BOTTOM, TOP)
    path = " ".join(f"{across.place(x)},{up.place(y)}" for x, y in area)
    body = Markup('<polygon class="real" points="{}"/>').format(path)
    body += Markup("").join(_line(line, across, up) for line in lines)
    return _frame(body, across, up, label, across.ticks())


def scatters(real: Array | None, generated: Mapping[int, Array], label: str, most: int = 250) -> dict[int, Markup]:
    """First two coordinates of each of `generated` ([n, d], by style) over the real samples in grey.

    One scale for all of them, the same unit both ways.
    """
    groups = [group for group in (real, *generated.values()) if group is not None]
    (left, right), (low, high) = (_span([group[:, k] for group in groups]) for k in (0, 1))
    room_x, room_y = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    unit = 1.05 * max((right - left) / room_x, (high - low) / room_y) or 1.0  # values a pixel
    half_x, half_y = unit * room_x / 2, unit * room_y / 2
    middle_x, middle_y = (left + right) / 2, (low + high) / 2
    across = Axis(middle_x - half_x, middle_x + half_x, LEFT, WIDTH - RIGHT)
    up = Axis(middle_y - half_y, middle_y + half_y, HEIGHT - BOTTOM, TOP)

    def points(values: Array, name: str) -> Markup:
        inside = [(x, y) for x, y in values[:most, :2] if abs(x - middle_x) < half_x and abs(y - middle_y) < half_y]
        path = "".join(f"M{across.place(x)} {up.place(y)}h0" for x, y in inside)
        return Markup('<path class="points {}" d="{}"/>').format(name, path)

    behind = points(real, "real") if real is not None else Markup("")
    return {
        style: _frame(behind + points(values, f"s{style % STYLES}"), across, up, label, across.ticks())
        for style, values in generated.items()
    }


def tiles(images: Array, columns: int = 4, most: int = 20) -> str:
    """As `sheet`, a PNG data address."""
    file = io.BytesIO()
    Image.fromarray(sheet(images, columns, most)).save(file, "PNG", optimize=True)
    return png_address(file.getvalue())


def png_address(content: bytes) -> str:
    """A PNG file's content as a data address, so that the page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def picture(address: str, label: str) -> Markup:
    """An image element; `label` stands for it where it cannot be seen."""
    return Markup('<img src="{}" alt="{}">').format(address, label)


def sample_panels(
    shape: tuple[int, ...], real: Array | None, generated: Mapping[int, Array], name: str
) -> list[tuple[int | None, Markup]]:
    """One class's samples as (style of the series, or None for real ones; figure).

    `real` and the values of `generated`, by style, are `[n, *shape]`. Images become grids, numbers one histogram
    of all (its style is None too), points a scatter plot for each series.
    """
    flat = {style: np.asarray(values).reshape(len(values), -1) for style, values in generated.items()}
    points = None if real is None else np.asarray(real).reshape(len(real), -1)
    if len(shape) == 3:
        series = ([(None, real)] if real is not None else []) + list(generated.items())
        label = {None: f"real samples of class {name}"}
        return [
            (style, picture(tiles(images), label.get(style, f"generated samples of class {name}")))
            for style, images in series
        ]
    if not flat:
        return []
    label = f"class {name}: generated against real samples"
    if math.prod(shape) == 1:
        return [(None, histogram(points, {style: values[:, 0] for style, values in flat.items()}, label))]
    return list(scatters(points, flat, label).items())
