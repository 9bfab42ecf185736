"""The checkpoints of a run folder: networks after a round, of which each file holds what has changed.

A checkpoint is `checkpoints/round-000012.safetensors`. A network that has not changed since the checkpoint before the
last lies where that one has it, so that where few classes take part in a round, little is written. Two checkpoints in
a row share no file: one that is damaged costs no more than a round. A file that a checkpoint still needs when its own
is dropped becomes `part-000004.safetensors`. When less than half of a file is needed, the rest of it is written anew
with the next checkpoint, so that no more than twice the networks lie on the disk for each.
"""

import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fedmutual.checkpoint import CheckpointError, load, newest_whole, read_meta, save

if TYPE_CHECKING:
    from fedmutual.records import Network  # Flower is not needed to read or write a run folder

SHARED = "shared"
"""In a checkpoint's place for a class: the one conditional network of all classes."""

KEPT_CHECKPOINTS = 2
"""Newest checkpoints that stay, so that a damaged one costs no more than a round; the best one stays too."""

NEEDED = 0.5
"""Share of a file's networks below which those that are needed are written anew."""


class NetworkOfRound(NamedTuple):
    """A network, and the round that it was made in."""

    network: "Network"
    round: int


class Checkpoint(NamedTuple):
    """Networks after a round, by class or by a name such as `SHARED`; best: (round, largest gradient norm)."""

    round: int
    networks: dict[int | str, NetworkOfRound]
    best: tuple[int, float]


class Lies(NamedTuple):
    """Where a network lies: the round that it was made in, and that of the file."""

    made: int
    file: int


Places = dict[str, Lies]
"""{class or name: where its network lies} of one checkpoint."""

_FILE = re.compile(r"(round|part)-(\d+)\.safetensors")


def checkpoint_path(folder: Path, round_: int) -> Path:
    """Where the checkpoint of a round lies."""
    return folder / "checkpoints" / f"round-{round_:06d}.safetensors"


def _part_path(folder: Path, round_: int) -> Path:
    """Where the file of a round lies whose own checkpoint was dropped."""
    return folder / "checkpoints" / f"part-{round_:06d}.safetensors"


def checkpoints(folder: Path) -> dict[int, Path]:
    """{round: its checkpoint} of the run in `folder`, oldest first."""
    return _files(folder, "round")


def _files(folder: Path, kind: str) -> dict[int, Path]:
    paths = sorted((folder / "checkpoints").glob(f"{kind}-*.safetensors"))
    return {int(match[2]): path for path in paths if (match := _FILE.fullmatch(path.name))}


# Reading


def networks_in(tensors: Mapping[str, torch.Tensor]) -> "dict[int | str, Network]":
    """{class: network} of a file, whose tensors are named `<class>/<parameter>`; see `SHARED`."""
    networks: dict[int | str, Network] = {}
    for name, tensor in tensors.items():
        place, _, parameter = name.partition("/")
        networks.setdefault(int(place) if place.isdigit() else place, {})[parameter] = tensor
    return networks


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`, with what it needs of other files.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    tensors, meta = load(path)
    found, folder = networks_in(tensors), path.parent.parent
    places = _places(meta)
    for file in sorted({lies.file for lies in places.values()} - {meta["round"]}):
        other = checkpoint_path(folder, file)
        others = networks_in(load(other if other.exists() else _part_path(folder, file))[0])
        found |= {y: network for y, network in others.items() if places.get(str(y), Lies(0, -1)).file == file}
    round_, norm = meta["best"]
    networks = {y: NetworkOfRound(found[y], places[str(y)].made) for y in sorted(found, key=_order)}
    return Checkpoint(meta["round"], networks, (round_, norm))


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint of the run in `folder`; None where there is none."""
    return newest_whole(list(checkpoints(folder).values()), read_checkpoint)


def _order(place: int | str) -> tuple[bool, int, str]:
    """Classes by their numbers, then names."""
    return (False, place, "") if isinstance(place, int) else (True, 0, place)


def _places(meta: Mapping[str, Any]) -> Places:
    elsewhere = meta.get("elsewhere", {})
    return {y: Lies(made, elsewhere.get(y, meta["round"])) for y, made in meta["rounds"].items()}


# Writing


class CheckpointWriter:
    """Writes the checkpoints of the run in `folder`, also of one that goes on."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.places: dict[int, Places] = {}  # of the checkpoints that are kept, oldest first
        self.sizes: dict[int, int] = {}  # file -> how many networks are in it

    def reopen(self, round_: int) -> None:
        """Go on behind the checkpoint of `round_`."""
        for kind in ("part", "round"):
            for file, path in _files(self.folder, kind).items():
                if file > round_:  # of a past that is forgotten
                    path.unlink()
                    continue
                with suppress(CheckpointError):  # one that is damaged, or lacks a part, is not built on
                    places = _places(read_meta(path))
                    self.sizes[file] = sum(lies.file == file for lies in places.values())
                    if kind == "round":
                        read_checkpoint(path)
                        self.places[file] = places

    def write(self, checkpoint: Checkpoint) -> None:
        """Save the checkpoint; drop older ones but for the newest and the best."""
        round_, networks = checkpoint.round, {str(y): entry for y, entry in checkpoint.networks.items()}
        before = self._two_before(round_)
        unchanged = {y: before[y] for y, entry in networks.items() if y in before and before[y].made == entry.round}
        needed = Counter(lies.file for lies in unchanged.values())
        stays = {file for file, count in needed.items() if count >= NEEDED * self.sizes.get(file, count)}
        places = {
            y: unchanged[y] if y in unchanged and unchanged[y].file in stays else Lies(entry.round, round_)
            for y, entry in networks.items()
        }
        own = {y: networks[y].network for y, lies in places.items() if lies.file == round_}
        meta = {
            "round": round_,
            "rounds": {y: entry.round for y, entry in networks.items()},
            "best": checkpoint.best,
            "elsewhere": {y: lies.file for y, lies in places.items() if lies.file != round_},
        }
        tensors = {f"{y}/{name}": tensor for y, network in own.items() for name, tensor in network.items()}
        save(checkpoint_path(self.folder, round_), tensors, meta)
        self.places[round_], self.sizes[round_] = places, len(own)
        self._drop(checkpoint.best[0])

    def _two_before(self, round_: int) -> Places:
        """Where the checkpoint before the last one has its networks; none where it shares a file with the last."""
        earlier: list[Places] = [places for other, places in sorted(self.places.items()) if other < round_]
        if len(earlier) < 2 or not _files_of(earlier[-2]).isdisjoint(_files_of(earlier[-1])):
            return {}
        return earlier[-2]

    def _drop(self, best: int) -> None:
        """Delete what neither the newest checkpoints nor the best one need."""
        kept = {*sorted(self.places)[-KEPT_CHECKPOINTS:], best}
        self.places = {round_: places for round_, places in self.places.items() if round_ in kept}
        needed = set().union(*map(_files_of, self.places.values()))
        self.sizes = {file: size for file, size in self.sizes.items() if file in needed}
        for file, path in checkpoints(self.folder).items():
            if file not in needed and file not in kept:
                path.unlink()
            elif file not in kept:
                path.rename(_part_path(self.folder, file))
        for file, path in _files(self.folder, "part").items():
            if file not in needed:
                path.unlink()


def _files_of(places: Places) -> set[int]:
    return {lies.file for lies in places.values()}
