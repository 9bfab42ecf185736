"""The two pictures of a comparison: quality against leakage and bytes, and every arm's value with its interval."""

from dataclasses import dataclass

from markupsafe import Markup

from fedmutual.methods import DATA
from simulations.report import figures
from simulations.report.comparison import QUANTILES, Comparison, Of
from simulations.report.tables import rarest_first, samples_behind
from simulations.report.words import estimated, size
from simulations.runs.arms import Arm


@dataclass(frozen=True)
class Tradeoff:
    """The picture of quality, leakage and bytes for wide and narrow screens, and the arms that it lacks."""

    wide: Markup
    narrow: Markup
    lacking: list[str]
    metric: str
    classes: str
    groups: list[tuple[int, str]]
    bytes: tuple[str, str]


@dataclass(frozen=True)
class Panel:
    """One summary or class: its title, the samples behind it, the drawing."""

    title: str
    behind: str
    figure: Markup


@dataclass(frozen=True)
class Dots:
    """Panels on one scale; `marked` are the arms whose means are dashed lines."""

    metric: str
    log: bool
    marked: list[str]
    summaries: list[Panel]
    classes: list[Panel]


def tradeoff(arms: Comparison) -> Tradeoff | None:
    """None where no arm was both measured and audited."""
    metric, tail = arms.headline, "rarest" if arms.ends else "worst"
    points = [point for arm in arms.arms if metric and (point := _bubble(arms, arm, metric, tail))]
    if metric is None or not points:
        return None
    shown = {point.label for point in points}
    words = (f"membership AUC, {arms.title(tail)}: left is better", f"{metric} of the worst class: low is better")
    description = "; ".join(f"{point.label}: {point.description}" for point in points)
    wide, narrow = (figures.bubbles(points, *words, description, *room) for room in ((720, 430), (350, 400)))
    sizes = [point.bytes for point in points]
    return Tradeoff(
        wide=wide,
        narrow=narrow,
        lacking=[arm.label for arm in arms.arms if arm.label not in shown],
        metric=metric,
        classes=arms.title(tail),
        groups=[(k, name) for k, name in enumerate(DATA.values()) if any(point.group == k for point in points)],
        bytes=(size(min(sizes)), size(max(sizes))),
    )


def _bubble(arms: Comparison, arm: Arm, metric: str, tail: str) -> figures.Bubble | None:
    value, leak, moved = arms.value(arm, metric, "worst"), arms.leak(arm, tail), arms.cost(arm, "bytes")
    if not value or not leak or moved is None:
        return None
    description = f"{metric} {estimated(value)}, AUC {estimated(leak)}, {size(moved)}"
    return figures.Bubble(
        arm.label, _group(arm), leak.mean, leak.half, value.mean, value.half, moved, description=description
    )


def _group(arm: Arm) -> int:
    return list(DATA).index(arm.data)


def dots(arms: Comparison) -> Dots | None:
    """Every arm's headline metric with its interval: a panel for each summary, and for each class, rarest first; of
    many classes for each quantile."""
    metric = arms.headline
    if metric is None:
        return None
    summaries = ("worst", "rarest", "largest") if arms.ends else ("worst", "mean")
    shown: list[Of] = [*summaries, *(QUANTILES if arms.many else ()), *rarest_first(arms)]
    values = {of: [arms.value(arm, metric, of) for arm in arms.arms] for of in shown}
    values = {of: row for of, row in values.items() if any(row)}
    every = [value for row in values.values() for value in row if value]
    scale = figures.dots_axis(value.mean for value in every)
    room = max(len(estimated(value)) for value in every)
    marked = [arm for name in ("isolated", "pooled") if (arm := arms.arm(name))]

    def panel(of: Of) -> Panel:
        rows = [
            figures.Dot(
                arm.label, _group(arm), value.mean if value else None, value.half if value else None, estimated(value)
            )
            for arm, value in zip(arms.arms, values[of], strict=True)
        ]
        marks = [row.value for row, arm in zip(rows, arms.arms, strict=True) if arm in marked and row.value is not None]
        description = f"{metric}, {arms.title(of)}: " + "; ".join(f"{row.label} {row.text}" for row in rows)
        behind = ", ".join(samples_behind(arms, of))
        return Panel(arms.title(of), behind, figures.dots(rows, scale, marks, room, description))

    return Dots(
        metric=metric,
        log=scale.log,
        marked=[arm.label for arm in marked],
        summaries=[panel(of) for of in values if isinstance(of, str)],
        classes=[panel(of) for of in values if isinstance(of, int)],
    )
