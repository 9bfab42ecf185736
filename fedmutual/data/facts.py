"""What is known of samples from names, labels and headers alone: what settings for them are chosen by."""

import time
from dataclasses import dataclass

import numpy as np

from fedmutual.config import Data
from fedmutual.data.files import FileSource
from fedmutual.data.folder import FolderPart
from fedmutual.data.images import header_shape
from fedmutual.data.opening import open_source
from fedmutual.data.parts import Part
from fedmutual.errors import UserError


@dataclass(frozen=True)
class Facts:
    """Samples as they are stored, of every class.

    counts: samples of each class in the training part, from which parts that the data lack are cut. test, held_out:
    the same of the parts that the data come with; None where they lack it. shapes: every shape of a sample that occurs,
    channels first.
    """

    names: list[str]
    counts: list[int]
    shapes: list[tuple[int, ...]]
    test: list[int] | None = None
    held_out: list[int] | None = None
    compressed: bool = False
    """Whether a read of some samples streams all of them by, as an archive does."""

    @property
    def classes(self) -> int:
        return len(self.names)

    @property
    def samples(self) -> int:
        """Of all parts together."""
        return sum(self.counts) + sum(self.test or []) + sum(self.held_out or [])

    @property
    def images(self) -> bool:
        return len(self.shapes[0]) == 3

    @property
    def channels(self) -> int:
        """Of images: 3 where any is in colour."""
        return max(shape[0] for shape in self.shapes)

    @property
    def side(self) -> int:
        """Of the largest square that lies in every image."""
        return min(min(shape[1:]) for shape in self.shapes)

    @property
    def square(self) -> bool:
        """Whether all images have one shape, and it is a square."""
        return len(self.shapes) == 1 and self.shapes[0][1] == self.shapes[0][2]


def facts_of(data: Data) -> Facts:
    """The facts of data in files, no long tail applied; of a folder's images the headers are read.

    Raises:
        UserError: data that cannot be opened, or that lie in no files.
    """
    source = _files(data)
    opened, classes = source.opened, len(source.names)
    parts = [part for part in (opened.train, opened.held_out, opened.test) if part]
    return Facts(
        names=source.names,
        counts=_counts(opened.train, classes),
        shapes=_shapes(parts) or [source.shape],
        test=_counts(opened.test, classes) if opened.test else None,
        held_out=_counts(opened.held_out, classes) if opened.held_out else None,
        compressed=not isinstance(opened.train, FolderPart),
    )


def reading_seconds(data: Data, most: int = 24) -> float:
    """Wall seconds of reading a sample of a folder, by `most` of them; of an archive, of reading it through once.

    Raises:
        UserError: data that cannot be used.
    """
    part = _files(data).opened.train
    rows = np.linspace(0, len(part.labels) - 1, min(most, len(part.labels))).astype(np.int64)
    began = time.perf_counter()
    part.read(rows)
    seconds = time.perf_counter() - began
    return seconds / len(rows) if isinstance(part, FolderPart) else seconds


def _files(data: Data) -> FileSource:
    source = open_source(data, seed=0)
    if not isinstance(source, FileSource):
        raise UserError(f"data = {data.source} lie in no files")
    return source


def _counts(part: Part, classes: int) -> list[int]:
    labels = part.labels
    counts: list[int] = np.bincount(labels[labels >= 0], minlength=classes).tolist()
    return counts


def _shapes(parts: list[Part]) -> list[tuple[int, ...]]:
    """The shapes of a folder's images; none for other parts, all of whose samples have one shape."""
    files = [file for part in parts if isinstance(part, FolderPart) for file in part.files]
    return sorted({header_shape(file) for file in files})
