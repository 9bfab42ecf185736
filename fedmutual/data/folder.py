"""The user's own folder of images: which of its folders are classes, which are parts, and what is left out."""

import os
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedmutual.data.images import image_shape, read_image
from fedmutual.data.names import as_name, check_names
from fedmutual.data.parts import Opened, Part, Rows, readable
from fedmutual.data.pixels import Seen
from fedmutual.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".pgm", ".ppm")
"""Images that are read, in capitals too."""

_PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_PARTS |= dict.fromkeys(("val", "valid", "validation", "dev"), "held_out")
"""{name of a folder: the part of the data that it holds}, where classes lie in such folders."""

_MASKS = frozenset(
    ("mask", "masks", "label", "labels", "segmentation", "segmentations", "annotation", "annotations", "groundtruth")
)
"""Folders inside a class's folder whose images are no samples of the class."""

_IGNORED = frozenset(("__macosx", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin", "#recycle", "lost+found"))
"""What systems put beside a person's files; hidden files are ignored too."""


Files = dict[str, list[Path]]
"""{name of a class: its image files}, in the order of the folders."""


def open_folder(path: Path, dims: tuple[int, ...], size: int = 0) -> Opened:
    """A folder with a folder of images for each class, or with the images of one class.

    A class's images lie in its folder and in folders inside it. Folders train/ and test/, and val/ for the held-out
    part, may stand above the classes. `dims` (channels, height, width) converts and resizes; empty: as the first
    image is. With `size` each image's middle is resized to that side.

    Raises:
        UserError: not such a folder.
    """
    left_out: Counter[str] = Counter()
    with readable(f"{path} is not a readable folder", "set data-path to a folder of images"):
        places = _parts(path)
        files = {part: _classes(place, left_out) for part, place in places.items()}
    names = _class_names(path, files)
    for name in names:
        if not files["train"][name]:
            rest = f" ({_counted(left_out)} left out)" if left_out else ""
            raise UserError(
                f"{places['train'] / name} holds no PNG, JPEG, WebP, BMP or TIFF image{rest}: each class needs its own"
            )
    seen = Seen()
    shape = dims or _sized(image_shape(files["train"][names[0]][0]), size)
    resize, cut = bool(dims or size), bool(size)
    parts = {part: FolderPart(own, names, shape, resize, cut, seen) for part, own in files.items()}
    for part, own in files.items():
        strangers = {name: len(images) for name, images in own.items() if name not in names and images}
        left_out.update({f"images of {part.replace('_', '-')} class {name}": n for name, n in strangers.items()})
    notices = (f"left out of {path}: {_counted(left_out)}",) if left_out else ()
    return Opened([name or _name(path.resolve()) for name in names], shape, **parts, seen=seen, notices=notices)


def _sized(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    return (shape[0], size, size) if size else shape


class FolderPart(Part):
    """Image files of each class, read one by one; a class that only the training part has has no rows here."""

    def __init__(self, files: Files, names: list[str], shape: tuple[int, ...], resize: bool, cut: bool, seen: Seen):
        self.files = [file for name in names for file in files.get(name, [])]
        self.sizes = [len(files.get(name, [])) for name in names]
        self.shape, self.resize, self.cut, self.seen = shape, resize, cut, seen

    @cached_property
    def labels(self) -> Rows:
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    def read(self, rows: Rows) -> Tensor:
        samples = torch.empty(len(rows), *self.shape)
        for place, row in enumerate(rows):
            samples[place] = read_image(self.files[row], self.shape, self.resize, self.cut, self.seen)
        return samples


# Which folder is what


def _parts(path: Path) -> dict[str, Path]:
    """{part: its folder}; the folder itself where it is not divided into train and test."""
    inner = [folder for folder in _folders(path) if _holds_images(folder)]
    known = {_PARTS[folder.name.lower()]: folder for folder in inner if folder.name.lower() in _PARTS}
    others = [folder.name for folder in inner if folder.name.lower() not in _PARTS]
    if "train" not in known or (len(known) == 1 and (others or not _folders(known["train"]))):
        return {"train": path}
    if others:
        raise UserError(
            f"{path} holds {', '.join(folder.name for folder in known.values())} beside {', '.join(others)}: "
            "move what is no part of the data elsewhere, or each class into a folder of one name"
        )
    if len(known) < len(inner):
        raise UserError(f"{path} holds several folders for one part, such as val and valid: keep one of them")
    return known


def _classes(path: Path, left_out: Counter[str]) -> Files:
    """{name of a class: its images}; the name is "" for the images of one class without a folder of its own."""
    direct = [file for file in _visible(path) if not file.is_dir()]
    images = [file for file in direct if _is_image(file)]
    folders = _folders(path)
    if images:
        filled = [folder.name for folder in folders if _holds_images(folder)]
        if filled:
            raise UserError(
                f"{path} holds {len(images)} images beside folders of images ({', '.join(filled)}): several classes "
                "need a folder each, one class its images alone"
            )
        _count(left_out, direct)
        return {"": images}
    if not folders:
        return {"": []}
    _count(left_out, direct)
    _check_classes(path, folders)
    check_names([_name(folder) for folder in folders], str(path))
    return {_name(folder): _images_below(folder, left_out) for folder in folders}


def _check_classes(path: Path, folders: list[Path]) -> None:
    """Raises `UserError` for layouts in which folders are something else than classes."""
    by_name = {folder.name.lower(): folder for folder in folders}
    masks = [by_name[name].name for name in by_name if name in _MASKS]
    pictures = [by_name[name].name for name in by_name if name in ("images", "image", "imgs", "img")]
    if masks and pictures:
        raise UserError(
            f"{path} holds {pictures[0]} and {masks[0]}, which are no classes: set data-path to {pictures[0]}"
        )
    if len(folders) == 1 and sum(map(_holds_images, _folders(folders[0]))) > 1:
        (only,) = folders
        if not any(map(_is_image, _visible(only))):
            raise UserError(f"{path} holds one folder with folders in it: set data-path to {only}")
    for folder in folders:
        parts = [inner.name for inner in _folders(folder) if inner.name.lower() in _PARTS and _holds_images(inner)]
        if len({_PARTS[part.lower()] for part in parts}) > 1:
            raise UserError(
                f"{folder} holds {' and '.join(parts)}: put them outermost, with a folder for each class in them"
            )


def _images_below(folder: Path, left_out: Counter[str], above: tuple[Path, ...] = ()) -> list[Path]:
    """The images in a class's folder and in folders inside it, in the order of their paths.

    A link to a folder that holds this one, or one of those `above` it, is not followed: it leads back.
    """
    files, above = [], (*above, Path(os.path.realpath(folder)))
    for entry in _visible(folder):
        if not entry.is_dir():
            files.append(entry)
        elif entry.name.lower() in _MASKS:
            if masks := len(_images_below(entry, Counter(), above)):
                left_out[f"images in folders named {entry.name}"] += masks
        elif not _leads_back(entry, above):
            files += _images_below(entry, left_out, above)
    _count(left_out, (file for file in files if not _is_image(file)))
    return sorted(file for file in files if _is_image(file))


def _holds_images(folder: Path, above: tuple[Path, ...] = ()) -> bool:
    entries, above = _visible(folder), (*above, Path(os.path.realpath(folder)))
    if any(map(_is_image, entries)):
        return True
    return any(_holds_images(entry, above) for entry in entries if entry.is_dir() and not _leads_back(entry, above))


def _leads_back(entry: Path, above: tuple[Path, ...]) -> bool:
    return any(folder.is_relative_to(os.path.realpath(entry)) for folder in above)


def _class_names(path: Path, files: dict[str, Files]) -> list[str]:
    """The training part's classes in order; "" for one class whose images have no folder of their own."""
    names = list(files["train"])
    if any(("" in own) != ("" in names) for own in files.values()):
        raise UserError(
            f"{path} has classes in some of its parts and images in others: give every part the same folders"
        )
    return names


def _count(left_out: Counter[str], files: Iterable[Path]) -> None:
    left_out.update(f"{file.suffix.lower() or 'unnamed'} files" for file in files if not _is_image(file))


def _counted(left_out: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in left_out.most_common())


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.is_dir()


def _folders(path: Path) -> list[Path]:
    return [entry for entry in _visible(path) if entry.is_dir()]


def _visible(folder: Path) -> list[Path]:
    return sorted(
        entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.name.lower() not in _IGNORED
    )


def _name(folder: Path) -> str:
    return as_name(os.fsencode(folder.name))
