"""The run folder: every file of it, its typed records, its one writer and its one reader.

    config.toml         the settings, resolved
    run.json            `RunFacts`: what is known of the run and is no setting
    data.json           fingerprints of what each class trained on, by `fedmutual.data.fingerprint`
    history.jsonl       a `HistoryLine` for each round and class
    checkpoints/        networks after a round, round-000012.safetensors, by `fedmutual.saved_networks`
    samples/            samples.npz, and a PNG grid of each class
    metrics.csv         a `MetricRow` for each class and metric
    .held               empty, and locked by the process that trains the run
    audit.json          an `AuditRow` for each class and attack
    preset.toml         the settings that were chosen, with `--minutes` only; minutes.json: what was foreseen and taken

Records are frozen dataclasses. Each is also a read-only mapping by the names that its values have on disk, such as
`line["class"]` for `line.class_`. A folder that an older version wrote is read: an optional value that is missing takes
its default, and a key that is not known is kept.

There is one rule for damage. A last line of the history that was cut short is left out, because a kill can do that to
a run that is otherwise whole. Anything else is a `UserError` of one line that names the file and, where there are
lines, the line.
"""

import csv
import dataclasses
import fcntl
import json
import math
import os
import platform
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO, StringIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, ClassVar, Self
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from fedmutual.checkpoint import write_atomic, writing
from fedmutual.config import RunConfig
from fedmutual.data import class_names
from fedmutual.errors import UserError
from fedmutual.methods import DATA
from fedmutual.saved_networks import Checkpoint, CheckpointWriter, NetworkOfRound
from fedmutual.settings import write_settings

PRESET, MINUTES = "preset.toml", "minutes.json"
"""Names of files in the folder of a run or a comparison whose settings were chosen for some minutes."""

CONFIG, FACTS, HISTORY, METRICS, AUDIT = "config.toml", "run.json", "history.jsonl", "metrics.csv", "audit.json"
"""Names of files in a run folder."""

SAMPLES = "samples/samples.npz"

WORST, MEAN, ALL = "worst", "mean", "all"
"""In a row's place for a class: the worst class, the mean over classes, the samples of all classes together."""


# Records


@cache
def _disk_names(record: type["Record"]) -> Mapping[str, str]:
    """{name on disk: name of the field}: `class_` is the field of the key "class", a word that Python reserves."""
    names = (one.name for one in dataclasses.fields(record) if one.name != "more")
    return MappingProxyType({name.removesuffix("_"): name for name in names})


