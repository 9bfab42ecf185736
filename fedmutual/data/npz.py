"""The user's own .npz archives, read row by row: no more is held than asked for."""

import os
import zipfile
from contextlib import AbstractContextManager
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmutual.data.images import MOST_PIXELS, middle
from fedmutual.data.names import as_name, check_names
from fedmutual.data.parts import BLOCK, Opened, Part, Rows, readable
from fedmutual.data.pixels import RANGES, Seen, scaled
from fedmutual.errors import UserError

_CHUNK = 2**18
"""Bytes of an archive that are held beside the rows that are kept."""

_PREFIXES = {"train": "train_", "held_out": "val_", "test": "test_"}
"""How the arrays of a part are named, as MedMNIST has them."""


def open_npz(path: Path, keep: bool, size: int = 0) -> Opened:
    """An archive of images and labels, or of train_images, train_labels and the same for val and test.

    Labels are whole numbers or text, which are the classes' names in order. `keep` holds the archive in memory once
    it is read, for a caller that reads every class. With `size` each image's middle is resized to that side.

    Raises:
        UserError: not such a file, or a size for samples that are no images.
    """
    with _whole(path):
        with zipfile.ZipFile(path) as archive:
            keys = [Path(name).stem for name in archive.namelist()]
        prefixes = _parts(path, keys)
        seen = Seen()
        images, labels = f"{prefixes['train']}images", f"{prefixes['train']}labels"
        shape = _shape(path, *_header(path, images))
        if labels in keys:
            names, numbers = np.unique(_labels(path, labels), return_inverse=True)
        else:  # all of one class
            names, numbers = np.zeros(1, int), np.zeros(_header(path, images)[0][0], int)
        if len(names) == 0:
            raise UserError(f"{path} holds no samples")
        if size and len(shape) != 3:
            raise UserError(
                f"size = {size} is for images, and samples of {path} have shape {list(shape)}: leave it out"
            )
        train = NpzPart(path, prefixes["train"], names, shape, seen, keep, size)
        train.check_length(len(numbers))
        others = {
            name: NpzPart(path, prefix, names, shape, seen, keep, size)
            for name, prefix in prefixes.items()
            if name != "train"
        }
    used = {f"{prefix}{kind}" for prefix in prefixes.values() for kind in ("images", "labels")}
    unused = [key for key in keys if key not in used]
    notices = (f"left out of {path}: the arrays {', '.join(unused)}",) if unused else ()
    shown = (shape[0], size, size) if size else shape
    texts = [as_name(name if isinstance(name, bytes) else str(name)) for name in names]
    check_names(texts, str(path))
    return Opened(texts, shown, train, **others, seen=seen, notices=notices)


def _whole(path: Path) -> AbstractContextManager[None]:
    return readable(f"{path} is not a whole .npz file", "write it again with numpy.savez")


def _parts(path: Path, keys: list[str]) -> dict[str, str]:
    """{part: prefix of its arrays} of the parts that the archive comes with."""
    parts = {part: prefix for part, prefix in _PREFIXES.items() if {f"{prefix}images", f"{prefix}labels"} <= set(keys)}
    if "train" in parts and len(parts) > 1:
        return parts
    if keys == ["images"] or {"images", "labels"} <= set(keys):
        return {"train": ""}
    raise UserError(
        f"{path} holds {', '.join(keys) or 'nothing'}: name its arrays images and labels, or "
        f"train_images, train_labels, test_images and test_labels"
    )


