"""A client's own state on its own disk: atomic, locked, stamped with the round it was made in.

Flower starts a fresh process for every message when deployed, and may run one client twice at once after a
timeout, so the disk is the only truth. The store keeps the states that a server could come back to: the
newest ones that the server's last checkpoints cover, and all made since.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from fedmutual.checkpoint import load_newest, save
from fedmutual.learning.igd import Player

KEPT = 2
"""States that the server's checkpoints cover; as many as it keeps checkpoints, should its last one be damaged."""


class StaleRound(RuntimeError):
    """An order that this client has already carried out, or that an abandoned server sent."""


class LostState(RuntimeError):
    """The server holds a network of this class, and the store nothing it could come from."""


class Busy(RuntimeError):
    """Another process is at work on this client's state."""


class Store:
    """The states of class y in the run with identity `run`, under `root`."""

    def __init__(self, root: Path, run: str, y: int):
        self.folder = root / run / f"class-{y:03d}"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; the lock goes with the process, also when it is killed.

        Raises:
            Busy: another process holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Busy(f"another process is training in {self.folder}") from None
            yield

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("round-*.safetensors"))

    def restore(self, player: Player, attempt: int, round_: int, checkpointed: int) -> int:
        """Bring `player` to the state from which `round_` starts; the round that state was made in, 0 if none.

        `attempt` counts the starts of the server, `checkpointed` is the last round it has saved. A new attempt
        takes the client back to that round: what came later belongs to a past that the server has forgotten.

        Raises:
            StaleRound: an order of an older attempt, or of a round that is already done.
        """
        found = load_newest(self._files())
        if found:
            meta = found[2]
            if attempt < meta["attempt"]:
                raise StaleRound(f"attempt {attempt} of the server is over: attempt {meta['attempt']} is at work")
            if attempt == meta["attempt"] and round_ <= meta["round"]:
                raise StaleRound(f"round {round_} is already done: the store is at round {meta['round']}")
            if attempt > meta["attempt"]:
                for path in self._files():
                    if _round_of(path) > checkpointed:
                        path.unlink()
                found = load_newest(self._files())
        if not found:
            return 0
        _, tensors, meta = found
        _unpack(player, tensors)
        player.step = meta["step"]
        return meta["round"]

    def keep(self, player: Player, attempt: int, round_: int, checkpointed: int) -> None:
        """Save `player` as the state after `round_`, and drop states that no server can ask for again."""
        meta = {"attempt": attempt, "round": round_, "step": player.step}
        save(self.folder / f"round-{round_:06d}.safetensors", _pack(player), meta)
        covered = [path for path in self._files() if _round_of(path) <= checkpointed]
        for path in covered[:-KEPT]:
            path.unlink()


def _round_of(path: Path) -> int:
    return int(path.stem.removeprefix("round-"))


def _pack(player: Player) -> dict[str, Tensor]:
    """Network, averaged parameters and optimiser state under one flat set of names."""
    tensors = {f"network/{name}": tensor for name, tensor in player.network.state_dict().items()}
    tensors |= {f"average/{index}": tensor for index, tensor in enumerate(player.average)}
    for index, state in player.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": tensor for name, tensor in state.items() if tensor is not None}
    return tensors


def _unpack(player: Player, tensors: dict[str, Tensor]) -> None:
    """The inverse of `_pack`, into a player of the same settings, on that player's device."""
    network, average, optimizer = {}, {}, {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "network":
            network[rest] = tensor
        elif kind == "average":
            average[int(rest)] = tensor
        else:
            index, _, key = rest.partition("/")
            optimizer.setdefault(int(index), {})[key] = tensor
    player.network.load_state_dict(network)
    for index, parameter in enumerate(player.average):
        parameter.copy_(average[index])
    player.optimizer.load_state_dict({**player.optimizer.state_dict(), "state": optimizer})