@dataclass(frozen=True, eq=False)
class Record(Mapping[str, Any]):
    """Typed values that are also a mapping by their names on disk; `more` holds the keys that no field stands for.

    `LEFT_OUT` names fields that are not written where they are None, since not every method has them.
    """

    LEFT_OUT: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The record of what a file holds.

        Raises:
            KeyError, TypeError, ValueError: a value is missing, or is not what its field can hold.
        """
        if isinstance(values, cls):
            return values
        names = _disk_names(cls)
        required = {
            one.name
            for one in dataclasses.fields(cls)
            if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        }
        lacking = [key for key, name in names.items() if name in required and key not in values]
        if lacking:
            raise KeyError(", ".join(lacking))
        known = {name: values[key] for key, name in names.items() if key in values}
        return cls(**known, more={key: value for key, value in values.items() if key not in names})  # type: ignore[call-arg]

    def __getitem__(self, key: str) -> Any:
        names = _disk_names(type(self))
        if key in names:
            return getattr(self, names[key])
        return self._more()[key]

    def __iter__(self) -> Iterator[str]:
        for key, name in _disk_names(type(self)).items():
            if name not in self.LEFT_OUT or getattr(self, name) is not None:
                yield key
        yield from self._more()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, key: object) -> bool:
        """Whether it is written; a value of a field that is not is None."""
        return any(key == other for other in self)

    def _more(self) -> Mapping[str, Any]:
        more: Mapping[str, Any] = getattr(self, "more", {})
        return more


def _whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}, not a whole number")


def _number(name: str, value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TypeError(f"{name} is {value!r}, not a number")


@dataclass(frozen=True, eq=False)
class HistoryLine(Record):
    """What became of one class in one round.

    status: ok, idle (not asked), error, rejected or missing (no reply in time); reason: why it is not ok; step:
    gradient steps of the class's client so far; loss, mutual term and gradient norm: means over the round's steps;
    held_out: the loss on samples kept from training; seconds: of gradient steps; round_seconds: of the whole round;
    count: the class's training samples, where clients share it; asked: the peers that it asked for, where clients may;
    epsilon: what bounds all that the class has sent in this run, at the setting `delta`. None where a value was not
    measured, or does not exist.
    """

    LEFT_OUT = frozenset({"step", "count", "asked", "epsilon"})

    round: int
    class_: int
    status: str = "ok"
    reason: str = ""
    step: int | None = None
    loss: float | None = None
    mutual: float | None = None
    grad_norm: float | None = None
    held_out: float | None = None
    seconds: float | None = None
    bytes_down: int = 0
    bytes_up: int = 0
    count: int | None = None
    asked: Sequence[int] | None = None
    epsilon: float | None = None
    round_seconds: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _whole("round", self.round)
        _whole("class", self.class_)
        for z in self.asked or ():
            _whole("asked", z)
        for name in ("step", "loss", "mutual", "grad_norm", "held_out", "seconds", "round_seconds", "count", "epsilon"):
            _number(name, getattr(self, name))
        for name in ("bytes_down", "bytes_up"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, 0)
            _number(name, getattr(self, name))


@dataclass(frozen=True, eq=False)
class RunFacts(Record):
    """What run.json tells; None where the run has not got so far, or its method has no such thing.

    run: the identity that clients file their state under; attempt: how often the server began; data: what the method
    does with the data, a key of `DATA`; preset: the name of the one that it was started from; training_counts: samples
    of each class; clients_at_once: how many trained in parallel; overhead: wall time of the rounds over that of the
    gradient steps alone; extractor: the network in whose features it was measured; tuned: the setting that the method
    chose by held-out samples, its grid and, where all classes share it, what was chosen; epsilon, delta: of all that a
    client sends in the run, the largest of the classes, where it is bounded.
    """

    name: str
    method: str
    class_names: Sequence[str]
    run: str | None = None
    attempt: int | None = None
    status: str | None = None
    data: str | None = None
    preset: str | None = None
    training_counts: Sequence[int] | None = None
    shape: Sequence[int] | None = None
    parameters: int | None = None
    versions: Mapping[str, str] | None = None
    hardware: str | None = None
    started: str | None = None
    clients_at_once: int | None = None
    wall_seconds: float | None = None
    overhead: float | None = None
    gradient_steps_per_class: float | Sequence[float] | None = None
    samples_seen_per_class: float | Sequence[float] | None = None
    bytes_down: int | None = None
    bytes_up: int | None = None
    seconds_training: float | None = None
    extractor: Mapping[str, Any] | None = None
    tuned: Mapping[str, Any] | None = None
    epsilon: float | None = None
    delta: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.class_names, list | tuple):
            raise TypeError(f"class_names is {self.class_names!r}, not a list")
        if self.training_counts is not None and not isinstance(self.training_counts, list | tuple):
            raise TypeError(f"training_counts is {self.training_counts!r}, not a list")
        for name in ("parameters", "wall_seconds", "overhead", "bytes_down", "bytes_up", "seconds_training"):
            _number(name, getattr(self, name))


@dataclass(frozen=True, eq=False)
class MetricRow(Record):
    """One value of metrics.csv: nan where it is undefined. class_ is an index, `WORST`, `MEAN` or `ALL`."""

    method: str
    seed: int
    class_: int | str
    n_train: int | None
    metric: str
    value: float


@dataclass(frozen=True, eq=False)
class AuditRow(Record):
    """One number of audit.json with its 95 % interval, None where it is undefined.

    class_: an index, `WORST` or `MEAN`, or `ALL` where candidates of all classes are one set; t: the level of noise as
    a share of T, None where it plays no part; queries: forward passes for each candidate; members, non_members: how
    many candidates were trained on, and how many not; part: what of a network that is published in part was attacked,
    `published` or `whole`.
    """

    LEFT_OUT = frozenset({"part"})

    class_: int | str
    attack: str
    metric: str
    value: float | None
    method: str = ""
    seed: int = 0
    n_train: int | None = None
    t: float | None = None
    low: float | None = None
    high: float | None = None
    queries: int | None = None
    members: int | None = None
    non_members: int | None = None
    part: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("value", "t", "low", "high"):
            _number(name, getattr(self, name))

    def __iter__(self) -> Iterator[str]:
        """In the order in which audit.json has always had them."""
        first = ("method", "seed", "class", "n_train", "attack", "t", "metric", "value")
        yield from first
        yield from (key for key in super().__iter__() if key not in first)


# Where the files are


def run_folder(config: RunConfig) -> Path:
    """`out`, or a new folder named by the time."""
    if config.federation.out:
        return Path(config.federation.out).expanduser().resolve()
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path.home() / ".fedmutual" / "runs" / f"{config.data.source}-{stamp}"


def holds_run(folder: Path) -> bool:
    """Whether there is a run in `folder`: its settings are the last thing that the writer of a new one writes."""
    return (folder / CONFIG).exists()


HELD = ".held"
"""In a run folder: the file on which a process that trains the run has a lock, which ends with it, however it ends."""


def is_held(folder: Path) -> bool:
    """Whether a process trains the run in `folder`; true as well where the file system has no locks to tell it by."""
    try:
        with (folder / HELD).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False  # the run is of a version that did not lock, or the file was not copied with it
    except OSError:
        return True
    return False


# Writing


class RunWriter:
    """Writes the folder of one run while it trains: settings, facts, history and checkpoints.

    round: the last one with a checkpoint; best: (round, largest gradient norm) of the best one.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.held: BinaryIO | None = None
        self.round: int = 0
        self.best: tuple[int, float] = (0, float("inf"))
        self.checkpoints = CheckpointWriter(folder)

    def create(self, config: RunConfig, method: str, shape: Sequence[int], parameters: int, **facts: Any) -> None:
        """Make the folder, with what is known before the training; `facts` are those of `RunFacts` that are known too.

        Raises:
            UserError: the folder holds a run, or cannot be made.
        """
        if holds_run(self.folder):
            raise UserError(f"{self.folder} already holds a run: resume it, or choose another folder for out")
        try:
            (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be made: {error.strerror}") from None
        self.hold()
        known = {
            "name": config.data.source,
            "method": method,
            "class_names": class_names(config.data),
            "training_counts": None,
            "shape": list(shape),
            "parameters": parameters,
            "versions": versions(),
            "hardware": hardware(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.write_run(**(known | facts))

    def hold(self) -> None:
        """Let `is_held` say of the folder, as long as this process lives, that somebody trains the run in it."""
        with suppress(OSError):  # a file system without locks: `is_held` does not know then
            self.held = (self.folder / HELD).open("wb")
            fcntl.flock(self.held, fcntl.LOCK_SH)

    def write_settings(self, config: RunConfig) -> None:
        """The settings in force, in `config.toml`."""
        change_settings(self.folder, config)

    def write_run(self, **facts: Any) -> None:
        """Update `run.json`."""
        change_facts(self.folder, **facts)

    def read_run(self) -> RunFacts:
        """What `run.json` holds."""
        return read_facts(self.folder)

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Add a round's lines to the history; they are on the disk before the round's checkpoint is written.

        Raises:
            Unwritable: the disk is full; a resumed run leaves out what a line has lost.
        """
        text = _history_text(lines)
        path = self.folder / HISTORY
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def keep_history_until(self, round_: int) -> None:
        """Drop the lines of later rounds, and a last one that was cut short."""
        kept = [line for line in read_history(self.folder) if line.round <= round_]
        write_atomic(self.folder / HISTORY, _history_text(kept).encode())

    def write_checkpoint(
        self, networks: Mapping[int | str, NetworkOfRound], round_: int, gradient_norm: float = float("inf")
    ) -> None:
        """Save the networks after `round_`; `gradient_norm` is max_y ||grad_y||, infinite when a class is missing."""
        if gradient_norm < self.best[1]:
            self.best = (round_, gradient_norm)
        self.checkpoints.write(Checkpoint(round_, dict(networks), self.best))
        self.round = round_


def _history_text(lines: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(dict(_checked_line(line))) + "\n" for line in lines)


def _checked_line(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """The line as it was given, which the reader must be able to read."""
    HistoryLine.of(line)
    return line


def change_settings(folder: Path, config: RunConfig) -> None:
    """Write the settings of the run in `folder`."""
    write_atomic(folder / CONFIG, write_settings(config.settings()).encode())


def change_facts(folder: Path, **facts: Any) -> None:
    """Update `run.json`; what it holds beside stays, also what this version does not know.

    Raises:
        UserError: what is there is not valid JSON.
    """
    path = folder / FACTS
    before = _read_json(path) if path.exists() else {}
    write_atomic(path, json.dumps({**before, **facts}, indent=1).encode())


def write_metrics(folder: Path, rows: Iterable[MetricRow]) -> None:
    """Write `metrics.csv`."""
    text = StringIO()
    writer = csv.DictWriter(text, fieldnames=list(_disk_names(MetricRow)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(dict(row) for row in rows)
    write_atomic(folder / METRICS, text.getvalue().encode())


def write_audit(folder: Path, round_: int, rows: Iterable[AuditRow]) -> None:
    """Write `audit.json`: the rows, and the round whose networks were audited."""
    content = {"round": round_, "rows": [dict(row) for row in rows]}
    write_atomic(folder / AUDIT, json.dumps(content, indent=1).encode())


def write_arrays(folder: Path, generated: Mapping[int, NDArray[Any]], real: Mapping[int, NDArray[Any]]) -> None:
    """Write `samples.npz` into `folder`: `generated_<class>` and `real_<class>`, [n, *dims] each."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {f"generated_{y}": array for y, array in generated.items()}
    arrays |= {f"real_{y}": array for y, array in real.items() if len(array)}
    whole = BytesIO()
    np.savez_compressed(whole, **arrays)  # type: ignore[arg-type]
    write_atomic(folder / "samples.npz", whole.getvalue())


# Reading


def read_facts(folder: Path) -> RunFacts:
    """The facts of the run in `folder`.

    Raises:
        UserError: run.json is missing or damaged.
    """
    path = folder / FACTS
    content = _read_json(path)
    try:
        facts = RunFacts.of(content)
    except KeyError as error:
        raise UserError(f"{path} lacks {error.args[0]}") from None
    except TypeError as error:
        raise UserError(f"{path}: {error}") from None
    if facts.data is not None and facts.data not in DATA:
        raise UserError(f"{path}: data must be one of {', '.join(DATA)}, not {facts.data!r}")
    return facts


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {path.parent} is not a run folder") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no object of JSON: is the file damaged?")
    return content


def read_history(folder: Path, classes: int | None = None) -> list[HistoryLine]:
    """The lines of the history as they stand, none where there is no file; a cut last one is left out.

    Raises:
        UserError: another line is damaged, or is of a class that is not one of `classes`.
    """
    path = folder / HISTORY
    texts = path.read_bytes().split(b"\n") if path.exists() else []
    lines = []
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            line = HistoryLine.of(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError):
            if number == len(texts):  # a whole line ends in a newline, so that this one was being written
                break
            raise UserError(f"{path}, line {number} is not a line of history: is the file damaged?") from None
        if classes is not None and line.class_ not in range(classes):
            raise UserError(f"{path}, line {number}: class {line.class_} of {classes} classes")
        lines.append(line)
    return lines


def read_metrics(folder: Path, classes: int) -> list[MetricRow]:
    """The rows of `metrics.csv`, none where there is no file.

    Raises:
        UserError: a row is damaged, is of a class that is not one of `classes`, or comes twice.
    """
    path = folder / METRICS
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        lines = list(csv.DictReader(file))
    rows: dict[tuple[int | str, str], MetricRow] = {}
    for number, line in enumerate(lines, 2):
        row = _metric_row(line, f"{path}, line {number}")
        if isinstance(row.class_, int) and row.class_ not in range(classes):
            raise UserError(f"{path}, line {number}: class {row.class_} of {classes} classes")
        if (row.class_, row.metric) in rows:
            raise UserError(f"{path} gives {row.metric} of class {row.class_} twice: a folder holds one run")
        rows[row.class_, row.metric] = row
    return list(rows.values())


def _metric_row(line: Mapping[str, str], place: str) -> MetricRow:
    try:
        n_train, value = line.get("n_train"), line["value"]
        return MetricRow(
            method=line["method"],
            seed=int(line["seed"]),
            class_=line["class"] if line["class"] in (WORST, MEAN, ALL) else int(line["class"]),
            n_train=int(n_train) if n_train else None,
            metric=line["metric"],
            value=float(value) if value else math.nan,
        )
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{place} is not of the form {','.join(_disk_names(MetricRow))}") from None


def read_audit(folder: Path, classes: int) -> list[AuditRow]:
    """The rows of `audit.json`, none where there is no file.

    Raises:
        UserError: the file is damaged, or a row is of a class that is not one of `classes`.
    """
    path = folder / AUDIT
    if not path.exists():
        return []
    rows = []
    try:
        for values in json.loads(path.read_bytes())["rows"]:
            if values["class"] not in (WORST, MEAN, ALL, *range(classes)):
                raise UserError(f"{path}: class {values['class']} of {classes} classes")
            if lacking := {"attack", "metric", "value"} - set(values):
                raise UserError(f"{path}: a row lacks {', '.join(sorted(lacking))}")
            rows.append(AuditRow.of(values))
    except UserError:
        raise
    except (ValueError, KeyError, TypeError):
        again = f"fedmutual audit {path.parent}"
        raise UserError(f"{path} does not hold the rows of an audit: run `{again}` again") from None
    return rows


def read_samples(folder: Path) -> Mapping[str, NDArray[Any]]:
    """The run's `generated_<class>` and `real_<class>`, as many as there are.

    Raises:
        UserError: a file that is there and cannot be read.
    """
    path = folder / SAMPLES
    if not path.exists():
        return {}
    try:
        return _Samples(path, np.load(path, allow_pickle=False))
    except _UNREADABLE as error:
        raise UserError(f"{path} cannot be read: {error}") from None


_UNREADABLE = (OSError, ValueError, EOFError, BadZipFile, zlib.error)


class _Samples(Mapping[str, NDArray[Any]]):
    """The arrays of a samples.npz, each read when it is asked for; damage shows then."""

    def __init__(self, path: Path, arrays: Mapping[str, NDArray[Any]]):
        self.path, self.arrays = path, arrays

    def __getitem__(self, name: str) -> NDArray[Any]:
        try:
            return self.arrays[name]
        except _UNREADABLE as error:
            raise UserError(f"{self.path} cannot be read: {error}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def __contains__(self, name: object) -> bool:
        return name in self.arrays


# What a result may depend on


def versions() -> dict[str, str]:
    """Versions of what a result may depend on."""
    packages = ("fedmutual", "flwr", "ray", "torch", "numpy", "scikit-learn", "diffusers")
    installed = {"python": platform.python_version()}
    for package in packages:
        # Flower ships the app's code to a server in a bundle, so fedmutual itself need not be installed there.
        with suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed


def hardware() -> str:
    """The server's processor and GPU, on one line."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.machine()} {sys.platform}, {len(os.sched_getaffinity(0))} CPU cores{gpu}"
