"""What a user's own data are, before anything is trained: classes, parts, values, and samples that occur twice."""

import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from fedmutual.config import Data
from fedmutual.data.check import OnRead
from fedmutual.data.files import FileSource
from fedmutual.data.fingerprint import mark
from fedmutual.data.opening import open_source
from fedmutual.errors import UserError

FIRST = 8
"""Samples of each class that an overview keeps, for a picture."""

Place = tuple[str, int]
"""(part, class) of a sample."""


@dataclass
class Overview:
    """All that there is in a folder of images or a .npz.

    counts: {part: samples of each class}; shape: of a sample, channels first; ranges: {kind of number: lowest and
    highest value that is stored}; first: {class: its first samples}; twice: {(a place, another, or the same): how many
    samples of the second are copies of one in the first}; notices: what a user should know, a sentence each.
    """

    names: list[str]
    shape: tuple[int, ...]
    counts: dict[str, list[int]]
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    first: dict[int, Tensor] = field(default_factory=dict)
    twice: dict[tuple[Place, Place], int] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


def settings_for(path: Path) -> dict[str, str]:
    """The settings that read a folder of images or a .npz.

    Raises:
        UserError: there is nothing, or something else.
    """
    if os.path.isdir(path):  # any text may be a path
        return {"data": "folder", "data-path": str(path)}
    if path.suffix == ".npz" and os.path.isfile(path):
        return {"data": "npz", "data-path": str(path)}
    what = "is neither a folder nor a .npz file" if os.path.exists(path) else "is missing"
    raise UserError(f"{path} {what}: name a folder of images or a .npz with images and labels")


def look(data: Data, on_read: OnRead = lambda done, total: None) -> Overview:
    """Read everything once; `on_read` is called with how many classes of all parts are read, and how many there are.

    Raises:
        UserError: data that cannot be used; names the class and the file.
    """
    source = open_source(data, seed=0)
    if not isinstance(source, FileSource):
        raise UserError(f"data = {data.source} is not a user's own: name a folder of images or a .npz file")
    opened = source.opened
    parts = {"train": opened.train, "held-out": opened.held_out, "test": opened.test}
    overview = Overview(source.names, source.shape, {})
    seen: dict[bytes, Place] = {}
    repeats: dict[tuple[Place, Place], int] = defaultdict(int)
    done, there = 0, {name: part for name, part in parts.items() if part}
    for name, part in there.items():
        overview.counts[name] = []
        for y in range(len(source.names)):
            rows = np.flatnonzero(part.labels == y)
            overview.counts[name].append(len(rows))
            for _, samples in part.blocks(rows):
                if name == "train":
                    overview.first.setdefault(y, samples[:FIRST].clone())
                for sample in samples:
                    known, here = mark(sample), (name, y)
                    if known in seen:
                        repeats[seen[known], here] += 1
                    seen.setdefault(known, here)
            done += 1
            on_read(done, len(there) * len(source.names))
    overview.twice = dict(repeats)
    overview.ranges = dict(opened.seen.ranges) if opened.seen else {}
    overview.notices = source.notices
    return overview
