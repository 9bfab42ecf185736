"""The report: one self-contained page, made from run folders and from nothing else."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from fedmutual.config import RunConfig
from fedmutual.errors import UserError
from fedmutual.evaluation import METRICS
from simulations.report import figures
from simulations.report.answer import answer
from simulations.report.comparison import Comparison, training_counts
from simulations.report.sections import (
    FEW,
    Table,
    budgets,
    differences,
    dots,
    head_of,
    leakage,
    metric_tables,
    overview,
    together,
    tradeoff,
    unequal,
)
from simulations.report.words import duration, number, size
from simulations.runs.arms import Arm, arms_of
from simulations.runs.folder import CURVES, DATA, Run, read_runs, read_samples

FAULTS = ("rejected", "missing", "error")


def _together(arms: Sequence[Arm]) -> list[tuple[str, list[Arm]]]:
    """Arms that share a drawing: all of a few, else those that do the same with the data."""
    if len(arms) <= FEW:
        return [("", list(arms))]
    groups = [(name, [arm for arm in arms if arm.data == data]) for data, name in DATA.items()]
    return [(name, group) for name, group in groups if group]


def curves(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """For each quantity of the history a panel a class, all panels on one scale; many arms in a row of panels a group.

    A line for each run, or where arms are many one for each arm, the mean over its seeds. A mutual term that had no
    weight (beta = 0) is left out: nobody minimised it.
    """
    classes = arms[0].runs[0].classes
    sections = []
    for quantity in CURVES:
        lines = {arm.label: _lines(arm, quantity, averaged=len(arms) > FEW) for arm in arms}
        every = [point for found in lines.values() for _, points in found for point in points]
        if not every:
            continue
        across = figures.rounds_axis(x for x, _ in every)
        up = figures.value_axis(y for _, y in every)
        groups = []
        for title, group in _together(arms):
            shown = [arm for arm in group if lines[arm.label]]
            charts = []
            for y, name in enumerate(classes):
                series = [
                    figures.Series(arm.style, points) for arm in shown for of, points in lines[arm.label] if of == y
                ]
                charts.append((name, figures.line_chart(series, across, up, f"{quantity} of class {name} over rounds")))
            if shown:
                groups.append({"title": title, "arms": list(map(head_of, shown)), "charts": charts})
        sections.append({"quantity": quantity, "log": up.log, "groups": groups})
    return sections


def _lines(arm: Arm, quantity: str, averaged: bool) -> list[tuple[int, list[tuple[float, float]]]]:
    """(class, points) for each run of the arm, or of their mean at the rounds that all of them have."""
    runs = [run.curve(quantity) for run in arm.runs]
    lines = [line for run in runs for line in run.items()]
    if not averaged or len(runs) == 1:
        return lines
    means = []
    for y in dict.fromkeys(y for y, _ in lines):
        found = [dict(points) for of, points in lines if of == y]
        rounds = sorted(set.intersection(*map(set, found)))
        if rounds:
            means.append((y, [(k, mean(points[k] for points in found)) for k in rounds]))
    return means


def samples(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """For each class its generated samples, an arm beside the other (its first seed), and real ones.

    Of many arms the largest, the middle and the rarest class alone: the run folders hold the others.
    """
    first = arms[0].runs[0]
    shape = tuple(first.facts.get("shape") or ())
    counts = training_counts(run for arm in arms for run in arm.runs)
    stores = {arm.label: read_samples(arm.runs[0].folder) for arm in arms}
    by_size = sorted(range(len(first.classes)), key=lambda y: (-counts.get(y, 0), y))
    middle = by_size[len(by_size) // 2]
    chosen = range(len(by_size)) if len(arms) <= FEW else dict.fromkeys((by_size[0], middle, by_size[-1]))
    sections = []
    for y in chosen:
        name = first.classes[y]
        real = next((store[f"real_{y}"] for store in stores.values() if f"real_{y}" in store), None)
        panels = []
        for title, group in _together(arms) if len(shape) != 3 else [("", arms)]:
            captions = {arm.style: _caption(arm, shape) for arm in group} | {None: "real" if len(shape) == 3 else title}
            drawn = {
                arm.style: store[f"generated_{y}"] for arm in group if f"generated_{y}" in (store := stores[arm.label])
            }
            panels += [(captions[style], figure) for style, figure in figures.sample_panels(shape, real, drawn, name)]
            panels += [  # without the samples themselves, the grids that the run drew of them
                (head_of(arm), figures.picture(figures.png_address(path.read_bytes()), f"samples of class {name}"))
                for arm in group
                if arm.style not in drawn and (path := arm.runs[0].folder / f"samples/class-{y:03d}.png").exists()
            ]
        if panels:
            sections.append({"name": name, "count": counts.get(y), "panels": panels})
    return sections


def _caption(arm: Arm, shape: tuple[int, ...]) -> Markup | str:
    """Images need no swatch: the name stands below them."""
    return arm.label if len(shape) == 3 else head_of(arm)


def costs(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """For each arm the bytes that each client received and sent, and its own compute; means over seeds."""
    tables = []
    for arm in arms:
        sums = np.zeros((len(arm.runs[0].classes), 3))
        for line in (line for run in arm.runs for line in run.history):
            sums[line["class"]] += [line.get(key) or 0 for key in ("bytes_down", "bytes_up", "seconds")]
        if sums.any():
            sums /= len(arm.runs)
            clients = [("all clients", sums.sum(0)), *zip(arm.runs[0].classes, sums, strict=True)]
            rows = [[name, size(down), size(up), duration(own)] for name, (down, up, own) in clients]
            tables.append({"title": head_of(arm), "head": ["client", "received", "sent", "own compute"], "rows": rows})
    return tables


def times(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """For each run, or each of many arms, the wall time in three parts: the clients' compute, the rest of the rounds,
    the rest.

    The first is what perfect scheduling would need: the sum of the clients' own compute over the clients at once.
    """
    bars = []
    for title, runs in [(arm.label, arm.runs) for arm in arms] if len(arms) > FEW else _each(arms):
        parts = np.array([_parts(run) for run in runs if run.history])
        local, ideal, rounds, whole_time = parts.mean(0) if len(parts) else np.zeros(4)
        if not local or not rounds:
            continue
        named = [
            ("clients' compute", ideal),
            ("rest of the rounds", rounds - ideal),
            ("outside them", whole_time - rounds),
        ]
        at_once = runs[0].facts.get("clients_at_once") or 1
        ratio = rounds * at_once / local
        bar = {"title": title, "parts": named, "whole": whole_time, "local": local, "at_once": at_once, "ratio": ratio}
        bars.append(bar)
    return bars


def _parts(run: Run) -> tuple[float, float, float, float]:
    """Seconds: all clients' compute, the same spread over the clients at once, all rounds, everything."""
    local = sum(line.get("seconds") or 0 for line in run.history)
    rounds = sum({line["round"]: line.get("round_seconds") or 0 for line in run.history}.values())
    ideal = min(local / (run.facts.get("clients_at_once") or 1), rounds)
    return local, ideal, rounds, max(run.facts.get("wall_seconds") or 0, rounds)


