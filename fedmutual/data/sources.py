"""Where samples come from: each client loads its own class and nothing else.

Every source is opened as a `_Part`: the class of each row, and a way to read chosen rows. What a call returns
has its own memory, and nothing is kept between calls. Image bytes become [-1, 1] by x / 127.5 - 1.
"""

import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedmutual.config import RunConfig, UserError
from fedmutual.data import long_tail
from fedmutual.data.mixtures import MIXTURES, Mixture
from fedmutual.seeds import generator


@dataclass(frozen=True)
class ClassData:
    """One client's private samples, each part [n, *dims], float32 on the CPU, in memory of its own."""

    train: Tensor
    held_out: Tensor


@dataclass(frozen=True)
class _Part:
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


_Which = Literal["train", "test"]
_DIGITS = [str(digit) for digit in range(10)]
_CLOTHES = "T-shirt/top|Trouser|Pullover|Dress|Coat|Sandal|Shirt|Sneaker|Bag|Ankle boot"
_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"""
_NAMED = {
    "digits": (_DIGITS, (1, 8, 8)),
    "mnist": (_DIGITS, (1, 28, 28)),
    "fashion-mnist": (_CLOTHES.split("|"), (1, 28, 28)),
    "cifar10": (_CIFAR10.split(), (3, 32, 32)),
    "cifar100": (_CIFAR100.split(), (3, 32, 32)),
}
_TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_UNLIMITED = sys.maxsize
_CHUNK = 2**18  # bytes of a .npz that are held beside the rows that are kept


def num_classes(config: RunConfig) -> int:
    """Number of classes: a constant of a named source, else the setting `classes`, else read at data-path.

    Raises:
        UserError: a setting that contradicts the source, or nothing to read it from.
    """
    if config.data not in ("npz", "folder") or not config.classes:
        return len(class_names(config))
    return config.classes


def class_names(config: RunConfig) -> list[str]:
    """Names by class number; plain numbers where the setting `classes` stands in for the data.

    Raises:
        UserError: as `num_classes`.
    """
    if config.data not in ("npz", "folder"):
        return _constants(config)[0]
    if config.classes:
        return [str(y) for y in range(config.classes)]
    return _open(config, "train", instead="classes").names


def sample_shape(config: RunConfig) -> tuple[int, ...]:
    """Shape of one sample, channels first: the setting `shape`, or read like `num_classes`.

    Raises:
        UserError: as `num_classes`.
    """
    if config.data not in ("npz", "folder"):
        return _constants(config)[1]
    return _checked_dims(config) or _open(config, "train", instead="shape").shape


def load_class(config: RunConfig, y: int) -> ClassData:
    """Class y's training and held-out parts. A source of one class is this client's own, whatever y is.

    Raises:
        UserError: no such class, or data that cannot be used.
    """
    if config.data == "gaussians":
        count = training_counts(config)[_existing(y, num_classes(config))]
        _, held_out, train = _draw(config, y, config.test, config.held_out, count)
        return ClassData(train, held_out)
    part = _open(config, "train")
    own = _own_rows(config, part, y)
    count = _training_count(config, part, y)
    _, held_out, pool = _cut(config, part, y, len(own))
    samples = _samples(part, own[np.concatenate([held_out, pool[:count]])])
    return ClassData(samples[config.held_out :].clone(), samples[: config.held_out].clone())


def load_test(config: RunConfig, y: int) -> Tensor:
    """Class y's test part, [n, *dims]; empty where there is none.

    Raises:
        UserError: as `load_class`, or a test part with fewer samples than the setting `test`.
    """
    if config.data == "gaussians":
        _existing(y, num_classes(config))
        return _draw(config, y, config.test)[0]
    part = _open(config, "test")
    own = _own_rows(config, part, y)
    if not part.has_test:
        return _samples(part, own[_cut(config, part, y, len(own))[0]])
    if len(own) < config.test:
        raise UserError(f"the test part has {len(own)} samples of class {y}: lower test = {config.test}")
    order = torch.randperm(len(own), generator=generator(config.seed, y, 0, "test")).numpy()
    return _samples(part, own[order[: config.test or len(own)]])


def training_counts(config: RunConfig) -> list[int]:
    """Training samples of every class, the long tail applied.

    Raises:
        UserError: settings that ask for more than there is, or a source that holds one client's class only.
    """
    if config.data == "gaussians":
        if not config.head_count and config.imbalance != "counts":
            raise UserError("gaussians have no largest count of their own: set head-count, such as 1000")
        return _counts(config, [_UNLIMITED] * num_classes(config))
    part = _open(config, "train")
    if len(part.names) == 1:
        if config.classes > 1:
            raise UserError(f"{config.data_path} holds one class of {config.classes}: the others are unknown")
        return [_training_count(config, part, 0)]
    return _counts(config, _remaining(config, part))


# Which rows are whose


def _existing(y: int, classes: int) -> int:
    if not 0 <= y < classes:
        raise UserError(f"class {y} does not exist: there are {classes}, numbered from 0; check classes")
    return y


def _own_rows(config: RunConfig, part: _Part, y: int) -> np.ndarray:
    """Rows of class y, [n], in the order of the source."""
    if len(part.names) == 1:
        _existing(y, config.classes or y + 1)
        return np.flatnonzero(part.labels == 0)
    return np.flatnonzero(part.labels == _existing(y, len(part.names)))


def _cut(config: RunConfig, part: _Part, y: int, size: int) -> list[np.ndarray]:
    """Positions within class y, which has `size` samples, of its test part, held-out part and pool."""
    _remaining(config, part)
    draw = generator(config.seed, y, 0, "split")
    parts = long_tail.split(size, 0 if part.has_test else config.test, config.held_out, draw)
    return [positions.numpy() for positions in parts]


def _remaining(config: RunConfig, part: _Part) -> list[int]:
    """What each class has to train on beside its other parts."""
    test = 0 if part.has_test else config.test
    return long_tail.remaining(part.sizes, part.names, test, config.held_out)


def _counts(config: RunConfig, available: list[int]) -> list[int]:
    return long_tail.counts(
        available, config.imbalance, config.imbalance_ratio, config.head_count, _explicit_counts(config)
    )


def _explicit_counts(config: RunConfig) -> list[int]:
    return [int(count) for count in config.counts.split(",")] if config.counts else []


def _training_count(config: RunConfig, part: _Part, y: int) -> int:
    if len(part.names) > 1:
        return _counts(config, _remaining(config, part))[y]
    # A client's own file is as long as life made it: only an explicit count shortens it.
    (own,) = _remaining(config, part)
    if config.imbalance != "counts":
        return own
    available = [_UNLIMITED] * (config.classes or len(_explicit_counts(config)))
    available[_existing(y, len(available))] = own
    return _counts(config, available)[y]


# Sources that are known by name


def _constants(config: RunConfig) -> tuple[list[str], tuple[int, ...]]:
    """Names and sample shape of a source that needs no data to tell them."""
    if config.data == "gaussians":
        family = _family(config)
        names, shape = [str(y) for y in range(len(family))], (family[0].dimension,)
    else:
        names, shape = _NAMED[config.data]
    _agree(config, len(names), shape)
    return list(names), shape


def _agree(config: RunConfig, classes: int, shape: tuple[int, ...]) -> None:
    if config.classes not in (0, classes):
        raise UserError(f"classes = {config.classes}, but {config.data} has {classes}: leave classes at 0")
    if config.dims not in ((), shape):
        have = ",".join(map(str, shape))
        raise UserError(f"shape = {config.shape}, but samples of {config.data} have {have}: leave shape empty")


def _family(config: RunConfig) -> list[Mixture]:
    if config.mixture not in MIXTURES:
        raise UserError(f"mixture = {config.mixture} is unknown: choose one of {', '.join(MIXTURES)}")
    return MIXTURES[config.mixture]()


def _draw(config: RunConfig, y: int, *sizes: int) -> list[Tensor]:
    """Consecutive parts of class y's draws, so that a later part never changes an earlier one."""
    mixture = _family(config)[y]
    draw = generator(config.seed, y, 0, "data")
    empty = torch.empty(0, mixture.dimension)
    return [mixture.sample(size, draw).float() if size else empty.clone() for size in sizes]


