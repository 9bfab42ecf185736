"""Drawing: arrays and estimates as inline SVG that takes the colour of its text and axes from the page."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, TwoSlopeNorm
from matplotlib.figure import Figure

from fedmutual.evaluation.intervals import Estimate
from simulations.drawing.svg import style, svg
from simulations.game.dynamics import Curve, HeatMaps

COLOURS = ("#2f7fd0", "#e07b22", "#3a9d5d", "#c8504f", "#8f6fc4", "#96735f", "#cf79b0")
LEVELS = (("#c8504f", ":"), ("#8f6fc4", "--"), ("#a59a2c", "-."))


@dataclass(frozen=True)
class Band:
    """Means with 95 % intervals, one for each beta."""

    name: str
    estimates: Sequence[Estimate]


def v_curves(
    betas: Sequence[float], panels: dict[str, list[Band]], levels: dict[str, dict[str, float]], unit: str
) -> Markup:
    """Worst and single classes over beta, one panel a case; `levels` are dotted lines for arms without a beta."""
    with style():
        figure, axes = _panels(len(panels))
        places = np.arange(len(betas))
        for axis, (title, bands) in zip(axes, panels.items(), strict=False):
            for colour, band in zip(COLOURS, bands, strict=False):
                mean = np.array([estimate.mean for estimate in band.estimates])
                half = np.array([estimate.half or 0.0 for estimate in band.estimates])
                axis.plot(places, mean, color=colour, marker="o", markersize=3, label=band.name)
                axis.fill_between(places, mean - half, mean + half, color=colour, alpha=0.18, linewidth=0)
            for (colour, dashes), (name, level) in zip(LEVELS, levels.get(title, {}).items(), strict=False):
                axis.axhline(level, color=colour, linestyle=dashes, label=name)
            axis.set_xticks(places, [f"{beta:g}" for beta in betas])
            axis.set(title=title, xlabel="beta", ylabel=unit)
            means = [[estimate.mean for estimate in band.estimates] for band in bands]
            if np.max(means) > 20 * np.min(means):
                axis.set_yscale("log")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return svg(figure, "worst class over beta")


def curves(panels: dict[str, list[Curve]], across: str, up: str) -> Markup:
    """Geometric means over seeds on logarithmic axes, with the middle half of the seeds shaded."""
    with style():
        figure, axes = _panels(len(panels))
        for axis, (title, lines) in zip(axes, panels.items(), strict=False):
            for colour, curve in zip(COLOURS, lines, strict=False):
                values = np.maximum(curve.values.numpy(), 1e-300)
                low, high = np.nanquantile(values, (0.25, 0.75), axis=1)
                axis.plot(curve.rounds, np.exp(np.nanmean(np.log(values), axis=1)), color=colour, label=curve.name)
                axis.fill_between(curve.rounds, low, high, color=colour, alpha=0.15, linewidth=0)
            axis.set(title=title, xlabel=across, ylabel=up, xscale="log", yscale="log")
            axis.legend()
        return svg(figure, up)


def heat_panels(maps: HeatMaps, names: Sequence[str]) -> Markup:
    """Rows: density, error without, error with mutual learning; columns: the tail, then the head."""
    order = [len(names) - 1, 0]
    rows = [
        ("density", maps.density),
        ("squared error of the score, beta 0", maps.without),
        (f"squared error of the score, beta {maps.beta:g}", maps.mutual),
    ]
    errors = np.concatenate([maps.without.flatten().numpy(), maps.mutual.flatten().numpy()])
    with style():
        figure = Figure(figsize=(7.2, 6.4), layout="constrained")
        axes = figure.subplots(3, 2, sharex=True, sharey=True)
        for line, (title, table) in zip(axes, rows, strict=True):
            # Both error rows share one scale, or with and without could not be compared.
            scale = (
                None if title == "density" else LogNorm(max(1e-3, np.quantile(errors, 0.02)), np.quantile(errors, 0.98))
            )
            for axis, y in zip(line, order, strict=True):
                mesh = axis.pcolormesh(
                    maps.x.numpy(),
                    maps.t.numpy(),
                    table[y].numpy(),
                    norm=scale,
                    cmap="viridis" if scale is None else "magma",
                    rasterized=True,
                )
                axis.set_title(f"{names[y]}: {title}")
            figure.colorbar(mesh, ax=list(line), pad=0.01).outline.set_visible(False)
        for axis in axes[-1]:
            axis.set_xlabel("x")
        for axis in axes[:, 0]:
            axis.set_ylabel("t")
        return svg(figure, "density and fitting error over x and t")


def phase_panels(
    across: Sequence[float], up: Sequence[str], panels: dict[str, np.ndarray], doubt: dict[str, np.ndarray]
) -> Markup:
    """Mean change of the worst class's KL, one panel an arm; a dot where its 95 % interval excludes zero."""
    with style():
        figure, axes = _panels(len(panels), height=2.6)
        limit = 0.5
        for axis, (title, change) in zip(axes, panels.items(), strict=False):
            mesh = axis.imshow(
                np.clip(change, -limit, limit),
                norm=TwoSlopeNorm(0, -limit, limit),
                cmap="PuOr_r",
                origin="lower",
                aspect="auto",
            )
            sure = np.argwhere(np.abs(change) > doubt[title])
            if len(sure):
                axis.plot(sure[:, 1], sure[:, 0], ".", color="#222222", markersize=4)
            axis.set_xticks(range(len(across)), [f"{value:g}" for value in across])
            axis.set_yticks(range(len(up)), list(up))
            axis.set(title=title, xlabel="mu (half the separation)", ylabel="samples, head / tail")
        figure.colorbar(mesh, ax=axes, pad=0.01, label="change of worst KL, cut at ±0.5").outline.set_visible(False)
        return svg(figure, "where mutual learning helps")


def _panels(count: int, height: float = 2.7) -> tuple[Figure, list[Axes]]:
    """`count` axes, two in a row."""
    columns = min(2, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(3.7 * columns + (0.9 if columns == 1 else 0), height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]