def _each(arms: Sequence[Arm]) -> list[tuple[str, list[Run]]]:
    return [(title, [run]) for title, run in _titled(arms)]


def faults(arms: Sequence[Arm]) -> Table:
    """Every reply that was rejected, missing or an error, with its reason."""
    rows = [
        [title, line["round"], run.classes[line["class"]], line["status"], line.get("reason") or "–"]
        for title, run in _titled(arms)
        for line in run.history
        if line.get("status") in FAULTS
    ]
    return {"head": ["run", "round", "class", "status", "reason"], "rows": rows}


def _titled(arms: Sequence[Arm]) -> list[tuple[str, Run]]:
    return [(arm.title(run), run) for arm in arms for run in arm.runs]


def settings(arms: Sequence[Arm]) -> dict[str, Table]:
    """Settings `away` from their default in any arm, and `all`; where arms differ, each value and who has it."""
    defaults = RunConfig().settings()
    unknown = {key for arm in arms for key in arm.runs[0].settings} - set(defaults)
    away, every = [], []
    for key in [*defaults, *sorted(unknown)]:
        holders: dict[str, list[str]] = {}
        for arm in arms:
            value = ", ".join(dict.fromkeys(_literal(run.settings.get(key)) for run in arm.runs))
            holders.setdefault(value, []).append(arm.label)
        told = [value if len(holders) == 1 else f"{value}: {', '.join(labels)}" for value, labels in holders.items()]
        row = [key, Markup("<br>").join(told), _literal(defaults.get(key))]
        every.append(row)
        if set(holders) != {row[-1]} and key not in ("out", "store"):
            away.append(row)
    head = ["setting", "value", "default"]
    return {"away": {"head": head, "rows": away}, "all": {"head": head, "rows": every}}


