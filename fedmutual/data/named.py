"""Data sets that are known by name: digits of scikit-learn's, and torchvision's."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedmutual.data.parts import Opened, Part, Rows, readable
from fedmutual.data.pixels import Seen, scaled
from fedmutual.errors import UserError

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

NAMED: dict[str, tuple[list[str], tuple[int, ...]]] = {
    "digits": (_DIGITS, (1, 8, 8)),
    "mnist": (_DIGITS, (1, 28, 28)),
    "fashion-mnist": (_CLOTHES.split("|"), (1, 28, 28)),
    "cifar10": (_CIFAR10.split(), (3, 32, 32)),
    "cifar100": (_CIFAR100.split(), (3, 32, 32)),
}
"""{name: (names of the classes, shape of a sample)}"""

_TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}


def open_named(source: str, path: Callable[[], Path], download: bool) -> Opened:
    """A data set of `NAMED`; `path` says where torchvision's lie, and is asked for those alone.

    Raises:
        UserError: it cannot be loaded.
    """
    names, shape = NAMED[source]
    if source == "digits":
        return Opened(names, shape, DigitsPart())
    train, test = (TorchvisionPart(source, path(), which == "train", download) for which in ("train", "test"))
    return Opened(names, shape, train, test=test)


class DigitsPart(Part):
    """The 1,797 digits of scikit-learn, whose pixels are from 0 to 16."""

    @cached_property
    def _digits(self) -> Any:
        from sklearn.datasets import load_digits

        return load_digits()

    @cached_property
    def labels(self) -> Rows:
        labels: Rows = self._digits.target
        return labels

    def read(self, rows: Rows) -> Tensor:
        return scaled(self._digits.images[rows] / 8 - 1, "digits", Seen())[:, None]


def _edited(kind: Any, path: Path) -> Path | None:
    """The first file of a torchvision data set that is there with another checksum; None where there is none."""
    from torchvision.datasets.utils import check_integrity

    if not hasattr(kind, "base_folder"):  # MNIST's are read as they are, and never downloaded where they are there
        return None
    known = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    files = [(path / kind.base_folder / name, checksum) for name, checksum in known]
    return next((file for file, checksum in files if file.is_file() and not check_integrity(str(file), checksum)), None)


class TorchvisionPart(Part):
    """A part of torchvision's, which is read whole, and then held for as long as its source is."""

    def __init__(self, source: str, path: Path, train: bool, download: bool):
        self.source, self.path, self.is_train, self.download = source, path, train, download

    @cached_property
    def _dataset(self) -> Any:
        from torchvision import datasets  # seconds to import

        remedy = "check the connection" if self.download else "set data-path to its folder, or download = true"
        kind = getattr(datasets, _TORCHVISION[self.source])
        if edited := _edited(kind, self.path):
            raise UserError(
                f"{edited} is not as {self.source} has it, and a download would write over it: move it elsewhere to "
                "get the real one, or store images of your own as a .npz or a folder"
            )
        with readable(f"{self.source} cannot be loaded from {self.path}", remedy):
            return kind(self.path, train=self.is_train, download=self.download)

    @cached_property
    def labels(self) -> Rows:
        return np.asarray(self._dataset.targets)

    @cached_property
    def _images(self) -> NDArray[Any]:
        return np.asarray(self._dataset.data)

    def read(self, rows: Rows) -> Tensor:
        samples = scaled(self._images[rows], self.source, Seen())
        return samples[:, None] if samples.ndim == 3 else samples.movedim(-1, 1).contiguous()
