"""The folder of a release: images in a folder for each class, one archive, the datasheet as JSON."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from fedmutual.errors import UserError
from simulations.runs.release import Releasing, to_bytes

IMAGES, ARCHIVE, DATASHEET = "images", "samples.npz", "datasheet.json"

_PLAIN = re.compile(r"[^\W_][\w .()+-]{0,62}[\w)]|[^\W_]")
"""A name that every file system takes as the name of a folder, and that no program takes for an option or a path."""

_NUMBERED = re.compile(r"class-\d+", re.IGNORECASE)

_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def folder_names(names: Sequence[str]) -> list[str]:
    """A folder for each class: its own name where that is safe and no other's, in any case; else class-003.

    Safe are letters, digits and a few signs within, at most 64 in all: names come from users' folders and archives, and
    may be paths, empty, or the name of a device.
    """
    alike = [name.casefold() for name in names]
    return [
        name if _safe(name) and alike.count(name.casefold()) == 1 else f"class-{y:03d}" for y, name in enumerate(names)
    ]


def _safe(name: str) -> bool:
    unsafe = _NUMBERED.fullmatch(name) or _DEVICES.fullmatch(name) or len(name.encode(errors="replace")) > 128
    return bool(_PLAIN.fullmatch(name)) and not unsafe


def refuse_taken(out: Path) -> None:
    """Raises `UserError` where something is at `out` already that is no empty folder."""
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise UserError(f"{out} is there already: name a new folder with --out")


def write_samples(made: Releasing, folder: Path) -> dict[int, str]:
    """The archive and, of images, the PNG files, into `folder`; {class: its folder below `IMAGES`}."""
    stored = {y: stored_array(part, made.images) for y, part in made.samples.items()}
    labels = np.concatenate([np.full(len(part), y) for y, part in stored.items()])
    np.savez_compressed(
        folder / ARCHIVE, images=np.concatenate(list(stored.values())), labels=labels, class_names=np.array(made.names)
    )
    if not made.images:
        return {}
    names = folder_names(made.names)
    for y, images in stored.items():
        place = folder / IMAGES / names[y]
        place.mkdir(parents=True)
        for number, pixels in enumerate(images):
            Image.fromarray(pixels).save(place / f"{number:05d}.png")
    return {y: names[y] for y in stored}


def stored_array(samples: Tensor, images: bool) -> Any:
    """Samples as the archive holds them: bytes [n, height, width] or [n, height, width, 3]; else float32 [n, *dims]."""
    if not images:
        return samples.float().numpy()
    pixels = to_bytes(samples).numpy()
    return pixels[:, 0] if pixels.shape[1] == 1 else pixels.transpose(0, 2, 3, 1)


def write_datasheet(sheet: Mapping[str, Any], folder: Path) -> None:
    (folder / DATASHEET).write_text(json.dumps(sheet, indent=1), encoding="utf-8")
