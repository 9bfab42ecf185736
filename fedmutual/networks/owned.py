"""The whole of a network that is published in part: in its owner's store, by run, class and round."""

from pathlib import Path

from torch import Tensor

from fedmutual.checkpoint import CheckpointError, load, save
from fedmutual.errors import UserError


def class_folder(store: Path, run: str, y: int) -> Path:
    """Where a client keeps all that it has of class y in the run with that identity."""
    return store / run / f"class-{y:03d}"


def owned_path(folder: Path, round_: int) -> Path:
    """The whole network after a round, in the folder of a class."""
    return folder / f"network-{round_:06d}.safetensors"


def write_owned(folder: Path, network: dict[str, Tensor], round_: int) -> None:
    """Keep the whole network that was published in part after a round.

    Raises:
        Unwritable: it could not be saved.
    """
    save(owned_path(folder, round_), network, {"round": round_})


def read_owned(folder: Path, round_: int) -> dict[str, Tensor]:
    """The whole network of which a part was published after that round.

    Raises:
        UserError: it is not there any more, or damaged.
    """
    path = owned_path(folder, round_)
    if not path.exists():
        rounds = sorted(int(other.stem.removeprefix("network-")) for other in folder.glob("network-*.safetensors"))
        there = f"there are those of {', '.join(map(str, rounds))}: name one by --round" if rounds else "there is none"
        raise UserError(f"{folder} holds no whole network of round {round_}: {there}")
    try:
        return load(path)[0]
    except CheckpointError as error:
        raise UserError(f"{error}: restore it") from None
