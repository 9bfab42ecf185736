"""Where samples come from. A `Source` is opened once; then each class's samples are read from it, and nothing else.

What a call returns has its own memory. A source holds what it takes to find a class's samples, such as labels or
names of files; samples only where the file allows nothing else (torchvision's), or with `keep`.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedmutual.config import Data
from fedmutual.data import long_tail
from fedmutual.data.fingerprint import Fingerprint, combined, fingerprint, mark
from fedmutual.data.mixtures import MIXTURES, Mixture
from fedmutual.data.named import NAMED, open_named
from fedmutual.data.parts import Opened, Part, Rows
from fedmutual.errors import UserError
from fedmutual.seeds import generator

_UNLIMITED = sys.maxsize
_BLOCK = 256
"""Samples that are in memory at once while all of a class is looked through."""


@dataclass(frozen=True)
class ClassData:
    """One client's private samples, each part [n, *dims], float32 on the CPU, in memory of its own."""

    train: Tensor
    held_out: Tensor


class Source(ABC):
    """The samples of every class, cut into parts that the seed alone decides.

    names: of the classes, in order. shape: of one sample, channels first. A source of one class is a client's own
    data, whatever its number y is.
    """

    names: list[str]
    shape: tuple[int, ...]

    @property
    @abstractmethod
    def counts(self) -> list[int]:
        """Training samples of every class, the long tail applied.

        Raises:
            UserError: settings that ask for more than there is, or data of one client's class only.
        """

    @abstractmethod
    def load(self, y: int) -> ClassData:
        """Class y's training and held-out parts, read at once.

        Raises:
            UserError: no such class, or data that cannot be used; so do all that follow.
        """

    def train(self, y: int) -> Tensor:
        """What class y trains on, [n, *dims]."""
        return self.load(y).train

    def held_out(self, y: int) -> Tensor:
        """What settings are chosen by; empty where there is none."""
        return self.load(y).held_out

    @abstractmethod
    def test(self, y: int) -> Tensor:
        """What the report alone is measured by; empty where there is none."""

    @abstractmethod
    def unseen(self, y: int) -> Tensor:
        """All that no training saw: the held-out part, what the long tail left over, the test part."""

    @abstractmethod
    def look_through(self, y: int) -> Fingerprint:
        """Read all that there is of class y, in every part; the fingerprint of what it trains on.

        Raises:
            UserError: a sample that cannot be used.
        """

    def fingerprints(self) -> dict[int, Fingerprint]:
        """{class: fingerprint of what it trains on}; raises as `counts` does."""
        return {y: fingerprint(self.train(y)) for y in range(len(self.counts))}

    @property
    def notices(self) -> list[str]:
        """What a user should know of the data, a sentence each: what is left out, and values that look like a mistake
        among those that were read so far."""
        return []

    @property
    def whole(self) -> bool:
        """Whether this holds every class, and not one client's own."""
        return True

    @property
    def cuts_test(self) -> bool:
        """Whether the seed decides which samples are the test part; else the data come with one."""
        return True


def open_source(data: Data, seed: int, keep: bool = False) -> Source:
    """Open the data of the settings; `keep` what is read in memory, for a caller that reads every class.

    Raises:
        UserError: data that are missing or cannot be used, or settings that contradict them.
    """
    if data.source == "gaussians":
        return Gaussians(data, seed)
    return FileSource(data, seed, _open(data, keep=keep))


# What is known without the data


def num_classes(data: Data) -> int:
    """Number of classes: a constant of a named source, else the setting `classes`, else read at data-path.

    Raises:
        UserError: a setting that contradicts the source, or nothing to read it from.
    """
    if data.source not in ("npz", "folder") or not data.classes:
        return len(class_names(data))
    return data.classes


def class_names(data: Data) -> list[str]:
    """Names by class number; plain numbers where the setting `classes` stands in for the data.

    Raises:
        UserError: as `num_classes`.
    """
    if data.source not in ("npz", "folder"):
        return _constants(data)[0]
    if data.classes:
        return [str(y) for y in range(data.classes)]
    return _open(data, instead="classes").names


def sample_shape(data: Data) -> tuple[int, ...]:
    """Shape of one sample, channels first: the setting `shape`, or read like `num_classes`.

    Raises:
        UserError: as `num_classes`.
    """
    if data.source not in ("npz", "folder"):
        return _constants(data)[1]
    return _checked_dims(data) or _open(data, instead="shape").shape


def _constants(data: Data) -> tuple[list[str], tuple[int, ...]]:
    """Names and sample shape of a source that needs no data to tell them."""
    if data.source == "gaussians":
        family = _family(data)
        known: tuple[list[str], tuple[int, ...]] = ([str(y) for y in range(len(family))], (family[0].dimension,))
    else:
        known = NAMED[data.source]
    names, shape = known
    _agree(data, len(names), shape)
    return list(names), shape


