"""Where samples come from: each client loads its own class and nothing else.

Every source is opened as a `Part`: the class of each row, and a way to read chosen rows. What a call returns
has its own memory, and nothing is kept between calls. Image bytes become [-1, 1] by x / 127.5 - 1.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedmutual.config import RunConfig
from fedmutual.data import long_tail
from fedmutual.data.files import Part, Which, folder, mendable, npz
from fedmutual.data.mixtures import MIXTURES, Mixture
from fedmutual.errors import UserError
from fedmutual.seeds import generator


@dataclass(frozen=True)
class ClassData:
    """One client's private samples, each part [n, *dims], float32 on the CPU, in memory of its own."""

    train: Tensor
    held_out: Tensor


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
_UNLIMITED = sys.maxsize


def num_classes(config: RunConfig) -> int:
    """Number of classes: a constant of a named source, else the setting `classes`, else read at data-path.

    Raises:
        UserError: a setting that contradicts the source, or nothing to read it from.
    """
    if config.data.source not in ("npz", "folder") or not config.data.classes:
        return len(class_names(config))
    return config.data.classes


def class_names(config: RunConfig) -> list[str]:
    """Names by class number; plain numbers where the setting `classes` stands in for the data.

    Raises:
        UserError: as `num_classes`.
    """
    if config.data.source not in ("npz", "folder"):
        return _constants(config)[0]
    if config.data.classes:
        return [str(y) for y in range(config.data.classes)]
    return _open(config, "train", instead="classes").names


def sample_shape(config: RunConfig) -> tuple[int, ...]:
    """Shape of one sample, channels first: the setting `shape`, or read like `num_classes`.

    Raises:
        UserError: as `num_classes`.
    """
    if config.data.source not in ("npz", "folder"):
        return _constants(config)[1]
    return _checked_dims(config) or _open(config, "train", instead="shape").shape


def load_class(config: RunConfig, y: int) -> ClassData:
    """Class y's training and held-out parts. A source of one class is this client's own, whatever y is.

    Raises:
        UserError: no such class, or data that cannot be used.
    """
    if config.data.source == "gaussians":
        count = training_counts(config)[_existing(y, num_classes(config))]
        _, held_out, train = _draw(config, y, config.data.test, config.data.held_out, count)
        return ClassData(train, held_out)
    part = _open(config, "train")
    own = _own_rows(config, part, y)
    count = _training_count(config, part, y)
    _, held_out, pool = _cut(config, part, y, len(own))
    samples = _samples(part, own[np.concatenate([held_out, pool[:count]])])
    return ClassData(samples[config.data.held_out :].clone(), samples[: config.data.held_out].clone())


def load_test(config: RunConfig, y: int) -> Tensor:
    """Class y's test part, [n, *dims]; empty where there is none.

    Raises:
        UserError: as `load_class`, or a test part with fewer samples than the setting `test`.
    """
    if config.data.source == "gaussians":
        _existing(y, num_classes(config))
        return _draw(config, y, config.data.test)[0]
    part = _open(config, "test")
    own = _own_rows(config, part, y)
    if not part.has_test:
        return _samples(part, own[_cut(config, part, y, len(own))[0]])
    if len(own) < config.data.test:
        raise UserError(f"the test part has {len(own)} samples of class {y}: lower test = {config.data.test}")
    order = torch.randperm(len(own), generator=generator(config.seed, y, 0, "test")).numpy()
    return _samples(part, own[order[: config.data.test or len(own)]])


def load_unseen(config: RunConfig, y: int) -> Tensor:
    """Class y's samples that no training saw, [n, *dims]: held-out part, what the long tail left over, test part.

    Raises:
        UserError: as `load_class` and `load_test`.
    """
    if config.data.source == "gaussians":
        return torch.cat([load_class(config, y).held_out, load_test(config, y)])
    part = _open(config, "train")
    own = _own_rows(config, part, y)
    test, held_out, pool = _cut(config, part, y, len(own))
    left_over = pool[_training_count(config, part, y) :]
    unseen = _samples(part, own[np.concatenate([held_out, left_over, test])])
    return torch.cat([unseen, load_test(config, y)]) if part.has_test else unseen


def training_counts(config: RunConfig) -> list[int]:
    """Training samples of every class, the long tail applied.

    Raises:
        UserError: settings that ask for more than there is, or a source that holds one client's class only.
    """
    if config.data.source == "gaussians":
        if not config.data.head_count and config.data.imbalance != "counts":
            raise UserError("gaussians have no largest count of their own: set head-count, such as 1000")
        return _counts(config, [_UNLIMITED] * num_classes(config))
    part = _open(config, "train")
    if len(part.names) == 1:
        if config.data.classes > 1:
            raise UserError(f"{config.data.path} holds one class of {config.data.classes}: the others are unknown")
        return [_training_count(config, part, 0)]
    return _counts(config, _remaining(config, part))


# Which rows are whose


def _existing(y: int, classes: int) -> int:
    if not 0 <= y < classes:
        raise UserError(f"class {y} does not exist: there are {classes}, numbered from 0; check classes")
    return y


def _own_rows(config: RunConfig, part: Part, y: int) -> np.ndarray:
    """Rows of class y, [n], in the order of the source."""
    if len(part.names) == 1:
        _existing(y, config.data.classes or y + 1)
        return np.flatnonzero(part.labels == 0)
    return np.flatnonzero(part.labels == _existing(y, len(part.names)))


