"""The ledger of a client's store: what has been spent of a class's data, by all runs on that store.

An entry is written before the data are used. A kill after it costs nothing: who comes again with the same `key` is
served from the entry that is there. Entries form a chain, each with a hash over all before it. The folder of each run
keeps a receipt: how many entries there were when the run last paid, and their hash. So a ledger that is missing, cut or
older than one of those folders is noticed; that the folder is older is for its owner to notice, which lacks then what
the entry paid for.

    <store>/ledger-003.json             the ledger of class 3
    <store>/<run>/class-003/spent.json  the receipt of a run
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path
from typing import Any, Literal

from fedmutual.checkpoint import write_atomic, writing
from fedmutual.data.fingerprint import Fingerprint
from fedmutual.errors import UserError
from fedmutual.networks.owned import class_folder
from fedmutual.privacy.cost import NOTHING, Cost

VERSION = 1
RECEIPT = "spent.json"

Relation = Literal["replace-one", "add-or-remove-one"]
"""Which data sets are neighbours: those that differ in the value of one sample, or in whether it is there."""


class Overspent(UserError):
    """More than may be spent; its text names no file, so that others may read it."""


@dataclass(frozen=True)
class Expenditure:
    """One look at a class's data.

    run: the run that it is for; key: what it pays for within the run, such as a round of an attempt: paid once.
    parameters: of the mechanism, to read. data: the fingerprint of the samples that it looks at. when: UTC.
    """

    run: str
    key: str
    mechanism: str
    parameters: Mapping[str, Any]
    relation: Relation
    cost: Cost
    data: Fingerprint
    when: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def as_json(self) -> dict[str, Any]:
        """What the ledger holds of it."""
        return {**asdict(self), "data": self.data._asdict()}

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "Expenditure":
        """The inverse of `as_json`.

        Raises:
            TypeError, ValueError, KeyError: it is none.
        """
        cost = Cost(entry["cost"]["rho"], tuple(entry["cost"]["rdp"]))
        return cls(**{**entry, "cost": cost, "data": Fingerprint(**entry["data"])})


def total(entries: Sequence[Expenditure]) -> Cost:
    """What all of them cost together.

    They add up whatever data they name: a sample that two data sets share has been looked at twice.
    """
    return reduce(Cost.__add__, (entry.cost for entry in entries), Cost())


class Ledger:
    """The ledger of class y in a store, whose path is `store`. A store need not have one before the first payment."""

    def __init__(self, store: Path, y: int):
        self.store, self.y = store, y
        self.path = store / f"ledger-{y:03d}.json"

    def entries(self) -> list[Expenditure]:
        """All entries, oldest first.

        Raises:
            UserError: the ledger is damaged, or it is missing or older than a run of the store.
        """
        with self._locked():
            return self._entries()

    def _entries(self) -> list[Expenditure]:
        entries, chain = _read(self.path) if self.path.exists() else ([], [""])
        for folder in self._folders():
            if (receipt := folder / RECEIPT).exists():
                self._compare(receipt, chain)
        return entries

    def spend(self, asked: Expenditure, epsilon: float, delta: float, ahead: Cost = NOTHING) -> list[Expenditure]:
        """Enter `asked`, unless its key has been paid for, and then all entries: it is on the disk when this returns.

        epsilon: the most that may be spent at `delta` in this store; 0: any. ahead: what the run is going to cost after
        its first payment, at which it has to fit too; it is not entered. The folder of the run must be there.

        Raises:
            Overspent: it would cost more than `epsilon`.
            UserError: as `entries`; its key was paid for at another cost; or this store holds what has no such bound.
            Unwritable: the disk is full; nothing is spent.
        """
        with self._locked():
            entries = self._entries()
            self._refuse_unpaid(asked, entries, epsilon)
            if not _paid_before(entries, asked):
                _refuse_mixed(entries, asked)
                begun = any(entry.run == asked.run for entry in entries)
                _refuse_beyond(entries, asked, epsilon, delta, NOTHING if begun else ahead)
                entries = [*entries, asked]
                _write(self.path, self.y, entries)
            _write_receipt(class_folder(self.store, asked.run, self.y), entries)
        return entries

    def _folders(self) -> list[Path]:
        """The folders of this class of all runs of the store."""
        return sorted(self.store.glob(str(class_folder(Path(), "*", self.y))))

    def _compare(self, receipt: Path, chain: Sequence[str]) -> None:
        """Raises `UserError` unless the ledger holds the entries that a run's receipt speaks of."""
        try:
            told = json.loads(receipt.read_bytes())
            count, digest = int(told["entries"]), str(told["digest"])
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{receipt} is damaged: restore it with the store") from None
        if not self.path.exists():
            raise UserError(
                f"{self.path} is missing, and {receipt.parent} has spent {count} of its entries: restore both"
            )
        if count >= len(chain) or chain[count] != digest:
            raise UserError(f"{self.path} is older than {receipt.parent}, which has spent more: restore both")

    def _refuse_unpaid(self, asked: Expenditure, entries: Sequence[Expenditure], epsilon: float) -> None:
        """Raises `UserError` where states of this class lie in a folder that has no receipt.

        Of the run itself: it has lost its receipt, or began without a bound. Of another, where there is a limit to
        what is spent: it sent what no epsilon bounds.
        """
        paid = {entry.run for entry in entries}
        for folder in self._folders():
            run = folder.parent.name
            if (folder / RECEIPT).exists() or not any(folder.glob("round-*.safetensors")):
                continue
            if run == asked.run or run in paid:
                raise UserError(f"{folder / RECEIPT} is missing, and the run has trained there: restore the store")
            if epsilon:
                raise UserError(
                    f"{folder} is of a run that sent what no epsilon bounds, so that epsilon = {epsilon:g} cannot be "
                    "kept in this store: use another store for data that no run has seen"
                )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the ledger: several runs may use one store at once."""
        with writing(self.path):
            self.store.mkdir(parents=True, exist_ok=True)
            file = self.path.with_suffix(".lock").open("w")
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _paid_before(entries: Sequence[Expenditure], asked: Expenditure) -> bool:
    """Whether an entry has the run and key of `asked`.

    Raises:
        UserError: at another cost.
    """
    for entry in entries:
        if (entry.run, entry.key) == (asked.run, asked.key):
            if entry.mechanism != asked.mechanism or not entry.cost.is_close(asked.cost):
                raise UserError(f"{asked.key} of this run was paid for at another cost: a run keeps its settings")
            return True
    return False


def _refuse_mixed(entries: Sequence[Expenditure], asked: Expenditure) -> None:
    for entry in entries:
        if entry.relation != asked.relation:
            raise UserError(
                f"this store has spent by {entry.relation} ({entry.mechanism}), and {asked.mechanism} counts by "
                f"{asked.relation}, which does not add up: use another store"
            )


def _refuse_beyond(
    entries: Sequence[Expenditure], asked: Expenditure, epsilon: float, delta: float, ahead: Cost
) -> None:
    then = (total([*entries, asked]) + ahead).epsilon(delta)
    if epsilon and then > epsilon:
        spent = total(entries).epsilon(delta)
        raise Overspent(
            f"this client may spend epsilon = {epsilon:g} at delta = {delta:g} and has spent {spent:.3g}: "
            f"{asked.mechanism}{' to the end of the run' if ahead != NOTHING else ''} would make it {then:.3g}"
        )


# The files


def _chain(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The hash of the first n entries, for n = 0, 1, ...; of none it is empty."""
    chain = [""]
    for entry in entries:
        text = chain[-1] + json.dumps(entry, sort_keys=True)
        chain.append(hashlib.sha256(text.encode()).hexdigest())
    return chain


def _read(path: Path) -> tuple[list[Expenditure], list[str]]:
    try:
        content = json.loads(path.read_bytes())
        if content["version"] != VERSION:
            raise UserError(f"{path} is of another version of fedmutual: use that one, or another store")
        chain = _chain(content["entries"])
        if content["digest"] != chain[-1]:
            raise ValueError("its entries do not match their hash")
        return [Expenditure.of(entry) for entry in content["entries"]], chain
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path} is damaged: restore it, and nothing is spent until then") from None


def _write(path: Path, y: int, entries: Sequence[Expenditure]) -> None:
    told = [entry.as_json() for entry in entries]
    content = {"version": VERSION, "class": y, "entries": told, "digest": _chain(_plain(told))[-1]}
    write_atomic(path, json.dumps(content, indent=1).encode())


def _plain(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The entries as they will be read again."""
    plain: list[dict[str, Any]] = json.loads(json.dumps(entries))
    return plain


def _write_receipt(folder: Path, entries: Sequence[Expenditure]) -> None:
    receipt = {"entries": len(entries), "digest": _chain(_plain([entry.as_json() for entry in entries]))[-1]}
    write_atomic(folder / RECEIPT, json.dumps(receipt).encode())