def _agree(data: Data, classes: int, shape: tuple[int, ...]) -> None:
    if data.classes not in (0, classes):
        raise UserError(f"classes = {data.classes}, but {data.source} has {classes}: leave classes at 0")
    if data.dims not in ((), shape):
        have = ",".join(map(str, shape))
        raise UserError(f"shape = {data.shape}, but samples of {data.source} have {have}: leave shape empty")


def _checked_dims(data: Data) -> tuple[int, ...]:
    dims = data.dims
    if 0 in dims or (dims and data.source == "folder" and (len(dims) != 3 or dims[0] not in (1, 3))):
        raise UserError(f"shape = {data.shape}: give channels (1 or 3 for images), height and width")
    return dims


# Mixtures


class Gaussians(Source):
    """Draws from the mixtures of one family, as many as the settings ask for."""

    def __init__(self, data: Data, seed: int):
        self.data, self.seed = data, seed
        self.names, self.shape = _constants(data)

    @property
    def counts(self) -> list[int]:
        if not self.data.head_count and self.data.imbalance != "counts":
            raise UserError("gaussians have no largest count of their own: set head-count, such as 1000")
        return _counts(self.data, [_UNLIMITED] * len(self.names))

    def load(self, y: int) -> ClassData:
        _, held_out, train = self._draw(y, self.counts[_existing(y, len(self.names))])
        return ClassData(train, held_out)

    def test(self, y: int) -> Tensor:
        return self._draw(y, 0)[0]

    def unseen(self, y: int) -> Tensor:
        test, held_out, _ = self._draw(y, 0)
        return torch.cat([held_out, test])

    def look_through(self, y: int) -> Fingerprint:
        return fingerprint(self.train(y))

    def _draw(self, y: int, count: int) -> list[Tensor]:
        """Test, held-out and training part, drawn one after the other, so that a later never changes an earlier one."""
        mixture = _family(self.data)[_existing(y, len(self.names))]
        draw = generator(self.seed, y, 0, "data")
        sizes = (self.data.test, self.data.held_out, count)
        return [mixture.sample(size, draw).float() if size else torch.empty(0, mixture.dimension) for size in sizes]


def _family(data: Data) -> list[Mixture]:
    if data.mixture not in MIXTURES:
        raise UserError(f"mixture = {data.mixture} is unknown: choose one of {', '.join(MIXTURES)}")
    family: list[Mixture] = MIXTURES[data.mixture]()
    return family


# Files