def _literal(value: Any) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def runs_table(arms: Sequence[Arm]) -> Table:
    """What each run is, and how far it came."""
    rows = []
    for title, run in _titled(arms):
        facts, planned = run.facts, run.settings.get("rounds")
        rounds = f"{run.rounds_done} of {planned}" if planned else str(run.rounds_done)
        parameters = f"{facts['parameters']:,}" if facts.get("parameters") else "–"
        started = (facts.get("started") or "–")[:16].replace("T", " ")
        wall = duration(facts.get("wall_seconds"))
        rows.append([title, run.seed, facts.get("status") or "–", rounds, parameters, started, wall])
    return {"head": ["run", "seed", "status", "rounds", "parameters", "started", "wall time"], "rows": rows}


def environments(arms: Sequence[Arm]) -> dict[str, list[str]]:
    """The runs by hardware and versions, in words."""
    found: dict[str, list[str]] = {}
    for title, run in _titled(arms):
        versions = ", ".join(f"{name} {version}" for name, version in (run.facts.get("versions") or {}).items())
        text = ". ".join(part for part in (run.facts.get("hardware"), versions) if part)
        found.setdefault(text or "not recorded", []).append(title)
    return found


def _shortage(arms: Sequence[Arm]) -> dict[str, int] | None:
    """Dimension and fewest real samples, where the samples are too few to fix a covariance matrix."""
    runs = [run for arm in arms for run in arm.runs]
    dimension = math.prod(runs[0].facts.get("shape") or [0])
    fewest = min((int(value) for run in runs for value in run.scores("n_reference").values()), default=dimension)
    return {"dimension": dimension, "fewest": fewest} if fewest <= dimension and fewest else None


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write the page for `runs` to `out` and return it.

    Raises:
        UserError: as `read_runs`, samples that cannot be read, or a page that cannot be written.
    """
    read = read_runs(runs)
    found = arms_of(read)
    arms = Comparison(found)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"duration": duration, "number": number, "known_metric": METRICS.__getitem__}
    template = environment.from_string(Path(__file__).with_name("report.html").read_text())
    several = len(found) > 1
    page = template.render(
        title=", ".join(dict.fromkeys(run.name for run in read)),
        arms=[(head_of(arm), arm) for arm in found],
        many=len(found) > FEW,
        seeds=max(len(arm.runs) for arm in found),
        answer=answer(arms),
        unfinished=[(title, run) for title, run in _titled(found) if run.facts.get("status") != "done"],
        overview=overview(arms) if several else None,
        tradeoff=tradeoff(arms) if several else None,
        dots=dots(arms) if several else None,
        metrics=metric_tables(arms),
        together=together(arms),
        differences=differences(arms) if len(found) > FEW else [],
        images=len(read[0].facts.get("shape") or ()) == 3,
        samples=samples(found),
        leakage=leakage(arms),
        curves=curves(found),
        budgets=budgets(arms) if several else None,
        unequal=unequal(found),
        costs=costs(found),
        times=times(found),
        faults=faults(found),
        runs=runs_table(found),
        settings=settings(found),
        environments=environments(found),
        shortage=_shortage(found),
    )
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None
    return out