def _digits(config: RunConfig, which: _Which) -> _Part:
    from sklearn.datasets import load_digits

    digits = load_digits()
    names, shape = _constants(config)
    return _Part(names, digits.target, shape, lambda rows: digits.images[rows] / 8 - 1)


def _torchvision(config: RunConfig, which: _Which) -> _Part:
    from torchvision import datasets  # seconds to import

    names, shape = _constants(config)
    remedy = "check the connection" if config.download else "set data-path to its folder, or download = true"
    with _mendable(f"{config.data} cannot be loaded from {config.data_path}", remedy):
        dataset = getattr(datasets, _TORCHVISION[config.data])(
            _path(config), train=which == "train", download=config.download
        )
    images, labels = np.asarray(dataset.data), np.asarray(dataset.targets)
    return _Part(names, labels, shape, lambda rows: images[rows], has_test=True)


# Files of the user


def _open(config: RunConfig, which: _Which, instead: str = "") -> _Part:
    """A part of the source, checked against the settings; `instead`: the setting that would make do without."""
    if config.data in ("npz", "folder") and not _path(config).exists():
        advice = f"set data-path, or {instead} where there is no data" if instead else "set data-path"
        raise UserError(f"{config.data_path} is missing: {advice}")
    part = {"digits": _digits, "npz": _npz, "folder": _folder}.get(config.data, _torchvision)(config, which)
    if len(part.names) > 1:
        _agree(config, len(part.names), part.shape)
    else:
        _agree(config, config.classes, part.shape)
    return part


