"""Samples that lie in files: each class's are cut into parts that the seed alone decides."""

from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fedmutual.config import Data
from fedmutual.data import long_tail
from fedmutual.data.fingerprint import Fingerprint, combined, mark
from fedmutual.data.parts import Opened, Part, Rows
from fedmutual.data.source import ClassData, Source, existing
from fedmutual.errors import UserError
from fedmutual.seeds import generator


class FileSource(Source):
    """Samples that lie in files. A part that the data come without is cut from the training part."""

    def __init__(self, data: Data, seed: int, opened: Opened):
        self.data, self.seed, self.opened = data, seed, opened
        self.names, self.shape = opened.names, opened.shape
        sizes = np.bincount(opened.train.labels, minlength=len(self.names)).tolist()
        self.cut_test = 0 if opened.test else data.test
        self.cut_held_out = 0 if opened.held_out else data.held_out
        self.sizes: list[int] = sizes
        self._indexes: dict[Part, list[Rows]] = {}

    @property
    def cuts_test(self) -> bool:
        return self.opened.test is None

    @property
    def whole(self) -> bool:
        return len(self.names) > 1 or self.data.classes < 2

    @cached_property
    def counts(self) -> list[int]:
        if not self.whole:
            raise UserError(f"{self.data.path} holds one class of {self.data.classes}: the others are unknown")
        return [self._count(0)] if len(self.names) == 1 else long_tail.counts_of(self.data, self._remaining())

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
        for rows, samples in self.opened.train.blocks(self._own(self.opened.train, y)):
            marks += [mark(sample) for row, sample in zip(rows.tolist(), samples, strict=True) if row in train]
        for part in (self.opened.held_out, self.opened.test):
            for _ in part.blocks(self._own(part, y)) if part else ():
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
            existing(y, self.data.classes or y + 1)
            return np.flatnonzero(part.labels == 0)
        return self._rows_by_class(part)[existing(y, len(self.names))]

    def _rows_by_class(self, part: Part) -> list[Rows]:
        """The rows of every class of a part, sorted once: a search for each class would look at all rows every time."""
        if part not in self._indexes:
            labels, order = part.labels, np.argsort(part.labels, kind="stable")
            ends = np.searchsorted(labels[order], np.arange(len(self.names) + 1))
            self._indexes[part] = [order[start:end] for start, end in pairwise(ends.tolist())]
        return self._indexes[part]

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
            return self.counts[y]
        # A client's own file is as long as life made it: only an explicit count shortens it.
        (own,) = self._remaining()
        if self.data.imbalance != "counts":
            return own
        available = [long_tail.UNLIMITED] * (self.data.classes or len(long_tail.explicit_counts(self.data)))
        available[existing(y, len(available))] = own
        return long_tail.counts_of(self.data, available)[y]
