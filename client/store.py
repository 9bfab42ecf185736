"""A client's own state on its own disk: atomic, locked, stamped with the round it was made in.

Flower starts a fresh process for every message when deployed, and may run one client twice at once after a
timeout, so the disk is the only truth. The store keeps the states that a server could come back to: the
newest ones that the server's last checkpoints cover, and all made since. With each goes the reply it was made for, so
that an order whose reply was lost is answered again, and carried out once.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from torch import Tensor

from fedmutual.checkpoint import load_newest, save, writing
from fedmutual.learning.keeping import pack_kept, unpack_kept
from fedmutual.learning.player import Player
from fedmutual.learning.weighing import pack_weighed, unpack_weighed
from fedmutual.networks.owned import class_folder, owned_path, write_owned

KEPT = 2
"""States that the server's checkpoints cover; as many as it keeps checkpoints, should its last one be damaged."""


Numbers = dict[str, int | float]
"""The numbers of a reply; `attempt`, `round` and `step` among them say which state of the player it was made with."""

POLL = 0.05
"""Seconds between two looks at a store that another process holds."""


class StaleRound(RuntimeError):
    """An order that this client has left behind, or that an abandoned server sent."""


class LostState(RuntimeError):
    """The server holds a network of this class, and the store nothing it could come from."""


class Busy(RuntimeError):
    """Another process is at work on this client's state."""


class Store:
    """The states of class y in the run with identity `run`, under `root`."""

    def __init__(self, root: Path, run: str, y: int):
        self.folder = class_folder(root, run, y)

    @contextmanager
    def locked(self, patience: float) -> Iterator[None]:
        """Hold the folder; the lock goes with the process, also when it is killed.

        An order may come twice, or while the client still works for a server that was killed: then the first one
        to hold the folder finishes, and the second finds what it has saved.

        Raises:
            Busy: another process has held it for all of `patience` seconds.
            Unwritable: there is no room for the folder.
        """
        deadline = time.monotonic() + patience
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / "lock").open("w")
        with file:
            while not _lock(file):
                if time.monotonic() >= deadline:
                    raise Busy("another process is training this class")
                time.sleep(POLL)
            yield

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("round-*.safetensors"))

    def restore(self, player: Player, attempt: int, round_: int, checkpointed: int) -> Numbers:
        """Bring `player` to the newest state; the numbers of the reply made with it, none without a state.

        That is the state from which `round_` starts. Or it is the one that `round_` has led to: then the order was
        carried out and its reply lost, and the numbers, whose round tells, are to be sent again. `attempt` counts
        the starts of the server, `checkpointed` is the last round it has saved. A new attempt takes the client
        back to that round: what came later belongs to a past that the server has forgotten.

        Raises:
            StaleRound: an order of an older attempt, or of a round before the newest state's.
        """
        state = load_newest(self._files())
        if state:
            newest = state[2]
            if attempt < newest["attempt"]:
                raise StaleRound(f"attempt {attempt} of the server is over: attempt {newest['attempt']} is at work")
            if attempt == newest["attempt"] and round_ < newest["round"]:
                raise StaleRound(f"round {round_} is over: the store is at round {newest['round']}")
            if attempt > newest["attempt"]:
                for path in self._files():
                    if _round_of(path) > checkpointed:
                        self._drop(path)
                state = load_newest(self._files())
        if not state:
            return {}
        _, tensors, numbers = state
        _unpack(player, tensors)
        player.step = numbers["step"]
        return numbers

    def keep(self, player: Player, numbers: Numbers, checkpointed: int, whole: bool = True) -> None:
        """Save `player` with the numbers of its reply, and drop states that no server can ask for again.

        Where its network is not sent as a `whole`, the network lies beside the state for whoever owns it.

        Raises:
            Unwritable: the state could not be saved; the one before it stands.
        """
        if not whole:
            write_owned(self.folder, player.published(), int(numbers["round"]))
        save(self.folder / f"round-{numbers['round']:06d}.safetensors", pack(player), numbers)
        covered = [path for path in self._files() if _round_of(path) <= checkpointed]
        for path in covered[:-KEPT]:
            self._drop(path)

    def _drop(self, path: Path) -> None:
        """Delete a state, and the whole network of its round if there is one."""
        path.unlink()
        owned_path(self.folder, _round_of(path)).unlink(missing_ok=True)


def _lock(file: TextIO) -> bool:
    """Whether the file could be locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _round_of(path: Path) -> int:
    return int(path.stem.removeprefix("round-"))


def pack(player: Player) -> dict[str, Tensor]:
    """Network, averaged parameters, what is kept, weights of peers and optimiser state under one flat set of names."""
    tensors = {f"network/{name}": tensor for name, tensor in player.network.state_dict().items()}
    tensors |= {f"average/{index}": tensor for index, tensor in enumerate(player.average)}
    tensors |= pack_kept(player) | pack_weighed(player)
    for index, state in player.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": tensor for name, tensor in state.items() if tensor is not None}
    return tensors


def _unpack(player: Player, tensors: dict[str, Tensor]) -> None:
    """The inverse of `pack`, into a player of the same settings, on that player's device."""
    network: dict[str, Tensor] = {}
    average: dict[int, Tensor] = {}
    optimizer: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "network":
            network[rest] = tensor
        elif kind == "average":
            average[int(rest)] = tensor
        elif kind == "optimizer":
            index, _, key = rest.partition("/")
            optimizer.setdefault(int(index), {})[key] = tensor
    player.network.load_state_dict(network)
    for place, parameter in enumerate(player.average):
        parameter.copy_(average[place])
    unpack_kept(player, tensors)
    unpack_weighed(player, tensors)
    player.optimizer.load_state_dict({**player.optimizer.state_dict(), "state": optimizer})