class FileSource(Source):
    """Samples that lie in files. A part that the data come without is cut from the training part."""

    def __init__(self, data: Data, seed: int, opened: Opened):
        self.data, self.seed, self.opened = data, seed, opened
        self.names, self.shape = opened.names, opened.shape
        sizes = np.bincount(opened.train.labels, minlength=len(self.names)).tolist()
        self.cut_test = 0 if opened.test else data.test
        self.cut_held_out = 0 if opened.held_out else data.held_out
        self.sizes: list[int] = sizes

    @property
    def cuts_test(self) -> bool:
        return self.opened.test is None

    @property
    def whole(self) -> bool:
        return len(self.names) > 1 or self.data.classes < 2

    @property
    def counts(self) -> list[int]:
        if not self.whole:
            raise UserError(f"{self.data.path} holds one class of {self.data.classes}: the others are unknown")
        return [self._count(0)] if len(self.names) == 1 else _counts(self.data, self._remaining())

    def load(self, y: int) -> ClassData:
        _, held_out, train, _ = self._cut(y)
        if self.opened.held_out:
            return ClassData(self.opened.train.read(train), self.held_out(y))
        samples = self.opened.train.read(np.concatenate([held_out, train]))
        return ClassData(samples[len(held_out) :].clone(), samples[: len(held_out)].clone())

    def train(self, y: int) -> Tensor:
        return self.opened.train.read(self._cut(y)[2])

    def held_out(self, y: int) -> Tensor:
        if not self.opened.held_out:
            return self.opened.train.read(self._cut(y)[1])
        return self.opened.held_out.read(self._shuffled(self.opened.held_out, y, "held-out")[: self.data.held_out])

    def test(self, y: int) -> Tensor:
        part = self.opened.test or self.opened.train
        return part.read(self._test_rows(y))

    def unseen(self, y: int) -> Tensor:
        test, held_out, _, left_over = self._cut(y)
        parts = [self.opened.train.read(np.concatenate([held_out, left_over, test]))]
        if self.opened.held_out:
            parts.insert(0, self.opened.held_out.read(self._shuffled(self.opened.held_out, y, "held-out")))
        if self.opened.test:
            parts.append(self.test(y))
        return torch.cat(parts)

    def look_through(self, y: int) -> Fingerprint:
        self._test_rows(y)  # raises where there are too few
        train = set(self._cut(y)[2].tolist())
        marks = []
        for rows, samples in _blocks(self.opened.train, self._own(self.opened.train, y)):
            marks += [mark(sample) for row, sample in zip(rows.tolist(), samples, strict=True) if row in train]
        for part in (self.opened.held_out, self.opened.test):
            for _ in _blocks(part, self._own(part, y)) if part else ():
                pass
        return combined(marks)

    @property
    def notices(self) -> list[str]:
        sentences = [*self.opened.notices]
        for name, part in (("held-out", self.opened.held_out), ("test", self.opened.test)):
            if part and (strangers := int((part.labels < 0).sum())):
                sentences.append(f"left out: {strangers} samples of the {name} part, whose classes are not trained on")
        if self.opened.seen:
            sentences += self.opened.seen.notices(self.data.path or self.data.source)
        return sentences

    def _own(self, part: Part, y: int) -> Rows:
        """Rows of class y, [n], in the order of the part."""
        if len(self.names) == 1:
            _existing(y, self.data.classes or y + 1)
            return np.flatnonzero(part.labels == 0)
        return np.flatnonzero(part.labels == _existing(y, len(self.names)))

    def _cut(self, y: int) -> tuple[Rows, Rows, Rows, Rows]:
        """Rows of class y in the training part: test and held-out, training, and what the long tail leaves over."""
        own = self._own(self.opened.train, y)
        count = self._count(y)
        draw = generator(self.seed, y, 0, "split")
        test, held_out, pool = long_tail.split(len(own), self.cut_test, self.cut_held_out, draw)
        return own[test.numpy()], own[held_out.numpy()], own[pool.numpy()[:count]], own[pool.numpy()[count:]]

    def _test_rows(self, y: int) -> Rows:
        if not self.opened.test:
            return self._cut(y)[0]
        rows = self._shuffled(self.opened.test, y, "test")
        if len(rows) < self.data.test:
            raise UserError(f"the test part has {len(rows)} samples of class {y}: lower test = {self.data.test}")
        return rows[: self.data.test or len(rows)]

    def _shuffled(self, part: Part, y: int, purpose: str) -> Rows:
        """Class y's rows of a part of its own, in an order that the seed decides."""
        own = self._own(part, y)
        order: Rows = torch.randperm(len(own), generator=generator(self.seed, y, 0, purpose)).numpy()
        return own[order]

    def _remaining(self) -> list[int]:
        """What each class has to train on beside its other parts."""
        return long_tail.remaining(self.sizes, self.names, self.cut_test, self.cut_held_out)

    def _count(self, y: int) -> int:
        if len(self.names) > 1:
            return _counts(self.data, self._remaining())[y]
        # A client's own file is as long as life made it: only an explicit count shortens it.
        (own,) = self._remaining()
        if self.data.imbalance != "counts":
            return own
        available = [_UNLIMITED] * (self.data.classes or len(_explicit_counts(self.data)))
        available[_existing(y, len(available))] = own
        return _counts(self.data, available)[y]


def _blocks(part: Part, rows: Rows) -> Iterator[tuple[Rows, Tensor]]:
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        yield block, part.read(block)


def _existing(y: int, classes: int) -> int:
    if not 0 <= y < classes:
        raise UserError(f"class {y} does not exist: there are {classes}, numbered from 0; check classes")
    return y


def _counts(data: Data, available: list[int]) -> list[int]:
    return long_tail.counts(available, data.imbalance, data.imbalance_ratio, data.head_count, _explicit_counts(data))


def _explicit_counts(data: Data) -> list[int]:
    return [int(count) for count in data.counts.split(",")] if data.counts else []


def _open(data: Data, instead: str = "", keep: bool = False) -> Opened:
    """The files of the source, checked against the settings; `instead`: the setting that would make do without."""
    if data.source in ("npz", "folder") and not data_path(data).exists():
        advice = f"set data-path, or {instead} where there is no data" if instead else "set data-path"
        raise UserError(f"{data.path} is missing: {advice}")
    if data.source == "npz":
        from fedmutual.data.npz import open_npz

        opened = open_npz(data_path(data), keep)
    elif data.source == "folder":
        from fedmutual.data.folder import open_folder

        opened = open_folder(data_path(data), _checked_dims(data))
    else:
        _constants(data)  # raises where settings contradict the source
        opened = open_named(data.source, lambda: data_path(data), data.download)
    _agree(data, len(opened.names) if len(opened.names) > 1 else data.classes, opened.shape)
    return opened


def data_path(data: Data) -> Path:
    """Where the data lie.

    Raises:
        UserError: the settings do not say.
    """
    if not data.path:
        raise UserError(f"data-path is missing: data = {data.source} is read from there")
    return Path(data.path).expanduser()
