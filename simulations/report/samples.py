"""Generated samples beside real ones, a card a class."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from fedmutual.run_folder import read_samples
from simulations.report import figures
from simulations.report.comparison import training_counts
from simulations.report.tables import head_of
from simulations.report.training import sharing
from simulations.runs.arms import Arm
from simulations.runs.sampling import sheet

Panel = tuple[str, Markup]
"""(caption, figure)."""


MISSING = Markup('<div class="absent">missing</div>')


@dataclass(frozen=True)
class Card:
    """One class: its name, its number of training samples where known, and its figures."""

    name: str
    count: int | None
    panels: list[Panel]


def samples(arms: Sequence[Arm], some: bool, worst: Sequence[int] = ()) -> list[Card]:
    """For each class its generated samples, an arm beside the other (its first seed), and real ones.

    `some`: the largest, the middle, the rarest class and the `worst` ones alone; the run folders hold the others.
    """
    first = arms[0].runs[0]
    shape = tuple(first.facts.get("shape") or ())
    counts = training_counts(run for arm in arms for run in arm.runs)
    stores = {arm.label: read_samples(arm.runs[0].folder) for arm in arms}
    cards = []
    for y in _chosen(counts, len(first.classes), some, worst):
        name = first.classes[y]
        real = next((store[f"real_{y}"] for store in stores.values() if f"real_{y}" in store), None)
        drawn = {arm.label: stores[arm.label][f"generated_{y}"] for arm in arms if _has(stores[arm.label], y)}
        panels = _images(arms, y, name, real, drawn) if len(shape) == 3 else _points(arms, name, real, drawn)
        cards.append(Card(name, counts.get(y), panels))
    drawings = [figure for card in cards for _, figure in card.panels]
    return cards if any(figure is not MISSING for figure in drawings) else []


def _has(store: Mapping[str, Any], y: int) -> bool:
    return f"generated_{y}" in store


def _chosen(counts: Mapping[int, int], classes: int, some: bool, worst: Sequence[int]) -> list[int]:
    by_size = sorted(range(classes), key=lambda y: (-counts.get(y, 0), y))
    middle = by_size[len(by_size) // 2]
    return list(dict.fromkeys((by_size[0], middle, by_size[-1], *worst))) if some else by_size


def _images(
    arms: Sequence[Arm], y: int, name: str, real: figures.Array | None, drawn: Mapping[str, figures.Array]
) -> list[Panel]:
    """Real images and each arm's as grids; where samples are gone, the grid that the run drew of them."""
    panels: list[Panel] = []
    if real is not None:
        panels.append(("real", picture(tiles(real), f"real samples of class {name}")))
    for arm in arms:
        grid = arm.runs[0].folder / f"samples/class-{y:03d}.png"
        if arm.label in drawn:
            panels.append((arm.label, picture(tiles(drawn[arm.label]), f"generated samples of class {name}")))
        elif grid.exists():
            panels.append((arm.label, picture(png_address(grid.read_bytes()), f"samples of class {name}")))
        else:
            panels.append((arm.label, MISSING))
    return panels


def _points(
    arms: Sequence[Arm], name: str, real: figures.Array | None, drawn: Mapping[str, figures.Array]
) -> list[Panel]:
    """Numbers as one histogram of the arms that share a drawing, points as a plot for each arm."""
    background = None if real is None else np.asarray(real).reshape(len(real), -1)
    label = f"class {name}: generated against real samples"
    panels: list[Panel] = []
    for title, group in sharing(arms):
        flat = {arm.style: np.asarray(drawn[arm.label]) for arm in group if arm.label in drawn}
        flat = {style: values.reshape(len(values), -1) for style, values in flat.items()}
        heads = {arm.style: head_of(arm) for arm in group}
        if flat and all(values.shape[1] == 1 for values in flat.values()):
            numbers = {style: values[:, 0] for style, values in flat.items()}
            panels.append((title, figures.histogram(background, numbers, label)))
        elif flat:
            panels += [(heads[k], drawing) for k, drawing in figures.scatters(background, flat, label).items()]
        panels += [(heads[arm.style], MISSING) for arm in group if arm.label not in drawn]
    return panels


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