def _cut(config: RunConfig, part: Part, y: int, size: int) -> list[np.ndarray]:
    """Positions within class y, which has `size` samples, of its test part, held-out part and pool."""
    _remaining(config, part)
    draw = generator(config.seed, y, 0, "split")
    parts = long_tail.split(size, 0 if part.has_test else config.data.test, config.data.held_out, draw)
    return [positions.numpy() for positions in parts]


def _remaining(config: RunConfig, part: Part) -> list[int]:
    """What each class has to train on beside its other parts."""
    test = 0 if part.has_test else config.data.test
    return long_tail.remaining(part.sizes, part.names, test, config.data.held_out)


def _counts(config: RunConfig, available: list[int]) -> list[int]:
    return long_tail.counts(
        available, config.data.imbalance, config.data.imbalance_ratio, config.data.head_count, _explicit_counts(config)
    )


def _explicit_counts(config: RunConfig) -> list[int]:
    return [int(count) for count in config.data.counts.split(",")] if config.data.counts else []


def _training_count(config: RunConfig, part: Part, y: int) -> int:
    if len(part.names) > 1:
        return _counts(config, _remaining(config, part))[y]
    # A client's own file is as long as life made it: only an explicit count shortens it.
    (own,) = _remaining(config, part)
    if config.data.imbalance != "counts":
        return own
    available = [_UNLIMITED] * (config.data.classes or len(_explicit_counts(config)))
    available[_existing(y, len(available))] = own
    return _counts(config, available)[y]


# Sources that are known by name


def _constants(config: RunConfig) -> tuple[list[str], tuple[int, ...]]:
    """Names and sample shape of a source that needs no data to tell them."""
    if config.data.source == "gaussians":
        family = _family(config)
        names, shape = [str(y) for y in range(len(family))], (family[0].dimension,)
    else:
        names, shape = _NAMED[config.data.source]
    _agree(config, len(names), shape)
    return list(names), shape


def _agree(config: RunConfig, classes: int, shape: tuple[int, ...]) -> None:
    if config.data.classes not in (0, classes):
        raise UserError(f"classes = {config.data.classes}, but {config.data.source} has {classes}: leave classes at 0")
    if config.data.dims not in ((), shape):
        have = ",".join(map(str, shape))
        raise UserError(
            f"shape = {config.data.shape}, but samples of {config.data.source} have {have}: leave shape empty"
        )


def _family(config: RunConfig) -> list[Mixture]:
    if config.data.mixture not in MIXTURES:
        raise UserError(f"mixture = {config.data.mixture} is unknown: choose one of {', '.join(MIXTURES)}")
    return MIXTURES[config.data.mixture]()


def _draw(config: RunConfig, y: int, *sizes: int) -> list[Tensor]:
    """Consecutive parts of class y's draws, so that a later part never changes an earlier one."""
    mixture = _family(config)[y]
    draw = generator(config.seed, y, 0, "data")
    empty = torch.empty(0, mixture.dimension)
    return [mixture.sample(size, draw).float() if size else empty.clone() for size in sizes]


def _digits(config: RunConfig) -> Part:
    from sklearn.datasets import load_digits

    digits = load_digits()
    names, shape = _constants(config)
    return Part(names, digits.target, shape, lambda rows: digits.images[rows] / 8 - 1)


def _torchvision(config: RunConfig, which: Which) -> Part:
    from torchvision import datasets  # seconds to import

    names, shape = _constants(config)
    remedy = "check the connection" if config.data.download else "set data-path to its folder, or download = true"
    with mendable(f"{config.data.source} cannot be loaded from {config.data.path}", remedy):
        dataset = getattr(datasets, _TORCHVISION[config.data.source])(
            _path(config), train=which == "train", download=config.data.download
        )
    images, labels = np.asarray(dataset.data), np.asarray(dataset.targets)
    return Part(names, labels, shape, lambda rows: images[rows], has_test=True)


# Files of the user


def _open(config: RunConfig, which: Which, instead: str = "") -> Part:
    """A part of the source, checked against the settings; `instead`: the setting that would make do without."""
    if config.data.source in ("npz", "folder") and not _path(config).exists():
        advice = f"set data-path, or {instead} where there is no data" if instead else "set data-path"
        raise UserError(f"{config.data.path} is missing: {advice}")
    if config.data.source == "npz":
        part = npz(_path(config), which)
    elif config.data.source == "folder":
        part = folder(_path(config), _checked_dims(config))
    else:
        part = _digits(config) if config.data.source == "digits" else _torchvision(config, which)
    if len(part.names) > 1:
        _agree(config, len(part.names), part.shape)
    else:
        _agree(config, config.data.classes, part.shape)
    return part


def _path(config: RunConfig) -> Path:
    if not config.data.path:
        raise UserError(f"data-path is missing: data = {config.data.source} is read from there")
    return Path(config.data.path).expanduser()


def _samples(part: Part, rows: np.ndarray) -> Tensor:
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


def _checked_dims(config: RunConfig) -> tuple[int, ...]:
    dims = config.data.dims
    if 0 in dims or (dims and config.data.source == "folder" and (len(dims) != 3 or dims[0] not in (1, 3))):
        raise UserError(f"shape = {config.data.shape}: give channels (1 or 3 for images), height and width")
    return dims
