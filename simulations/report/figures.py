"""Figures of the report, drawn by matplotlib in the page's colours: arms compared, and samples that are points.

Arm k has the CSS colour `--s{k}`, group k of arms (by what they do with the data) the colour `--s{GROUPS[k]}`.
Sizes are points: a drawing is shown at about one point a pixel, and its text is sized for that.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.transforms import Affine2D, Transform
from numpy.typing import NDArray

from simulations.drawing.svg import INK, style, svg
from simulations.report.line_charts import DASHES, STYLES, Axis

Array = NDArray[np.floating]

STRONG, RULE, PAPER = "#1a1b1c", "#d1d2d3", "#f1f2f3"
SERIES = [f"#0{k}5{k}a{k}" for k in range(STYLES)]
GROUPS = (0, 1, 5)
COLOURS = {STRONG: "var(--ink)", RULE: "var(--rule)", PAPER: "var(--paper)"}
COLOURS |= {stand_in: f"var(--s{k})" for k, stand_in in enumerate(SERIES)}
"""Stand-in colours, and the page's colours that take their places."""

FONT = 10.5
LETTER, LINE = 6.2, 12.0
"""Room for one letter and one line of text, on the safe side for a sans-serif typeface."""

REM_PER_INCH = 5.4
"""Drawings grow with their place up to about 1.2 pixels a point."""


class Dot(NamedTuple):
    """An arm's value, with half its interval where it has one."""

    label: str
    group: int
    value: float | None
    half: float | None
    text: str


class Bubble(NamedTuple):
    """An arm in the picture of quality, leakage and bytes; `x` and `y` with half their intervals."""

    label: str
    group: int
    x: float
    x_half: float | None
    y: float
    y_half: float | None
    bytes: float
    description: str


class Box(NamedTuple):
    """A rectangle in points from the top left corner: left, top, right, bottom."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "Box") -> bool:
        apart = self.right <= other.left or other.right <= self.left
        return not (apart or self.bottom <= other.top or other.bottom <= self.top)

    def inside(self, other: "Box") -> bool:
        whole = self.left >= other.left and self.right <= other.right
        return whole and self.top >= other.top and self.bottom <= other.bottom


def _canvas(width: float, height: float, plot: Box, across: Axis, up: Axis | None = None) -> tuple[Figure, Axes]:
    """A figure of so many points whose axes fill `plot`, with the ranges and ticks of `across` and `up`."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    place = (plot.left / width, 1 - plot.bottom / height)
    axes = figure.add_axes((*place, (plot.right - plot.left) / width, (plot.bottom - plot.top) / height))
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0, which="both", pad=4)
    axes.set_axisbelow(True)
    if across.log:
        axes.set_xscale("log")
    axes.set_xlim(across.low, across.high)
    axes.set_xticks(across.ticks(), [f"{tick:g}" for tick in across.ticks()])
    axes.set_xticks([], minor=True)
    if up is None:
        axes.set_yticks([])
        return figure, axes
    if up.log:
        axes.set_yscale("log")
    axes.set_ylim(up.low, up.high)
    axes.set_yticks(up.ticks(), [f"{tick:g}" for tick in up.ticks()])
    axes.set_yticks([], minor=True)
    return figure, axes


def _written(figure: Figure, label: str, titles: Mapping[str, str] | None = None) -> Markup:
    """The figure as SVG. Nothing is clipped: everything was placed inside, and a clip path would need an address."""
    for artist in figure.findobj():
        artist.set_clip_on(False)
    return svg(figure, label, COLOURS, titles, REM_PER_INCH)


def _style() -> dict[str, float | str]:
    return {"font_size": FONT, "xtick_labelsize": FONT, "ytick_labelsize": FONT, "axes_linewidth": 1.0}


def _whisker(axis: Axis, value: float, half: float) -> tuple[float, float]:
    """Both ends of an interval, cut where the axis ends."""
    return max(value - half, axis.low), min(value + half, axis.high)


def _shortened(label: str, most: int = 26) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"


# Dots with intervals