class NpzPart(Part):
    """The arrays PREFIXimages and PREFIXlabels of an archive; what is read stays only with `keep`."""

    def __init__(
        self,
        path: Path,
        prefix: str,
        names: NDArray[Any],
        shape: tuple[int, ...],
        seen: Seen,
        keep: bool,
        size: int,
    ):
        """shape: of a sample as it is stored, channels first."""
        self.path, self.prefix, self.names, self.shape = path, prefix, names, shape
        self.seen, self.keep, self.size = seen, keep, size

    @cached_property
    def labels(self) -> Rows:
        with _whole(self.path), zipfile.ZipFile(self.path) as archive:
            stored, dtype = _header(self.path, f"{self.prefix}images")
            if _shape(self.path, stored, dtype) != self.shape:
                raise UserError(f"{self.path} has {self.prefix}images of another shape than train_images: match them")
            if f"{self.prefix}labels.npy" not in archive.namelist():
                return np.zeros(stored[0], np.int64)
            labels = _labels(self.path, f"{self.prefix}labels")
        self.check_length(len(labels))
        # Labels of another part that the training part lacks belong to no class.
        return np.where(np.isin(labels, self.names), np.searchsorted(self.names, labels), -1)

    def check_length(self, labels: int) -> None:
        images = _header(self.path, f"{self.prefix}images")[0][0]
        if images != labels:
            raise UserError(
                f"{self.path} has {images} {self.prefix}images and {labels} {self.prefix}labels: match them"
            )

    @cached_property
    def _everything(self) -> NDArray[Any]:
        (count, *inner), dtype = _header(self.path, f"{self.prefix}images")
        _refuse_beyond_memory(self.path, count * prod(inner) * dtype.itemsize)
        return _read_rows(self.path, f"{self.prefix}images", np.arange(count))

    def read(self, rows: Rows) -> Tensor:
        with _whole(self.path):
            images = self._everything[rows] if self.keep else _read_rows(self.path, f"{self.prefix}images", rows)
        if not self.size:
            return self._samples(images)
        samples = torch.empty(len(rows), self.shape[0], self.size, self.size)
        for start in range(0, len(rows), BLOCK):  # large images as floats are many times what is kept of them
            samples[start : start + BLOCK] = _fitted(self._samples(images[start : start + BLOCK]), self.size)
        return samples

    def _samples(self, images: NDArray[Any]) -> Tensor:
        samples = scaled(images, str(self.path), self.seen)
        if samples.ndim == 4:
            samples = samples.movedim(-1, 1).contiguous()
        return samples.reshape(len(images), *self.shape)


def _refuse_beyond_memory(path: Path, needed: int) -> None:
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise UserError(
            f"{path} unpacks to {needed / 1e9:.1f} GB, and this machine has {there / 1e9:.1f} GB of memory: make its "
            "images smaller, or store them as a folder"
        )


def _fitted(samples: Tensor, size: int) -> Tensor:
    """The middle of images `[n, C, H, W]` in [-1, 1] at `size` (bicubic, antialiased): `[n, C, size, size]`."""
    rows, columns = middle(*samples.shape[2:])
    square = samples[..., rows, columns]
    if square.shape[-1] == size:
        return square
    resized = torch.nn.functional.interpolate(square, (size, size), mode="bicubic", antialias=True)
    return resized.clamp_(-1, 1)  # bicubic weights overshoot at edges


def _shape(path: Path, stored: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, ...]:
    """Shape of a sample, channels first."""
    if dtype.kind not in "uibf":
        raise UserError(f"images of {path} have type {dtype}: store {RANGES}")
    if prod(stored[1:3]) > MOST_PIXELS:
        raise UserError(
            f"images of {path} have shape {stored}, and no more than {MOST_PIXELS // 10**6} million pixels are read of "
            "one: make them smaller"
        )
    match stored:
        case (_, height, width) if height * width:
            return (1, height, width)
        case (_, height, width, (1 | 3) as channels) if height * width:
            return (channels, height, width)
        case (_, dimension) if dimension:
            return (dimension,)
    raise UserError(f"images of {path} have shape {stored}: store [N, H, W], [N, H, W, 1 or 3] or [N, d]")


def _labels(path: Path, key: str) -> NDArray[Any]:
    shape, dtype = _header(path, key)
    if dtype.kind not in "iubUS" or prod(shape[1:]) != 1 or not shape:
        raise UserError(f"{key} of {path} are {dtype} {list(shape)}: store whole numbers or text, [N]")
    return _read_rows(path, key, np.arange(shape[0])).reshape(-1)


_UNPACKED = 1040
"""Bytes that one byte of an archive unpacks to at most; deflate stays below 1032."""


def _header(path: Path, key: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array, for which the archive has as many bytes as they say.

    Raises:
        EOFError: it has others; believed, a small file would ask for more memory than there is.
    """
    with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
        shape, _, dtype = _read_header(file)
        there = archive.getinfo(f"{key}.npy").file_size - file.tell()
    if dtype.hasobject:  # a pickle, which is never loaded
        return shape, dtype
    said = prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or there < said or said > _UNPACKED * path.stat().st_size:
        raise EOFError(f"{key} is shorter than its header says")
    if there > said:
        raise EOFError(f"{key} is longer than its header says")
    return shape, dtype


def _read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran order, and type; leaves `file` at the first element."""
    if np.lib.format.read_magic(file) == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def _read_rows(path: Path, key: str, rows: Rows) -> NDArray[Any]:
    """Rows of an array in a .npz, in the order asked for, holding no more than a chunk of the others.

    An archive is compressed, so that all of it streams by; reading to its end also checks its checksum.
    """
    with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
        (total, *inner), fortran, dtype = _read_header(file)
        # In Fortran order the file is the transpose: one line of all rows for each inner element.
        lines, line = (prod(inner), (total,)) if fortran else (total, tuple(inner))
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
