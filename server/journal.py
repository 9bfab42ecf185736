"""The run folder as the server writes it: settings, history, checkpoints. A run that was killed continues here."""

import json
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedmutual.checkpoint import load_newest, save, write_atomic, writing
from fedmutual.config import RunConfig
from fedmutual.data.source import class_names
from fedmutual.errors import UserError
from fedmutual.run_folder import checkpoint_path, checkpoints, hardware, networks_in, read_history, run_folder, versions
from fedmutual.settings import read_settings, write_settings
from server.bank import Bank, Shelf

MAY_CHANGE = {
    *("rounds", "resume", "out", "store", "device", "timeout", "data-path", "download"),
    *("checkpoint-every", "max-reply-mb"),
}
"""Settings that a resumed run may change: they do not touch the rounds already done."""

KEPT = 2
"""Newest checkpoints that stay, so that a damaged one costs no more than a round; the best one stays too."""


class Journal:
    """The folder of one run.

    run: the identity that clients file their state under; attempt: how often the server began, by which clients
    tell orders that were given up; round: the last one done; best: (round, largest gradient norm).
    """

    def __init__(self, config: RunConfig, bank: Bank | Shelf):
        self.folder = run_folder(config)
        self.round, self.best = 0, (0, float("inf"))
        if config.federation.resume:
            self._reopen(config, bank)
        else:
            self._create(config, bank)
        # The settings come after the identity: a folder with settings is a run that can be resumed.
        self.write_settings(config)
        self.write_run(attempt=self.attempt, status="running")

    def write_settings(self, config: RunConfig) -> None:
        """The settings in force, in `config.toml`."""
        write_atomic(self.folder / "config.toml", write_settings(config.settings()).encode())

    def begin_attempt(self) -> None:
        """Give up what was ordered since the last checkpoint: orders of a new attempt take clients back to it."""
        self.attempt += 1
        self.write_run(attempt=self.attempt)

    def _create(self, config: RunConfig, bank: Bank | Shelf) -> None:
        if (self.folder / "config.toml").exists():
            raise UserError(f"{self.folder} already holds a run: resume it, or choose another folder for out")
        try:
            (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be made: {error.strerror}") from None
        self.run, self.attempt = secrets.token_hex(8), 1
        self.write_run(
            run=self.run,
            attempt=self.attempt,
            name=config.data.source,
            method="mutual" if config.mutual.beta else "isolated",
            class_names=class_names(config.data),
            training_counts=None,
            shape=list(bank.shape),
            parameters=bank.parameters,
            versions=versions(),
            hardware=hardware(),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _reopen(self, config: RunConfig, bank: Bank | Shelf) -> None:
        check_resumable(self.folder, config)
        try:
            before = self.read_run()
            self.run, self.attempt = before["run"], before["attempt"] + 1
        except (KeyError, ValueError):
            raise UserError(f"{self.folder / 'run.json'} is missing or damaged: restore it to resume") from None
        found = load_newest(checkpoints(self.folder))
        if found:
            _, tensors, meta = found
            bank.restore({y: (network, meta["rounds"][str(y)]) for y, network in networks_in(tensors).items()})
            self.round, self.best = meta["round"], tuple(meta["best"])
        kept = [line for line in read_history(self.folder) if line["round"] <= self.round]
        write_atomic(self.folder / "history.jsonl", "".join(json.dumps(line) + "\n" for line in kept).encode())

    def append(self, lines: list[dict[str, Any]]) -> None:
        """Add a round's lines to the history, for good before the round's checkpoint is.

        Raises:
            Unwritable: the disk is full; a resumed run leaves out what a line has lost.
        """
        path = self.folder / "history.jsonl"
        with writing(path), path.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())

    def checkpoint(self, bank: Bank | Shelf, round_: int, gradient_norm: float) -> None:
        """Save the bank after `round_`; `gradient_norm` is max_y ||grad_y||, infinite when a class is missing."""
        if gradient_norm < self.best[1]:
            self.best = (round_, gradient_norm)
        tensors = {f"{y}/{name}": t for y, entry in bank.entries.items() for name, t in entry.network.items()}
        rounds = {str(y): entry.round for y, entry in bank.entries.items()}
        save(checkpoint_path(self.folder, round_), tensors, {"round": round_, "rounds": rounds, "best": self.best})
        self.round = round_
        for path in checkpoints(self.folder)[:-KEPT]:
            if path != checkpoint_path(self.folder, self.best[0]):
                path.unlink()

    def read_run(self) -> dict[str, Any]:
        path = self.folder / "run.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def write_run(self, **facts: Any) -> None:
        """Update `run.json`, the facts about the run that are not settings."""
        text = json.dumps({**self.read_run(), **facts}, indent=1)
        write_atomic(self.folder / "run.json", text.encode())


def settled_before(config: RunConfig) -> RunConfig:
    """`config` with the number of local steps that the run in its folder settled on, if it is to go on with that."""
    path = run_folder(config) / "config.toml"
    if not config.federation.resume or config.local_steps or not path.exists():
        return config
    return config.but(local_steps=RunConfig.of(read_settings(path)).local_steps)


def check_resumable(folder: Path, config: RunConfig) -> None:
    """Raises `UserError` where there is no run in `folder`, or it cannot go on under these settings."""
    if not (folder / "config.toml").exists():
        raise UserError(f"{folder} holds no run to resume: name the folder that an earlier run wrote")
    before, now = RunConfig.of(read_settings(folder / "config.toml")).settings(), config.settings()
    changed = [key for key in now if now[key] != before[key] and key not in MAY_CHANGE]
    if changed:
        raise UserError(f"a resumed run keeps its settings, and {', '.join(changed)} would change: start a new run")
    if now["rounds"] != before["rounds"] and config.optimiser.schedule == "cosine":
        raise UserError("rounds cannot change under schedule = cosine, whose learning rate ends at 0 with them")
