"""A release written out: its folder with page and README, and the gallery that stays with the owner of the data."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fedmutual.checkpoint import writing
from fedmutual.errors import UserError
from simulations.report.release_sections import LIMITS, Section, Sheet, answer, sections
from simulations.report.samples import picture, tiles
from simulations.report.words import NOTHING, number
from simulations.runs.datasheet import datasheet
from simulations.runs.release import Releasing, Suspect
from simulations.runs.release_folder import ARCHIVE, IMAGES, refuse_taken, write_datasheet, write_samples

PAGE, README, GALLERY = "release.html", "README.md", "release-nearest.html"


@dataclass(frozen=True)
class Card:
    """A heading and figures beside each other, each with what stands below it."""

    title: str
    figures: Sequence[tuple[str, Markup]]


def write_release(made: Releasing, out: Path) -> tuple[dict[str, Any], Path]:
    """Write the release into the new folder `out`, and the gallery into the run's; (datasheet, the gallery).

    A folder of that name is always a whole release.

    Raises:
        UserError: something is at `out` already, or it cannot be written.
    """
    refuse_taken(out)
    out = out.resolve()  # `.` has no name of its own
    partial = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a release that was killed
        partial.mkdir(parents=True)
        sheet = datasheet(made, write_samples(made, partial))
        write_datasheet(sheet, partial)
        _write(partial / PAGE, page(made, sheet))
        _write(partial / README, readme(sheet))
        partial.replace(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None
    path = made.folder / GALLERY
    _write_for_owner(path, gallery(made))
    return sheet, path


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="backslashreplace")  # names may hold what UTF-8 has no word for


def _write_for_owner(path: Path, text: str) -> None:
    """A file that its owner alone can read, from the first byte on."""
    with writing(path):
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)


def page(made: Releasing, sheet: Sheet) -> str:
    """The page of the released folder: no training sample is on it."""
    cards = []
    for row in sheet["rows"] if made.images else ():
        shown = made.samples[row["class"]].numpy()
        if len(shown):
            grid = picture(tiles(shown), f"released samples of class {row['name']}")
            cards.append(Card(row["name"], [(f"{row['released']} released, {row['training']} trained on", grid)]))
    return _render(
        title=f"Generated samples of {sheet['data']}: a release",
        answer=answer(sheet),
        cards=cards,
        cards_title="The first samples of each class",
        width=12,
        sections=sections(sheet),
        limits=LIMITS,
    )


def gallery(made: Releasing) -> str:
    """The most suspicious samples beside the training samples that they come nearest to: for the owner alone."""
    suspects = made.suspects()
    head = ["sample", "distance", "of the second", "nearest training sample", "second"]
    rows = [
        [_called(made, one), number(one.distance), number(one.ratio), str(one.rows[0]), str(one.rows[1])]
        for one in suspects
    ]
    words = [
        "Numbers count from 0: a sample's in its class of the release, a training sample's among those of the class."
    ]
    return _render(
        title=f"For the owner alone: the most suspicious samples of {made.facts.name}",
        answer=[
            "This page shows training samples. Do not give it away: it is no part of the release.",
            f"The {len(suspects)} released samples that come nearest to a training sample, by the distance to it over "
            "the distance to the second. Below a third a sample counts as a near copy.",
        ],
        cards=[_card(made, one) for one in suspects] if made.images else [],
        cards_title="Released samples and the training samples nearest to them",
        width=18,
        sections=[Section("All in numbers", words, head, rows)],
        limits=(),
    )


def _card(made: Releasing, one: Suspect) -> Card:
    images = (one.sample, *one.nearest)
    captions = (f"released, ratio {number(one.ratio)}", "nearest in training", "second")
    return Card(
        _called(made, one),
        [
            (caption, picture(tiles(image[None].float().numpy(), columns=1, most=1), caption))
            for caption, image in zip(captions, images, strict=True)
        ],
    )


def _called(made: Releasing, one: Suspect) -> str:
    return f"{made.names[one.class_]}, {one.number}"


def _render(**values: Any) -> str:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    source = Path(__file__).with_name("release.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(values)


def readme(sheet: Sheet) -> str:
    """The datasheet in Markdown."""
    made = (
        f"Generated samples of {_plain(sheet['data'])}, drawn from a network for each class that was trained by "
        f"fedmutual (method {sheet['method']}, round {sheet['round']}, seed {sheet['seed']})."
    )
    files = [f"- `{ARCHIVE}`: arrays `images`, `labels` and `class_names`; `numpy.load` reads it."]
    if sheet["images"]:
        files.append(f"- `{IMAGES}/`: a PNG file for each sample, in a folder for each class.")
    files += [f"- `{PAGE}`: this page with pictures.", "- `datasheet.json`: every number of it."]
    parts = ["# Datasheet", made, "\n".join(files), *map(_plain, answer(sheet))]
    for section in sections(sheet):
        parts += [f"## {section.title}", *map(_plain, section.words)]
        if section.head:
            parts.append("\n".join(map(_line, [section.head, ["---"] * len(section.head), *section.rows])))
    parts += ["## What these numbers do not say", "\n".join(f"- {limit}" for limit in LIMITS)]
    return "\n\n".join(parts) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(cell).replace('|', chr(92) + '|') or NOTHING for cell in cells)} |"


def _plain(text: str) -> str:
    """Text in which no name is markup: `<` and `&` as entities, signs of Markdown escaped, on one line."""
    entities = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(chr(92) + sign if sign in "`*_[]#" else sign for sign in entities)
