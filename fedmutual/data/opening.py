"""From the settings to the data: opens their source, and says what is known of it before, such as names and shape."""

import os
from pathlib import Path

from fedmutual.config import Data
from fedmutual.data.files import FileSource
from fedmutual.data.folder import open_folder
from fedmutual.data.gaussians import Gaussians
from fedmutual.data.named import NAMED, open_named
from fedmutual.data.npz import open_npz
from fedmutual.data.parts import Opened
from fedmutual.data.source import Source
from fedmutual.errors import UserError


def open_source(data: Data, seed: int, keep: bool = False) -> Source:
    """Open the data of the settings; `keep` what is read in memory, for a caller that reads every class.

    Raises:
        UserError: data that are missing or cannot be used, or settings that contradict them.
    """
    if data.source == "gaussians":
        _constants(data)  # raises where settings contradict the source
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
        mixtures = Gaussians(data, seed=0)  # whose names and shape are the same for every seed
        names, shape = mixtures.names, mixtures.shape
    else:
        names, shape = NAMED[data.source]
    _agree(data, len(names), shape)
    return list(names), shape


def _agree(data: Data, classes: int, shape: tuple[int, ...]) -> None:
    if data.classes not in (0, classes):
        raise UserError(f"classes = {data.classes}, but {data.source} has {classes}: set classes=0, which counts them")
    if data.dims not in ((), shape):
        have = ",".join(map(str, shape))
        raise UserError(f"shape = {data.shape}, but samples of {data.source} have {have}: leave shape empty")


def _checked_dims(data: Data) -> tuple[int, ...]:
    dims = data.dims
    if 0 in dims or (dims and data.source == "folder" and (len(dims) != 3 or dims[0] not in (1, 3))):
        raise UserError(f"shape = {data.shape}: give channels (1 or 3 for images), height and width")
    return dims


# Opening


def _open(data: Data, instead: str = "", keep: bool = False) -> Opened:
    """The files of the source, checked against the settings; `instead`: the setting that is enough without them."""
    if data.source in ("npz", "folder") and not os.path.exists(_data_path(data)):  # any text may be a path
        advice = f"set data-path, or {instead} where there is no data" if instead else "set data-path"
        raise UserError(f"{data.path} is missing: {advice}")
    if data.source == "npz":
        opened = open_npz(_data_path(data), keep, data.size)
    elif data.source == "folder":
        opened = open_folder(_data_path(data), _checked_dims(data), data.size)
    else:
        _constants(data)  # raises where settings contradict the source
        opened = open_named(data.source, lambda: _data_path(data), data.download)
    _agree(data, len(opened.names) if len(opened.names) > 1 else data.classes, opened.shape)
    return opened


def _data_path(data: Data) -> Path:
    """Where the data lie; raises `UserError` where the settings do not say."""
    if not data.path:
        raise UserError(f"data-path is missing: data = {data.source} is read from there")
    return Path(os.path.expanduser(data.path))