def dots_axis(values: Iterable[float]) -> Axis:
    """The scale that panels of dots share; wide enough for every mean, and for intervals as far as it goes."""
    values = list(values)
    low, high = min(values), max(values)
    room = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
    if low > 0 and high / low > 30:
        return Axis(low / 1.3, high * 1.3, 0, 1, log=True)
    return Axis(0.0 if 0 <= low < room else low - room, high + room, 0, 1)


def dots(rows: Sequence[Dot], scale: Axis, marks: Sequence[float], room: int, label: str) -> Markup:
    """A line for each arm: its name, its mean as a dot on its interval, and the numbers.

    `marks` are values with a dashed line across all arms, `room` the letters of the longest number of all panels.
    Lines of different groups stand a little apart.
    """
    top, step, gap = 6.0, 15.0, 5.0
    left = max(len(_shortened(row.label)) for row in rows) * LETTER + 8
    plot = Box(left, top, left + 160, 0)
    width = plot.right + 10 + room * LETTER
    changes = np.cumsum([row.group != before.group for row, before in zip(rows, [rows[0], *rows], strict=False)])
    places = [step * (k + 0.5) + gap * change for k, change in enumerate(changes)]
    bottom = places[-1] + step / 2 + 2
    plot = plot._replace(bottom=top + bottom)
    with style(**_style()):
        figure, axes = _canvas(width, plot.bottom + LINE + 4, plot, scale)
        axes.set_ylim(bottom, 0)
        axes.grid(axis="x", color=RULE, linewidth=0.75)
        axes.set_yticks(places, [_shortened(row.label) for row in rows])
        for value in marks:
            axes.axvline(value, color=INK, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
        right = Affine2D().translate(width - plot.right, 0)
        for row, y in zip(rows, places, strict=True):
            edge = axes.get_yaxis_transform() + right
            axes.text(1, y, row.text, transform=edge, ha="right", va="center_baseline", color=STRONG)
            if row.value is not None:
                _dot(axes, scale, row.value, row.half, y, row.group)
        return _written(figure, label)


def _dot(axes: Axes, scale: Axis, value: float, half: float | None, y: float, group: int) -> None:
    colour = SERIES[GROUPS[group]]
    if half is not None:
        axes.plot(_whisker(scale, value, half), (y, y), color=colour, linewidth=1.25, alpha=0.65, zorder=2)
    filling = PAPER if group == 1 else colour
    axes.plot(value, y, "o", markersize=7, color=colour, markerfacecolor=filling, markeredgewidth=1.5, zorder=3)


# Quality, leakage and bytes


def bubbles(points: Sequence[Bubble], across: str, up: str, label: str, width: float, height: float) -> Markup:
    """Worst-class distance against leakage, a circle an arm with an area by bytes, named beside it.

    Names keep clear of circles and of each other; one that had to move away from its circle is tied to it by a line.
    """
    plot = Box(34, 22, width - 10, height - 34)
    x = _bubble_axis([0.5, *(point.x for point in points)], plot.left, plot.right)
    y = _bubble_axis([point.y for point in points], plot.bottom, plot.top)
    largest = max(point.bytes for point in points) or 1.0
    circles = [(x.place(point.x), y.place(point.y), 3.5 + (14 * math.sqrt(point.bytes / largest))) for point in points]
    with style(**_style()):
        figure, axes = _canvas(width, height, plot, x, y)
        axes.grid(axis="y", color=RULE, linewidth=0.75)
        axes.axvline(0.5, color=INK, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
        figure.text(0, 1 - 12 / height, up, va="baseline")
        figure.text(plot.right / width, 6 / height, across, ha="right", va="baseline")
        for point in points:
            _whiskers(axes, x, y, point)
        order = sorted(range(len(points)), key=lambda k: -circles[k][2])  # small circles lie on large ones
        for k in order:
            _circle(axes, points[k], circles[k][2], gid=f".bubble-{k}")
        names = _name_boxes([point.label for point in points], circles, plot)
        for point, circle, (box, tie) in zip(points, circles, names, strict=True):
            _name(figure, _shortened(point.label), circle[0], box, tie)
        titles = {f".bubble-{k}": f"{point.label}: {point.description}" for k, point in enumerate(points)}
        return _written(figure, label, titles)


def _whiskers(axes: Axes, x: Axis, y: Axis, point: Bubble) -> None:
    colour = SERIES[GROUPS[point.group]]
    if point.x_half is not None:
        axes.plot(_whisker(x, point.x, point.x_half), (point.y,) * 2, color=colour, linewidth=1, alpha=0.45)
    if point.y_half is not None:
        axes.plot((point.x,) * 2, _whisker(y, point.y, point.y_half), color=colour, linewidth=1, alpha=0.45)


def _circle(axes: Axes, point: Bubble, radius: float, gid: str) -> None:
    """Filled for arms whose data stay or are pooled, an empty dashed ring for controls."""
    colour, size = SERIES[GROUPS[point.group]], (2 * radius) ** 2  # points squared
    control = point.group == 2
    filling = "none" if control else (colour, 0.3)
    marks = axes.scatter(point.x, point.y, size, color=filling, edgecolor=colour, linewidth=1.5, zorder=3)
    if control and radius > 6:  # on a smaller ring dashes look like a broken one
        marks.set_linestyle((0, (2, 1.5)))
    marks.set_gid(gid)


def _name(figure: Figure, name: str, circle_x: float, box: Box, tie: tuple[float, float, float, float] | None) -> None:
    points = _points(figure)
    if tie:
        from_x, from_y, to_x, to_y = tie
        line = PathPatch(Path([(from_x, from_y), (to_x, to_y)]), transform=points, edgecolor=INK, linewidth=0.75)
        figure.add_artist(line)
    before = box.right <= circle_x
    x, side = (box.right, "right") if before else (box.left, "left")
    text = figure.text(x, box.bottom - 3, name, transform=points, ha=side, va="baseline", color=STRONG)
    text.set_gid(".name")


def _points(figure: Figure) -> Transform:
    """Coordinates in points from the top left corner."""
    return Affine2D().scale(1 / 72, -1 / 72).translate(0, figure.get_figheight()) + figure.dpi_scale_trans


def _bubble_axis(values: Sequence[float], start: float, end: float) -> Axis:
    low, high = min(values), max(values)
    if low > 0 and high / low > 4:
        return Axis(low / 1.2, high * 1.2, start, end, log=True)
    room = 0.15 * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(low - room, high + room, start, end)


def _name_boxes(
    names: Sequence[str], circles: Sequence[tuple[float, float, float]], plot: Box
) -> list[tuple[Box, tuple[float, float, float, float] | None]]:
    """For each name a free box near its circle, and the line that ties them where they are apart.

    Nearest places first; the arms with the fewest neighbours choose last.
    """
    taken = [Box(x - r, y - r, x + r, y + r) for x, y, r in circles]
    crowd = [sum(math.hypot(x - u, y - v) < 60 for u, v, _ in circles) for x, y, _ in circles]
    chosen: dict[int, tuple[Box, tuple[float, float, float, float] | None]] = {}
    for index in sorted(range(len(names)), key=lambda index: -crowd[index]):
        wide = len(_shortened(names[index])) * LETTER
        x, y, radius = circles[index]
        boxes = sorted(_places(x, y, radius, wide), key=lambda box: _distance(box, x, y))
        free = (box for box in boxes if box.inside(plot) and not any(box.meets(other) for other in taken))
        box = next(free, boxes[0])
        taken.append(Box(box.left - 3, box.top, box.right + 3, box.bottom))
        near = _distance(box, x, y) < radius + 6
        end_x, end_y = min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)
        chosen[index] = (box, None if near else (x, y, end_x, end_y))
    return [chosen[index] for index in range(len(names))]


def _places(x: float, y: float, radius: float, wide: float) -> Iterator[Box]:
    for reach in range(0, 200, 8):
        for angle in range(0, 360, 15):
            out = radius + 3 + reach
            cx, cy = x + out * math.cos(math.radians(angle)), y + out * math.sin(math.radians(angle))
            left = cx if angle < 90 or angle > 270 else cx - wide if 90 < angle < 270 else cx - wide / 2
            yield Box(left, cy - LINE / 2, left + wide, cy + LINE / 2)


def _distance(box: Box, x: float, y: float) -> float:
    return math.hypot(max(box.left - x, 0, x - box.right), max(box.top - y, 0, y - box.bottom))


# Samples that are numbers or points

SMALL, SMALL_PLOT = (168, 118), Box(32, 8, 162, 100)


def _span(groups: Iterable[Array]) -> tuple[float, float]:
    """The range of one coordinate, without the outermost half per cent of each group."""
    bounds = np.concatenate([np.quantile(group, [0.005, 0.995]) for group in groups if len(group)])
    return float(bounds.min()), float(bounds.max())


def histogram(real: Array | None, generated: Mapping[int, Array], label: str, bins: int = 30) -> Markup:
    """1-D densities: real samples as a grey area, `generated` ([n], by style) as lines."""
    low, high = _span([group.reshape(-1) for group in (real, *generated.values()) if group is not None])
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)

    def density(values: Array) -> Array:
        return np.histogram(values, edges)[0] / (max(len(values), 1) * (edges[1] - edges[0]))

    area = None if real is None else density(real)
    lines = {k: density(values) for k, values in generated.items()}
    heights = [0.0, *(value for line in (area, *lines.values()) if line is not None for value in line)]
    across, up = Axis(low, float(edges[-1]), 0, 1), Axis.over(heights, 0, 1)
    with style(**_style()):
        figure, axes = _canvas(*SMALL, SMALL_PLOT, across, up)
        axes.grid(axis="y", color=RULE, linewidth=0.75)
        if area is not None:
            axes.stairs(area, edges, fill=True, color=INK, alpha=0.3, gid=".real")
        for k, line in lines.items():
            dashes = DASHES[k % STYLES]
            axes.stairs(
                line, edges, color=SERIES[k % STYLES], linewidth=1.75, linestyle=(0, dashes) if dashes else "solid"
            )
        return _written(figure, label)


