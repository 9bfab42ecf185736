"""The run folder of a run that a server leads: its identity and attempts, and how a run that was killed goes on."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from fedmutual.config import RunConfig
from fedmutual.errors import UserError
from fedmutual.records import Network
from fedmutual.run_folder import CONFIG, FACTS, RunWriter, holds_run, run_folder
from fedmutual.saved_networks import NetworkOfRound, newest_checkpoint
from fedmutual.settings import read_stored

MAY_CHANGE = {
    *("rounds", "resume", "out", "store", "device", "timeout", "data-path", "download"),
    *("checkpoint-every", "max-reply-mb", "epsilon"),
}
"""Settings that a resumed run may change: they do not touch the rounds already done."""


class Entry(Protocol):
    """A network, and the round that it was made in."""

    @property
    def network(self) -> Network: ...
    @property
    def round(self) -> int: ...


class Networks(Protocol):
    """The networks that a server holds: what a checkpoint saves and restores."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a sample."""

    @property
    def parameters(self) -> int:
        """Numbers in all networks together."""

    @property
    def entries(self) -> Mapping[Any, Entry]:
        """{class, or a name: network and round}."""

    def restore(self, networks: Mapping[Any, NetworkOfRound]) -> None:
        """Take over the networks of a checkpoint."""


class Journal(RunWriter):
    """The folder of one federated run.

    run: the identity that clients file their state under; attempt: how often the server began, by which clients
    recognise orders that were given up; round: the last one done; best: (round, largest gradient norm).
    """

    def __init__(self, config: RunConfig, networks: Networks):
        super().__init__(run_folder(config))
        if config.federation.resume:
            self._reopen(config, networks)
        else:
            self.run, self.attempt = secrets.token_hex(8), 1
            method = "mutual" if config.mutual.beta else "isolated"
            facts = {"run": self.run, "attempt": self.attempt}
            self.create(config, method, networks.shape, networks.parameters, **facts)
        # The settings come after the identity: a folder with settings is a run that can be resumed.
        self.write_settings(config)
        self.write_run(attempt=self.attempt, status="running")

    def begin_attempt(self) -> None:
        """Give up what was ordered since the last checkpoint: orders of a new attempt take clients back to it."""
        self.attempt += 1
        self.write_run(attempt=self.attempt)

    def checkpoint(self, networks: Networks, round_: int, gradient_norm: float) -> None:
        """Save the networks after `round_`; `gradient_norm` is max_y ||grad_y||, infinite when a class is missing."""
        entries = {y: NetworkOfRound(entry.network, entry.round) for y, entry in networks.entries.items()}
        self.write_checkpoint(entries, round_, gradient_norm)

    def _reopen(self, config: RunConfig, networks: Networks) -> None:
        check_resumable(self.folder, config)
        try:
            before = self.read_run()
        except UserError:
            before = None
        if before is None or before.run is None or before.attempt is None:
            raise UserError(f"{self.folder / FACTS} is missing or damaged: restore it to resume")
        self.hold()
        self.run, self.attempt = before.run, before.attempt + 1
        checkpoint = newest_checkpoint(self.folder)
        if checkpoint:
            networks.restore(checkpoint.networks)
            self.round, self.best = checkpoint.round, checkpoint.best
            self.checkpoints.reopen(checkpoint.round)
        self.keep_history_until(self.round)


def settled_before(config: RunConfig) -> RunConfig:
    """`config` with the number of local steps that the run in its folder settled on, if it is to go on with that."""
    path = run_folder(config) / CONFIG
    if not config.federation.resume or config.local_steps or not path.exists():
        return config
    return config.but(local_steps=RunConfig.of(read_stored(path)).local_steps)


def check_resumable(folder: Path, config: RunConfig) -> None:
    """Raises `UserError` where there is no run in `folder`, or it cannot go on under these settings."""
    if not holds_run(folder):
        raise UserError(f"{folder} holds no run to resume: name the folder that an earlier run wrote")
    before, now = RunConfig.of(read_stored(folder / CONFIG)).settings(), config.settings()
    changed = [key for key in now if now[key] != before[key] and key not in MAY_CHANGE]
    if changed:
        raise UserError(f"a resumed run keeps its settings, and {', '.join(changed)} would change: start a new run")
    if now["rounds"] != before["rounds"] and config.optimiser.schedule == "cosine":
        raise UserError("rounds cannot change under schedule = cosine, whose learning rate ends at 0 with them")
