"""Generated samples beside real ones, a card a class."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from simulations.report import figures
from simulations.report.comparison import training_counts
from simulations.report.tables import FEW, head_of
from simulations.report.training import sharing
from simulations.runs.arms import Arm
from simulations.runs.folder import read_samples
from simulations.runs.sampling import sheet

Panel = tuple[str, Markup]
"""(caption, figure)."""


@dataclass(frozen=True)
class Card:
    """One class: its name, its number of training samples where known, its figures, and arms without samples."""

    name: str
    count: int | None
    panels: list[Panel]
    lacking: list[str]


def samples(arms: Sequence[Arm]) -> list[Card]:
    """For each class its generated samples, an arm beside the other (its first seed), and real ones.

    Of many arms the largest, the middle and the rarest class alone: the run folders hold the others.
    """
    first = arms[0].runs[0]
    shape = tuple(first.facts.get("shape") or ())
    counts = training_counts(run for arm in arms for run in arm.runs)
    stores = {arm.label: read_samples(arm.runs[0].folder) for arm in arms}
    cards = []
    for y in _chosen(counts, len(first.classes), few=len(arms) <= FEW):
        name = first.classes[y]
        real = next((store[f"real_{y}"] for store in stores.values() if f"real_{y}" in store), None)
        panels: list[Panel] = []
        lacking = []
        for title, group in sharing(arms) if len(shape) != 3 else [("", list(arms))]:
            drawn = {arm.label: stores[arm.label][f"generated_{y}"] for arm in group if _has(stores[arm.label], y)}
            panels += _panels(shape, real, drawn, group, name, title)
            for arm in (arm for arm in group if arm.label not in drawn):
                grid = arm.runs[0].folder / f"samples/class-{y:03d}.png"
                if grid.exists():  # without the samples themselves, the grid that the run drew of them
                    panels.append((head_of(arm), picture(png_address(grid.read_bytes()), f"samples of class {name}")))
                else:
                    lacking.append(arm.label)
        cards.append(Card(name, counts.get(y), panels, lacking))
    return cards if any(len(card.lacking) < len(arms) for card in cards) else []


def _has(store: Mapping[str, Any], y: int) -> bool:
    return f"generated_{y}" in store


def _chosen(counts: Mapping[int, int], classes: int, few: bool) -> list[int]:
    by_size = sorted(range(classes), key=lambda y: (-counts.get(y, 0), y))
    return by_size if few else list(dict.fromkeys((by_size[0], by_size[len(by_size) // 2], by_size[-1])))


def _panels(
    shape: tuple[int, ...],
    real: figures.Array | None,
    drawn: Mapping[str, figures.Array],
    group: Sequence[Arm],
    name: str,
    title: str,
) -> list[Panel]:
    """Images as a grid for each arm, beside real ones; numbers as one histogram; points as a plot for each arm."""
    if len(shape) == 3:
        panels: list[Panel] = []
        if real is not None:
            panels.append(("real", picture(tiles(real), f"real samples of class {name}")))
        label = f"generated samples of class {name}"
        return panels + [(arm, picture(tiles(images), label)) for arm, images in drawn.items()]
    if not drawn:
        return []
    arms = {arm.style: arm for arm in group if arm.label in drawn}
    flat = {style: np.asarray(drawn[arm.label]).reshape(len(drawn[arm.label]), -1) for style, arm in arms.items()}
    points = None if real is None else np.asarray(real).reshape(len(real), -1)
    label = f"class {name}: generated against real samples"
    if math.prod(shape) == 1:
        return [(title, figures.histogram(points, {style: values[:, 0] for style, values in flat.items()}, label))]
    return [(head_of(arms[style]), figure) for style, figure in figures.scatters(points, flat, label).items()]


def tiles(images: figures.Array, columns: int = 4, most: int = 20) -> str:
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
