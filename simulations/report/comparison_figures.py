"""Pictures of a comparison: quality x leakage x bytes, and every arm's value with its interval.

Groups of arms differ in colour and in fill: group k is the CSS class `g{k}`. Text is sized for a drawing that is
shown at about one unit a pixel.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from simulations.report.figures import Axis

LETTER, LINE = 6.2, 12.0
"""Room for one letter and one line of text of 10.5 units, on the safe side for a sans-serif face."""


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
    told: str


class Box(NamedTuple):
    """A rectangle: left, top, right, bottom."""

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


def _svg(width: float, height: float, label: str, parts: Iterable[Markup], style: str) -> Markup:
    svg = Markup('<svg class="{}" viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">{}</svg>')
    return svg.format(style, width, height, label, Markup("").join(parts))


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def _text(kind: str, x: float, y: float, words: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(kind, x, y, words)


def _whisker(axis: Axis, value: float, half: float) -> tuple[float, float]:
    """Both ends of an interval in pixels, cut where the axis ends."""
    low = max(value - half, axis.low)
    return axis.place(low), axis.place(min(value + half, axis.high))


# Dots


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
    names = max(len(_short(row.label)) for row in rows) * LETTER
    numbers = room * LETTER
    left, right = names + 8, names + 8 + 160
    width = right + 10 + numbers
    axis = scale._replace(start=left, end=right)
    top, step, gap = 6.0, 15.0, 5.0
    places, y = [], top
    for row, before in zip(rows, [rows[0], *rows], strict=False):
        y += gap if row.group != before.group else 0
        places.append(y + step / 2)
        y += step
    bottom, parts = y + 2, []
    for tick in axis.ticks():
        parts.append(_line("grid", axis.place(tick), top, axis.place(tick), bottom))
        parts.append(_text("x", axis.place(tick), bottom + LINE, f"{tick:g}"))
    for value in marks:
        parts.append(_line("mark", axis.place(value), top, axis.place(value), bottom))
    parts.append(_line("axis", left, bottom, right, bottom))
    for row, y in zip(rows, places, strict=True):
        parts.append(_text("y", names, y + 3.5, _short(row.label)))
        parts.append(_text("value", width, y + 3.5, row.text))
        if row.value is None:
            continue
        if row.half is not None:
            start, end = _whisker(axis, row.value, row.half)
            parts.append(_line(f"whisker g{row.group}", start, y, end, y))
        circle = Markup('<circle class="blob g{}" cx="{}" cy="{:.1f}" r="3.2"/>')
        parts.append(circle.format(row.group, axis.place(row.value), y))
    return _svg(width, bottom + LINE + 4, label, parts, "dots")


def _short(label: str, most: int = 26) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"


# Quality, leakage and bytes


def bubbles(points: Sequence[Bubble], across: str, up: str, label: str, width: float, height: float) -> Markup:
    """Worst-class distance against leakage, a circle an arm with an area by bytes, named beside it.

    Names keep clear of circles and of each other; one that had to move away from its circle is tied to it by a line.
    """
    plot = Box(34, 22, width - 10, height - 34)
    x = _bubble_axis([0.5, *(point.x for point in points)], plot.left, plot.right)
    y = _bubble_axis([point.y for point in points], plot.bottom, plot.top)
    largest = max(point.bytes for point in points) or 1.0
    parts = [_line("grid", plot.left, y.place(tick), plot.right, y.place(tick)) for tick in y.ticks()]
    parts += [_text("y", plot.left - 4, y.place(tick) + 3.5, f"{tick:g}") for tick in y.ticks()]
    parts += [_text("x", x.place(tick), plot.bottom + 14, f"{tick:g}") for tick in x.ticks()]
    parts.append(_line("axis", plot.left, plot.bottom, plot.right, plot.bottom))
    parts.append(_line("mark", x.place(0.5), plot.top, x.place(0.5), plot.bottom))
    parts += [_text("start", 0, 12, up), _text("end", plot.right, height - 6, across)]
    circles = [(x.place(point.x), y.place(point.y), 3.5 + (14 * math.sqrt(point.bytes / largest))) for point in points]
    for point, (cx, cy, _) in zip(points, circles, strict=True):
        if point.x_half is not None:
            start, end = _whisker(x, point.x, point.x_half)
            parts.append(_line(f"whisker g{point.group}", start, cy, end, cy))
        if point.y_half is not None:
            start, end = _whisker(y, point.y, point.y_half)
            parts.append(_line(f"whisker g{point.group}", cx, start, cx, end))
    for point, (cx, cy, radius) in sorted(zip(points, circles, strict=True), key=lambda pair: -pair[1][2]):
        circle = Markup('<circle class="bubble g{}" cx="{}" cy="{}" r="{:.1f}"><title>{}: {}</title></circle>')
        parts.append(circle.format(point.group, cx, cy, radius, point.label, point.told))
    names = _name_boxes([point.label for point in points], circles, plot)
    for point, (circle_x, _, _), (box, tie) in zip(points, circles, names, strict=True):
        if tie:
            parts.append(_line("tie", *tie))
        before = box.right <= circle_x
        place = box.right if before else box.left
        parts.append(_text("end name" if before else "name", place, box.bottom - 3, _short(point.label)))
    return _svg(width, height, label, parts, "bubbles")


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
    found: dict[int, tuple[Box, tuple[float, float, float, float] | None]] = {}
    for index in sorted(range(len(names)), key=lambda index: -crowd[index]):
        wide = len(_short(names[index])) * LETTER
        x, y, radius = circles[index]
        boxes = sorted(_places(x, y, radius, wide), key=lambda box: _distance(box, x, y))
        free = (box for box in boxes if box.inside(plot) and not any(box.meets(other) for other in taken))
        box = next(free, boxes[0])
        taken.append(Box(box.left - 3, box.top, box.right + 3, box.bottom))
        near = _distance(box, x, y) < radius + 6
        end_x, end_y = min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)
        found[index] = (box, None if near else (x, y, end_x, end_y))
    return [found[index] for index in range(len(names))]


def _places(x: float, y: float, radius: float, wide: float) -> Iterable[Box]:
    for reach in range(0, 200, 8):
        for angle in range(0, 360, 15):
            out = radius + 3 + reach
            cx, cy = x + out * math.cos(math.radians(angle)), y + out * math.sin(math.radians(angle))
            left = cx if angle < 90 or angle > 270 else cx - wide if 90 < angle < 270 else cx - wide / 2
            yield Box(left, cy - LINE / 2, left + wide, cy + LINE / 2)


def _distance(box: Box, x: float, y: float) -> float:
    return math.hypot(max(box.left - x, 0, x - box.right), max(box.top - y, 0, y - box.bottom))