def scatters(real: Array | None, generated: Mapping[int, Array], label: str, most: int = 250) -> dict[int, Markup]:
    """First two coordinates of each of `generated` ([n, d], by style) over the real samples in grey.

    One scale for all of them, the same unit both ways.
    """
    groups = [group for group in (real, *generated.values()) if group is not None]
    (left, right), (low, high) = (_span([group[:, k] for group in groups]) for k in (0, 1))
    room_x, room_y = SMALL_PLOT.right - SMALL_PLOT.left, SMALL_PLOT.bottom - SMALL_PLOT.top
    unit = 1.05 * max((right - left) / room_x, (high - low) / room_y) or 1.0  # values a point
    half_x, half_y = unit * room_x / 2, unit * room_y / 2
    middle_x, middle_y = (left + right) / 2, (low + high) / 2
    across, up = Axis(middle_x - half_x, middle_x + half_x, 0, 1), Axis(middle_y - half_y, middle_y + half_y, 0, 1)
    figures = {}
    for k, values in generated.items():
        with style(path_simplify=False, **_style()):
            figure, axes = _canvas(*SMALL, SMALL_PLOT, across, up)
            axes.grid(axis="y", color=RULE, linewidth=0.75)
            if real is not None:
                _cloud(axes, across, up, real[:most, :2], INK, 0.4, ".real")
            _cloud(axes, across, up, values[:most, :2], SERIES[k % STYLES], 0.75, ".points")
            figures[k] = _written(figure, label)
    return figures


def _cloud(axes: Axes, across: Axis, up: Axis, points: Array, colour: str, alpha: float, gid: str) -> None:
    """Points as one path of lines without a length, whose round ends are the dots: a fifth of the text of markers."""
    x, y = points[:, 0], points[:, 1]
    inside = points[(x > across.low) & (x < across.high) & (y > up.low) & (y < up.high)]
    path = Path(inside.repeat(2, axis=0), [Path.MOVETO, Path.LINETO] * len(inside)) if len(inside) else Path([(0, 0)])
    dots = PathPatch(path, fill=False, edgecolor=colour, linewidth=2.6, alpha=alpha, capstyle="round", gid=gid)
    axes.add_patch(dots)
