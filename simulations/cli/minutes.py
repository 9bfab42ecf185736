"""`--minutes N`, and data of one's own in place of a preset: settings that are chosen for the data and the time."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmutual.config import RunConfig, refuse_without_effect
from fedmutual.errors import UserError
from fedmutual.settings import read_settings, write_settings
from simulations.cli.presets import PRESETS, names, read_preset
from simulations.terminal import progress

if TYPE_CHECKING:
    from fedmutual.data.facts import Facts
    from simulations.experiments.choosing import Choice
    from simulations.experiments.foreseen import Machine, Speed
    from simulations.experiments.rungs import Rung, Task

DEFAULT_MINUTES = 15.0

METHODS, SEEDS = "mutual-scarcity,isolated,reweighted", 3
"""What a comparison of data of one's own is made of unless it is said."""


@dataclass
class Chosen:
    """Settings for the time that is asked for; `seconds`: what the parts of the command took."""

    source: str
    minutes: float
    settings: dict[str, Any]
    foreseen: Mapping[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part of the command."""
        began = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began

    def write(self, folder: Path, command: str) -> None:
        """Write the settings as a preset into `folder`, and say how it is used again."""
        from fedmutual.run_folder import PRESET

        path = folder / PRESET
        if path.exists():  # a comparison that goes on
            return
        lines = [
            f"# Chosen by `fedmutual {command}` for {Path(self.source).name} and {self.minutes:g} minutes.",
            f"# Change what you like, and run `fedmutual {command} {path}`.",
        ]
        path.write_text("\n".join(lines) + "\n" + write_settings(self.settings), encoding="utf-8")
        print(f"settings: {path}, to be changed and run again", file=sys.stderr)

    def finish(self, folder: Path) -> None:
        """Say what was asked and what it took, and keep that in `folder`; not of a part that goes on with another."""
        if not self.foreseen:
            return
        from fedmutual.run_folder import MINUTES

        taken = sum(self.seconds.values())
        record = {"asked": self.minutes, "taken": taken / 60, "foreseen": self.foreseen, "seconds": self.seconds}
        (folder / MINUTES).write_text(json.dumps(record, indent=1), encoding="utf-8")
        print(f"minutes: {self.minutes:g} asked, {taken / 60:.1f} taken", file=sys.stderr)


@contextmanager
def untimed(name: str) -> Iterator[None]:
    """As `Chosen.part`, for a command that no time was asked of."""
    yield


def is_data(name: str) -> bool:
    """Whether the argument of a command is a folder or file of data, and not a preset.

    Raises:
        UserError: it might be both.
    """
    path = Path(name)
    if name in names():
        if path.exists():
            raise UserError(
                f"{name} is a preset, and a {'folder' if path.is_dir() else 'file'} here: write ./{name} for the data, "
                f"or {PRESETS / name}.toml for the preset"
            )
        return False
    return path.suffix != ".toml" and os.path.exists(path)  # any text may be a path


def chosen(
    name: str,
    minutes: float | None,
    given: Mapping[str, Any],
    cpus: int,
    gpus: int,
    comparison: tuple[str, int] | None = None,
) -> Chosen | None:
    """The settings for data of one's own, or for a preset with `--minutes`; None for a preset without.

    comparison: its methods and the number of its seeds.

    Raises:
        UserError: settings or data that cannot work, or too little time.
    """
    data = is_data(name)
    if minutes is None and not data:
        return None
    began = time.monotonic()
    asked = DEFAULT_MINUTES if minutes is None else minutes

    from fedmutual.data.facts import facts_of
    from simulations.experiments.choosing import choose, refuse_too_short
    from simulations.experiments.rungs import Rung, rungs

    refuse_too_short(asked)
    if "local-steps" in given:
        raise UserError(
            "local-steps is what the minutes decide: leave it out, or change it in the preset that is written"
        )
    task = _task(comparison, given if data else {**read_preset(name), **given})
    if data:
        source = _source(name, given)
        facts = facts_of(RunConfig.of(source).data)
        among = [Rung({**source, **rung.settings}, rung.least) for rung in rungs(facts, given, task)]
    else:
        preset = RunConfig.of(read_preset(name), _common(given)).settings()
        facts = facts_of(RunConfig.of(preset).data)
        del preset["local-steps"]
        if preset["data-path"]:
            preset["data-path"] = str(Path(os.path.expanduser(preset["data-path"])).absolute())
        among = [Rung(preset)]
    for rung in among:  # what is wrong is said before time is spent
        config = RunConfig.of(_common(rung.settings))
        if comparison is None:
            refuse_without_effect(config, given)
    machine, timed = _timed(among, facts, asked, task, cpus, gpus, began)
    choice = choose(facts, machine, timed, asked, task)
    _tell(choice, facts)
    return Chosen(name, asked, choice.settings, choice.parts, {"choosing": time.monotonic() - began})


def again(folder: Path | None, name: str, minutes: float | None, given: Mapping[str, Any]) -> Chosen | None:
    """What was chosen for the comparison in `folder`, which goes on with it; None where nothing was.

    Raises:
        UserError: it was chosen for something else than `name`.
    """
    from fedmutual.run_folder import PRESET

    if folder is None or not (folder / PRESET).exists():
        return None
    settings = read_settings(folder / PRESET)
    now = _source(name, {}) if is_data(name) else RunConfig.of(_common({**read_preset(name), **given})).settings()
    for key in ("data", "data-path") if is_data(name) else ("data",):
        if settings.get(key, now[key]) != now[key]:
            raise UserError(
                f"{folder} goes on with {key} = {settings[key]}, and {name} has {now[key]}: name what it was begun "
                "with, or another folder for --out"
            )
    print(f"note: {folder} goes on with the settings of {folder / PRESET}", file=sys.stderr)
    return Chosen(name, DEFAULT_MINUTES if minutes is None else minutes, settings)


def _task(comparison: tuple[str, int] | None, settings: Mapping[str, Any]) -> "Task":
    from simulations.experiments.plan import method_names
    from simulations.experiments.rungs import Task

    rule = RunConfig.of({key: settings[key] for key in ("beta-rule",) if key in settings}).mutual.rule
    if comparison is None:
        return Task(tuple(method_names("mutual", rule)))
    return Task(method_names(comparison[0], rule), comparison[1], audited=True)


def _source(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    from fedmutual.data.overview import settings_for

    where = [key for key in ("data", "data-path", "classes") if key in given]
    if where:
        raise UserError(f"{where[0]} is read off {name}: leave {where[0]} out")
    own = settings_for(Path(name))
    return {**own, "data-path": str(Path(os.path.expanduser(name)).absolute()), "classes": 0}


def _common(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those of single methods, METHOD.key."""
    return {key: value for key, value in settings.items() if "." not in key}


def _timed(
    among: Sequence["Rung"], facts: "Facts", minutes: float, task: "Task", cpus: int, gpus: int, began: float
) -> "tuple[Machine, list[tuple[Rung, Speed]]]":
    """This machine, and the speed of those settings among which the time lets choose."""
    from fedmutual.data import sample_shape
    from fedmutual.data.facts import reading_seconds
    from simulations.engine.simulation import clients_at_once
    from simulations.experiments.choosing import worth_timing
    from simulations.experiments.foreseen import Machine
    from simulations.experiments.rungs import Rung
    from simulations.experiments.timing import timing

    at_once = clients_at_once(facts.classes, cpus)
    timed: list[tuple[Rung, Speed]] = []
    with progress("timing this machine", len(among), "networks") as advance, timing(at_once) as clock:
        reading = reading_seconds(RunConfig.of(_common(among[0].settings)).data)
        machine = Machine(at_once, clock.start, reading)
        for done, rung in enumerate(among, 1):
            if not worth_timing(rung, facts, machine, timed, minutes, task):
                break
            config = RunConfig.of(_common(rung.settings), {} if gpus else {"device": "cpu"})
            shape = sample_shape(config.data)
            speed, autocast = clock.speed(config, shape, facts.classes, _sizes(facts, config))
            timed.append((Rung({**rung.settings, "autocast": autocast}, rung.least), speed))
            advance(done)
    return Machine(at_once, clock.start, reading, time.monotonic() - began), timed


def _sizes(facts: "Facts", config: RunConfig) -> tuple[int, int]:
    """(training, test) samples of a class, on average."""
    test = sum(facts.test) // facts.classes if facts.test else config.data.test
    return sum(facts.counts) // facts.classes, test


def _tell(choice: "Choice", facts: "Facts") -> None:
    """The plan, and what should be known of it, on stderr."""
    settings, steps = choice.settings, choice.settings["rounds"] * choice.settings["local-steps"]
    for notice in choice.notices:
        print(f"note: {notice}", file=sys.stderr)
    measured = "a classifier trained here" if settings.get("extractor") == "train" else "pixels"
    parts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in choice.parts.items())
    print(
        f"plan: {facts.classes} classes of {min(facts.counts)} to {max(facts.counts)} samples, read as "
        f"{settings['shape'].replace(',', ' x ')}; {network_in_words(settings)}; {steps} steps of batch "
        f"{RunConfig.of(_common(settings)).optimiser.batch} in {settings['rounds']} rounds; {settings['samples']} "
        f"samples of each class, measured by {measured}\nplan, in seconds: {parts}",
        file=sys.stderr,
    )


def network_in_words(settings: Mapping[str, Any]) -> str:
    """The network that settings name, and its size."""
    network = RunConfig.of(_common(settings)).network
    if network.kind == "mlp":
        return f"an MLP of {network.depth} layers of {network.width}"
    levels = [network.width * int(part) for part in network.multipliers.split(",")]
    channels = ", ".join(map(str, levels))
    return f"{network.kind} of {channels} channels" if network.kind.startswith("unet") else network.kind
