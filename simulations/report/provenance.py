"""What was run: runs and their status, settings, hardware and versions, and replies that were not used."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fedmutual.config import RunConfig
from simulations.report.tables import Table
from simulations.report.words import NOTHING, duration
from simulations.runs.arms import Arm
from simulations.runs.folder import Run

FAULTS = ("rejected", "missing", "error")


@dataclass(frozen=True)
class Settings:
    """Settings `away` from their default in any arm, and `all` of them."""

    away: Table
    all: Table


def titled_runs(arms: Sequence[Arm]) -> list[tuple[str, Run]]:
    return [(arm.title(run), run) for arm in arms for run in arm.runs]


def title(runs: Sequence[Run]) -> str:
    """What the runs are about: the names of their presets and of their data files, or of their sources."""
    return ", ".join(dict.fromkeys(map(_name, runs)))


def _name(run: Run) -> str:
    own = run.settings.get("data") in ("npz", "folder")
    data = str(run.settings.get("data-path") or "").rstrip("/").rpartition("/")[2] if own else ""
    # A preset of images is a recipe for whatever data it is given, so that its name alone would mislead.
    return ": ".join(filter(None, (run.facts.preset, data.removesuffix(".npz")))) or run.name


def faults(arms: Sequence[Arm]) -> Table:
    """Every reply that was rejected, missing or an error, with its reason."""
    rows = [
        [name, line["round"], run.classes[line["class"]], line["status"], line.get("reason") or NOTHING]
        for name, run in titled_runs(arms)
        for line in run.history
        if line.get("status") in FAULTS
    ]
    return Table(["run", "round", "class", "status", "reason"], rows)


def settings(arms: Sequence[Arm]) -> Settings:
    """Where arms differ in a setting, each value and the arms that have it."""
    defaults = RunConfig().settings()
    unknown = {key for arm in arms for key in arm.runs[0].settings} - set(defaults)
    away, every = [], []
    for key in [*defaults, *sorted(unknown)]:
        holders: dict[str, list[str]] = {}
        for arm in arms:
            value = ", ".join(dict.fromkeys(_literal(run.settings.get(key)) for run in arm.runs))
            holders.setdefault(value, []).append(arm.label)
        texts = [value if len(holders) == 1 else f"{value}: {', '.join(labels)}" for value, labels in holders.items()]
        default = _literal(defaults.get(key))
        row = [key, Markup("<br>").join(texts), default]
        every.append(row)
        if set(holders) != {default} and key not in ("out", "store"):
            away.append(row)
    head = ["setting", "value", "default"]
    return Settings(away=Table(head, away), all=Table(head, every))


def _literal(value: Any) -> str:
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def runs_table(arms: Sequence[Arm]) -> Table:
    """What each run is, and how far it came."""
    rows = []
    for name, run in titled_runs(arms):
        facts, planned = run.facts, run.settings.get("rounds")
        rounds = f"{run.rounds_done} of {planned}" if planned else str(run.rounds_done)
        parameters = f"{facts['parameters']:,}" if facts.get("parameters") else NOTHING
        started = (facts.get("started") or NOTHING)[:16].replace("T", " ")
        wall = duration(facts.get("wall_seconds"))
        rows.append([name, run.seed, facts.get("status") or NOTHING, rounds, parameters, started, wall])
    return Table(["run", "seed", "status", "rounds", "parameters", "started", "wall time"], rows)


def environments(arms: Sequence[Arm]) -> dict[str, list[str]]:
    """{hardware and versions as one sentence: the runs on it}."""
    runs: dict[str, list[str]] = {}
    for name, run in titled_runs(arms):
        versions = ", ".join(f"{package} {version}" for package, version in (run.facts.get("versions") or {}).items())
        text = ". ".join(part for part in (run.facts.get("hardware"), versions) if part)
        runs.setdefault(text or "not recorded", []).append(name)
    return runs


def extractors(runs: Sequence[Run]) -> list[str]:
    """The feature extractors that the runs were measured with, each once: its file, and how well it classifies."""
    recorded = {str(facts.get("sha256")): facts for run in runs if (facts := run.facts.get("extractor"))}
    return [_extractor(facts) for facts in recorded.values()]


def _extractor(facts: dict[str, Any]) -> str:
    accuracy = facts.get("accuracy")
    right = f" (classifies {100 * accuracy:.1f} % of its test images correctly)" if accuracy is not None else ""
    return f"{facts.get('file', 'without a recorded name')}{right}"