def _path(config: RunConfig) -> Path:
    if not config.data_path:
        raise UserError(f"data-path is missing: data = {config.data} is read from there")
    return Path(config.data_path).expanduser()


@contextmanager
def _mendable(what: str, remedy: str) -> Iterator[None]:
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


def _samples(part: _Part, rows: np.ndarray) -> Tensor:
    """Rows as float32 [n, *dims]; bytes scaled to [-1, 1], floats as they are."""
    images = part.read(rows)
    with np.errstate(over="ignore"):  # reported below
        samples = torch.from_numpy(images.astype(np.float32, order="C"))
    if images.dtype == np.uint8:
        samples.div_(127.5).sub_(1)
    elif not samples.isfinite().all():
        raise UserError("images hold values that are not finite float32 numbers: clean them")
    if samples.ndim == 4:
        samples = samples.movedim(-1, 1).contiguous()
    return samples.reshape(len(samples), *part.shape)


def _npz(config: RunConfig, which: _Which) -> _Part:
    path = _path(config)
    with _mendable(f"{path} is not a whole .npz file", "write it again with numpy.savez"):
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
        with _mendable(f"{path} is not a whole .npz file", "write it again with numpy.savez"):
            return _read_rows(path, f"{prefix}images", rows)

    # Labels of a test part that the training part lacks belong to nobody: -1.
    numbers = np.where(np.isin(labels, values), np.searchsorted(values, labels), -1)
    return _Part([str(value) for value in values], numbers, shape, read, has_test)


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


def _folder(config: RunConfig, which: _Which) -> _Part:
    path = _path(config)
    with _mendable(f"{path} is not a readable folder", "set data-path to a folder of images"):
        # Without sub-folders, the folder itself is one class.
        folders = [entry for entry in _visible(path) if entry.is_dir()] or [path]
        files = [[entry for entry in _visible(f) if entry.suffix.lower() in _IMAGES] for f in folders]
    for folder, images in zip(folders, files, strict=True):
        if not images:
            raise UserError(f"{folder} holds no PNG, JPEG, WebP or BMP image: each class needs its own")
    every = [image for images in files for image in images]
    labels = np.repeat(np.arange(len(files)), [len(images) for images in files])
    dims = _checked_dims(config)
    shape = dims or _image_shape(every[0])

    def read(rows: np.ndarray) -> np.ndarray:
        blank = np.empty((0, *shape[1:], *shape[:1]), np.uint8)
        return np.stack([_image(every[row], shape, bool(dims)) for row in rows]) if len(rows) else blank

    return _Part([folder.name for folder in folders], labels, shape, read)


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _checked_dims(config: RunConfig) -> tuple[int, ...]:
    dims = config.dims
    if 0 in dims or (dims and config.data == "folder" and (len(dims) != 3 or dims[0] not in (1, 3))):
        raise UserError(f"shape = {config.shape}: give channels (1 or 3 for images), height and width")
    return dims


def _image_shape(path: Path) -> tuple[int, ...]:
    """Shape of an image by its header alone."""
    from PIL import Image

    with _mendable(f"{path} is not a whole image", "replace or remove it"), Image.open(path) as image:
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
    with _mendable(f"{path} is not a whole image", "replace or remove it"), Image.open(path) as image:
        if image.mode[0] in "IF":
            raise UserError(f"{path} has more than 8 bits a pixel: convert it, or use a .npz of floats")
        image = image.convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(image).reshape(height, width, channels)
