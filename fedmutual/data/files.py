"""The user's own files, .npz archives and folders of images, read row by row: no more is held than asked for."""

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np

from fedmutual.errors import UserError

Which = Literal["train", "test"]
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_CHUNK = 2**18  # bytes of a .npz that are held beside the rows that are kept


@dataclass(frozen=True)
class Part:
    """The training or test part of a source.

    labels: class of each row, [N]; shape: of one sample, channels first; read: rows [n] to uint8 or float
    images [n, H, W], [n, H, W, C] or [n, d]; has_test: whether the source comes with a test part.
    """

    names: list[str]
    labels: np.ndarray
    shape: tuple[int, ...]
    read: Callable[[np.ndarray], np.ndarray]
    has_test: bool = False

    @property
    def sizes(self) -> list[int]:
        return np.bincount(self.labels[self.labels >= 0], minlength=len(self.names)).tolist()


@contextmanager
def mendable(what: str, remedy: str) -> Iterator[None]:
    """Whatever a missing or damaged file makes its reader raise, as one line for the user.

    Readers of zip archives, images and pickles raise almost anything on damage, so only `Exception` covers it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{what} ({reason}): {remedy}") from None


def npz(path: Path, which: Which) -> Part:
    """The training or test part of a .npz with images and labels.

    Raises:
        UserError: not such a file.
    """
    with mendable(f"{path} is not a whole .npz file", "write it again with numpy.savez"):
        with zipfile.ZipFile(path) as archive:
            keys = [Path(name).stem for name in archive.namelist()]
        if {"train_images", "train_labels", "test_images", "test_labels"} <= set(keys):
            prefix, has_test = f"{which}_", True
        elif keys == ["images"] or {"images", "labels"} <= set(keys):
            prefix, has_test = "", False
        else:
            raise UserError(
                f"{path} holds {', '.join(keys) or 'nothing'}: name its arrays images and labels, or "
                f"train_images, train_labels, test_images and test_labels"
            )
        stored = _header(path, f"{prefix}images")
        shape = _npz_shape(path, *stored)
        if keys == ["images"]:  # all of one class
            values, labels = np.zeros(1, int), np.zeros(stored[0][0], int)
        else:
            values = np.unique(_labels(path, "train_labels" if has_test else "labels"))
            labels = _labels(path, f"{prefix}labels")
    if len(labels) != stored[0][0]:
        raise UserError(f"{path} has {stored[0][0]} {prefix}images and {len(labels)} {prefix}labels: match them")
    if len(values) == 0:
        raise UserError(f"{path} holds no samples")

    def read(rows: np.ndarray) -> np.ndarray:
        with mendable(f"{path} is not a whole .npz file", "write it again with numpy.savez"):
            return _read_rows(path, f"{prefix}images", rows)

    # Labels of a test part that the training part lacks belong to nobody: -1.
    numbers = np.where(np.isin(labels, values), np.searchsorted(values, labels), -1)
    return Part([str(value) for value in values], numbers, shape, read, has_test)


def _npz_shape(path: Path, stored: tuple[int, ...], dtype: np.dtype) -> tuple[int, ...]:
    if dtype != np.uint8 and dtype.kind != "f":
        raise UserError(f"images of {path} have type {dtype}: store uint8 (0 to 255) or floats")
    match stored:
        case (_, height, width) if height * width:
            return (1, height, width)
        case (_, height, width, (1 | 3) as channels) if height * width:
            return (channels, height, width)
        case (_, dimension) if dimension:
            return (dimension,)
    raise UserError(f"images of {path} have shape {stored}: store [N, H, W], [N, H, W, 1 or 3] or [N, d]")


def _labels(path: Path, key: str) -> np.ndarray:
    shape, dtype = _header(path, key)
    if dtype.kind not in "iu" or prod(shape[1:]) != 1 or not shape:
        raise UserError(f"{key} of {path} are {dtype} {list(shape)}: store whole numbers [N]")
    return _read_rows(path, key, np.arange(shape[0])).reshape(-1)


def _header(path: Path, key: str) -> tuple[tuple[int, ...], np.dtype]:
    with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
        shape, _, dtype = _read_header(file)
    return shape, dtype


def _read_header(file: zipfile.ZipExtFile) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran order, and type; leaves `file` at the first element."""
    if np.lib.format.read_magic(file) == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def _read_rows(path: Path, key: str, rows: np.ndarray) -> np.ndarray:
    """Rows of an array in a .npz, in the order asked for, holding no more than a chunk of the others.

    An archive is compressed, so that all of it streams by; reading to its end also checks its checksum.
    """
    with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
        (total, *inner), fortran, dtype = _read_header(file)
        # In Fortran order the file is the transpose: one line of all rows for each inner element.
        lines, line = (prod(inner), (total,)) if fortran else (total, inner)
        step = max(1, _CHUNK // (prod(line) * dtype.itemsize or 1))
        kept = np.empty((lines, len(rows)) if fortran else (len(rows), *inner), dtype)
        order = np.argsort(rows)
        for start in range(0, lines, step):
            stop = min(start + step, lines)
            data = file.read(size := (stop - start) * prod(line) * dtype.itemsize)
            if len(data) < size:
                raise EOFError(f"{key} is shorter than its header says")
            chunk = np.frombuffer(data, dtype).reshape(stop - start, *line)
            if fortran:
                kept[start:stop] = chunk[:, rows]
            else:
                own = order[slice(*np.searchsorted(rows, (start, stop), sorter=order))]
                kept[own] = chunk[rows[own] - start]
        if file.read(1):
            raise EOFError(f"{key} is longer than its header says")
    return kept.reshape(*reversed(inner), len(rows)).T if fortran else kept


def folder(path: Path, dims: tuple[int, ...]) -> Part:
    """A folder with one sub-folder of images for each class, or with the images of one class.

    `dims` (channels, height, width) converts and resizes; empty: as the first image is.

    Raises:
        UserError: not such a folder.
    """
    with mendable(f"{path} is not a readable folder", "set data-path to a folder of images"):
        # Without sub-folders, the folder itself is one class.
        folders = [entry for entry in _visible(path) if entry.is_dir()] or [path]
        files = [[entry for entry in _visible(f) if entry.suffix.lower() in _IMAGES] for f in folders]
    for place, images in zip(folders, files, strict=True):
        if not images:
            raise UserError(f"{place} holds no PNG, JPEG, WebP or BMP image: each class needs its own")
    every = [image for images in files for image in images]
    labels = np.repeat(np.arange(len(files)), [len(images) for images in files])
    shape = dims or _image_shape(every[0])

    def read(rows: np.ndarray) -> np.ndarray:
        blank = np.empty((0, *shape[1:], *shape[:1]), np.uint8)
        return np.stack([_image(every[row], shape, bool(dims)) for row in rows]) if len(rows) else blank

    return Part([place.name for place in folders], labels, shape, read)


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _image_shape(path: Path) -> tuple[int, ...]:
    """Shape of an image by its header alone."""
    from PIL import Image

    with mendable(f"{path} is not a whole image", "replace or remove it"), Image.open(path) as image:
        channels = {"1": 1, "L": 1, "RGB": 3}.get(image.mode)
        if not channels:
            raise UserError(f"{path} is neither grey nor RGB but {image.mode}: set shape, such as 3,64,64")
        return (channels, image.height, image.width)


def _image(path: Path, shape: tuple[int, ...], resize: bool) -> np.ndarray:
    """One image as uint8 [H, W, C]; resized to `shape` (bicubic, antialiased), else it must have it."""
    from PIL import Image

    if not resize and (found := _image_shape(path)) != shape:
        raise UserError(f"{path} is {found}, the first image {shape}: set shape to bring all to one size")
    channels, height, width = shape
    with mendable(f"{path} is not a whole image", "replace or remove it"), Image.open(path) as image:
        if image.mode[0] in "IF":
            raise UserError(f"{path} has more than 8 bits a pixel: convert it, or use a .npz of floats")
        image = image.convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(image).reshape(height, width, channels)
