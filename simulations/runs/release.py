"""`fedmutual release`: samples of a run as they are to be given away, attacked and put to use.

Everything is measured on what is released: of images the bytes of the PNG files, not the numbers that were drawn.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedmutual.data import open_source
from fedmutual.data.fingerprint import refuse_changed
from fedmutual.device import pick_device
from fedmutual.errors import UserError
from fedmutual.evaluation import near_copies, two_nearest
from fedmutual.evaluation.metrics import Nearest
from fedmutual.evaluation.usefulness import Scores, train_and_test, training_sets
from fedmutual.run_folder import AuditRow, read_facts
from simulations.runs.measuring import run_extractor
from simulations.runs.membership import LEAST, attack_run
from simulations.runs.networks import NOTHING_ELSE, read_networks, run_config, run_shape
from simulations.runs.sampling import OnClass, draw_samples

LEAST_SEEDS = 3
"""Classifiers of each training set: an interval over fewer says nothing."""

SUSPECTS = 24
"""Samples that the owner is shown beside what they are nearest to."""


class Suspect(NamedTuple):
    """A released sample that comes near to a training sample, by the ratio of distances to the two nearest.

    number: of the sample in its class of the release; rows: numbers of the two in the class's training samples.
    """

    class_: int
    number: int
    ratio: float
    distance: float
    rows: tuple[int, int]
    sample: Tensor
    nearest: tuple[Tensor, Tensor]


class Releasing:
    """A release in the making: checked when it is made, then `draw`, `attack`, `train_classifiers`.

    samples: {class: what is released, [n, *dims] in [-1, 1]}; classes: those that have a network.
    """

    def __init__(
        self,
        folder: Path,
        count: int | None = None,
        seeds: int = LEAST_SEEDS,
        drop_copies: bool = False,
        which: str = "last",
        here: Mapping[str, Any] = NOTHING_ELSE,
    ):
        """Open the run and its data.

        Raises:
            UserError: no run or checkpoint, data that are not here or have changed, too few samples or seeds.
        """
        self.folder, self.which, self.here, self.drop_copies = folder, which, here, drop_copies
        self.config, self.facts = run_config(folder, here), read_facts(folder)
        self.count = self.config.measuring.samples if count is None else count
        if self.count < 2:
            raise UserError("a release has 2 samples of each class or more: give --count, such as --count 500")
        if seeds < LEAST_SEEDS:
            raise UserError(f"--seeds {seeds}: an interval needs {LEAST_SEEDS} classifiers of each kind or more")
        self.seeds = seeds
        self.round, networks = read_networks(folder, which)
        self.classes = sorted(networks)
        self.shape = run_shape(folder)[0]
        try:
            self.source = open_source(self.config.data, self.config.seed, keep=True)
            prints = self.source.fingerprints()
        except UserError as error:
            raise UserError(
                f"a release is measured against the data of all classes ({error}): make it where they are, with "
                "-s data-path=...; `fedmutual sample` draws without them"
            ) from None
        refuse_changed(folder, prints, self.source.names)
        self.names = [str(name) for name in self.facts.class_names]
        self.train = {y: self.source.train(y) for y in range(len(self.names))}
        self.test = {y: self.source.test(y) for y in range(len(self.names))}
        self.extractor = run_extractor(self.config, self.source)
        self.samples: dict[int, Tensor] = {}
        self.nearest: dict[int, Nearest] = {}
        self.copies: dict[int, int] = {}
        self.attacks: list[AuditRow] = []
        self.scores: dict[str, list[Scores]] = {}

    @property
    def images(self) -> bool:
        """Whether samples are pictures, with a file each."""
        return len(self.shape) == 3 and self.shape[0] in (1, 3)

    # The steps, in this order

    def draw(self, on_class: OnClass = lambda y: None) -> None:
        """Draw the samples, and with `drop_copies` leave out those that nearly copy a training sample."""
        for y, drawn in draw_samples(self.folder, self.count, self.which, on_class, self.here).items():
            kept = as_released(drawn) if self.images else drawn
            near = two_nearest(kept.numpy(), self.train[y].numpy())
            copied = near_copies(near.distances)
            self.copies[y] = int(copied.sum())
            if self.drop_copies:
                kept, near = kept[torch.from_numpy(~copied)], Nearest(near.rows[~copied], near.distances[~copied])
            self.samples[y], self.nearest[y] = kept, near

    def attack(self, on_class: OnClass = lambda y: None) -> None:
        """The attacks of an audit, on the networks and on the released samples."""
        if not self.not_attacked:
            self.attacks = attack_run(self.folder, on_class, self.which, self.here, drawn=self.samples, whole=True)[1]

    def train_classifiers(self, on_percent: Callable[[int], None] = lambda done: None) -> None:
        """Train classifiers on the release and beside it, and test them on real samples."""
        if not self.not_useful:
            sets = training_sets(self.train, self.samples)
            seeds, device = range(self.seeds), pick_device(self.config.compute)
            self.scores = train_and_test(sets, self.test, len(self.names), seeds, device, on_percent)

    # What cannot be told, and why

    @property
    def not_attacked(self) -> str:
        """Why attacks say nothing here; empty where they do."""
        few = [self.names[y] for y in self.classes if len(self.source.unseen(y)) < LEAST]
        return f"class {', '.join(few)} has fewer than {LEAST} samples that training did not see" if few else ""

    @property
    def not_useful(self) -> str:
        """Why no classifier can be tested here; empty where one can."""
        if len(self.names) < 2:
            return "the data are of one class, and a classifier needs two"
        return "" if any(map(len, self.test.values())) else "the data have no test part: no real sample was kept apart"

    def suspects(self) -> list[Suspect]:
        """The released samples with the smallest ratio of distances to the nearest and the second training sample."""
        found = []
        for y, near in self.nearest.items():
            for number in near.ratios.argsort(kind="stable")[:SUSPECTS]:
                first, second = (int(row) for row in near.rows[number])
                pair = self.train[y][first], self.train[y][second]
                ratio, distance = float(near.ratios[number]), float(near.distances[number, 0])
                found.append(Suspect(y, int(number), ratio, distance, (first, second), self.samples[y][number], pair))
        return sorted(found, key=lambda one: (one.ratio, one.distance))[:SUSPECTS]


def as_released(drawn: Tensor) -> Tensor:
    """Images [n, channels, height, width] in [-1, 1] as their bytes give them back."""
    return to_bytes(drawn).float() / 127.5 - 1


def to_bytes(images: Tensor) -> Tensor:
    """Values in [-1, 1] as bytes, what lies outside cut off."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
