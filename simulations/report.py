"""The report: one self-contained page, and table rows, made from run folders and from nothing else."""

import math
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from scipy.stats import t as student

from fedmutual.config import RunConfig, UserError
from fedmutual.evaluation import LARGER_IS_WORSE, SMALLER_IS_WORSE
from simulations import figures
from simulations.runs import Arm, Run, arms_of, read_runs, read_samples

DISTANCES = ("fd", "fd-features", "kl", "kid")  # the answer is given in the first of these that was measured
METRICS = (*DISTANCES, "precision", "recall", "f8", "memorisation")
CURVES = ("held_out", "loss", "mutual", "grad_norm")
FAULTS = ("rejected", "missing", "error")

Table = dict[str, list[Any]]  # {"head": cells, "rows": lists of cells}; the first of a row is its heading


def table(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """The rows of the runs' metrics, worst class first, then the mean, all classes together, and each class.

    Each has run (its arm, and its seed where the arm has several: unlike the name in run.json no two runs share
    it), method, seed, class (an index, "worst", "mean" or "all"), name, n_train, metric and value (None where
    undefined), so that it can be written as JSON.

    Raises:
        UserError: as `read_run`, and runs whose classes differ.
    """
    order = {"worst": -3, "mean": -2, "all": -1}
    rows = []
    for title, run in _titled(arms_of(read_runs(runs))):
        for row in sorted(run.rows, key=lambda row: order.get(row["class"], row["class"])):
            y = row["class"]
            name = run.classes[y] if isinstance(y, int) else y
            value = None if math.isnan(row["value"]) else row["value"]
            rows.append({"run": title, **row, "name": name, "value": value})
    return rows


# The answer


def number(value: float | None) -> str:
    """A measured value in three or four digits; – where there is none."""
    if value is None or math.isnan(value):
        return "–"
    size = abs(value)
    if size == 0 or size >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if size >= 1 else f"{value:.3f}" if size >= 1e-3 else f"{value:.1e}"


def _training_counts(runs: Iterable[Run]) -> dict[int, int]:
    """Training samples of each class, where a run tells them."""
    counts: dict[int, int] = {}
    for run in runs:
        told = {row["class"]: row["n_train"] for row in run.rows if isinstance(row["class"], int)}
        told |= dict(enumerate(run.facts.get("training_counts") or []))
        counts |= {y: count for y, count in told.items() if count is not None and y not in counts}
    return counts


def _interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of the mean of two or more values (Student's t)."""
    return float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def headline(arms: Sequence[Arm]) -> list[str]:
    """The answer in sentences: which class is worst, and which arm has the better worst class."""
    metric = next((name for name in DISTANCES if any(arm.summaries(name) for arm in arms)), None)
    if metric is None:
        return ["No samples have been measured yet, so there is no answer. What is known so far is below."]
    worst = {arm.style: [summary.worst for summary in arm.summaries(metric).values()] for arm in arms}
    measured = [arm for arm in arms if worst[arm.style]]
    best, *others = sorted(measured, key=lambda arm: mean(worst[arm.style]))
    value = f"at a distance of {number(mean(worst[best.style]))} from real data ({metric}; 0 is best)"
    if others:
        answer = [f"The worst class fares best with {best.label}: it is {_worst_class(best, metric)}, {value}."]
        answer += [f"With {arm.label} it is {_worst_class(arm, metric)}, {_gap(best, arm, metric)}." for arm in others]
    else:
        overall = mean(summary.mean for summary in best.summaries(metric).values())
        answer = [f"The worst class with {best.label} is {_worst_class(best, metric)}, {value}."]
        answer.append(f"The mean over classes is {number(overall)}.")
    if max(map(len, worst.values())) == 1:
        what = "Each rests" if others else "This rests"
        answer.append(f"{what} on one seed, and one seed proves nothing: repeat with several before believing it.")
    return answer


def _worst_class(arm: Arm, metric: str) -> str:
    worst, counts = arm.worst_classes(metric), _training_counts(arm.runs)
    names = " or ".join(arm.runs[0].classes[y] for y in worst)
    if len(worst) > 1:
        return f"class {names}"
    return f"class {names} ({counts[worst[0]]} training samples)" if worst[0] in counts else f"class {names}"


def _gap(best: Arm, other: Arm, metric: str) -> str:
    """How far the other's worst class is from the best's, with an interval where seeds can be paired."""
    ours, theirs = ({seed: s.worst for seed, s in arm.summaries(metric).items()} for arm in (best, other))
    base, value = mean(ours.values()), mean(theirs.values())
    share = f" ({_percent((value - base) / base)})" if base > 0 else ""
    text = f"at {number(value)}: {number(value - base)} higher{share}"
    pairs = [theirs[seed] - ours[seed] for seed in ours if seed in theirs]
    if len(pairs) < 2:
        return text
    middle, half = mean(pairs), _interval(pairs)
    chance = ", so it may be chance" if abs(middle) <= half else ""
    return f"{text}; 95 % interval {number(middle - half)} to {number(middle + half)} over {len(pairs)} seeds{chance}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%" if share < 0.1 else f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


# Sections


def _head(arm: Arm) -> Markup:
    return figures.swatch(arm.style) + Markup(" {}").format(arm.label)


def _cells(metric: str, samples: Sequence[Sequence[float]], notes: Sequence[str] = ()) -> list[Markup]:
    """A row's cells, a sample of seeds each: the mean, the best in bold and starred; an interval and a note small."""
    values = [mean(sample) if sample else math.nan for sample in samples]
    known = [value for value in values if not math.isnan(value)]
    directed = metric in LARGER_IS_WORSE | SMALLER_IS_WORSE and len(set(known)) > 1
    best = (min if metric in LARGER_IS_WORSE else max)(known) if directed else None
    cells = []
    for value, sample, note in zip_longest(values, samples, notes, fillvalue=""):
        form = '<b>{}<span class="star" title="best of the row"> ★</span></b>' if value == best else "{}"
        spread = f"± {number(_interval(sample))}" if len(sample) > 1 else ""
        small = [Markup("<small>{}</small>").format(text) for text in (spread, note) if text]
        cells.append(Markup(form).format(number(value)) + Markup("").join(small))
    return cells


def metric_tables(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """A table for each metric: the worst class, the mean, then each class; a column for each arm."""
    classes, runs = arms[0].runs[0].classes, [run for arm in arms for run in arm.runs]
    counts = _training_counts(runs)
    real = {y: value for run in runs for y, value in run.scores("n_reference").items()}
    by_class = {row["metric"] for run in runs for row in run.rows if row["class"] != "all"}
    present = by_class - {"n_reference", "n_generated"}
    names = [name for name in METRICS if name in present] + sorted(present - set(METRICS))
    tables = []
    for metric in names:
        rows = []
        if metric in METRICS:
            sums = [arm.summaries(metric).values() for arm in arms]
            notes = [_short_names([classes[y] for y in arm.worst_classes(metric)]) for arm in arms]
            rows.append(["worst class", "", "", *_cells(metric, [[s.worst for s in found] for found in sums], notes)])
            rows.append(["mean", "", "", *_cells(metric, [[s.mean for s in found] for found in sums])])
        for y, name in enumerate(classes):
            cells = _cells(metric, [arm.values(metric, y) for arm in arms])
            rows.append([name, counts.get(y, "–"), _whole(real.get(y)), *cells])
        tables.append({"metric": metric, "head": ["class", "train", "real", *map(_head, arms)], "rows": rows})
    return tables


def _short_names(names: Sequence[str]) -> str:
    """class 9; class 8, 9; class 5 and 3 more."""
    if not names:
        return ""
    return f"class {', '.join(names)}" if len(names) < 3 else f"class {names[0]} and {len(names) - 1} more"


def _whole(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.0f}"


def curves(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """For each quantity of the history a panel a class, all panels on one scale, a line for each run.

    A mutual term that had no weight (beta = 0) is left out: nobody minimised it.
    """
    classes = arms[0].runs[0].classes
    sections = []
    for quantity in CURVES:
        by_class = [[] for _ in classes]
        for arm in arms:
            for run in arm.runs:
                for y, points in _points(run, quantity).items():
                    by_class[y].append(figures.Series(arm.style, points))
        every = [point for panel in by_class for series in panel for point in series.points]
        if not every:
            continue
        across = figures.rounds_axis(x for x, _ in every)
        up = figures.value_axis(y for _, y in every)
        charts = [
            figures.line_chart(panel, across, up, f"{quantity} of class {name} over rounds")
            for name, panel in zip(classes, by_class, strict=True)
        ]
        styles = {series.style for panel in by_class for series in panel}
        charts = list(zip(classes, charts, strict=True))
        sections.append({"quantity": quantity, "log": up.log, "styles": styles, "charts": charts})
    return sections


def _points(run: Run, quantity: str) -> dict[int, list[tuple[float, float]]]:
    points: dict[int, list[tuple[float, float]]] = {}
    for line in run.history:
        value, beta = line.get(quantity), line.get("beta")
        beta = run.settings.get("beta") if beta is None else beta
        if value is None or not math.isfinite(value) or (quantity == "mutual" and beta == 0):
            continue
        points.setdefault(line["class"], []).append((line["round"], value))
    return points


def samples(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """For each class its generated samples, an arm beside the other (its first seed), and real ones."""
    first = arms[0].runs[0]
    shape = tuple(first.facts.get("shape") or ())
    counts = _training_counts(run for arm in arms for run in arm.runs)
    stores = [read_samples(arm.runs[0].folder) for arm in arms]
    captions = {arm.style: _head(arm) for arm in arms} | ({None: "real"} if len(shape) == 3 else {})
    sections = []
    for y, name in enumerate(first.classes):
        real = next((store[f"real_{y}"] for store in stores if f"real_{y}" in store), None)
        drawn = {
            arm.style: store[f"generated_{y}"]
            for arm, store in zip(arms, stores, strict=True)
            if f"generated_{y}" in store
        }
        panels = figures.sample_panels(shape, real, drawn, name)
        panels += [  # without the samples themselves, the grids that the run drew of them
            (arm.style, figures.picture(figures.png_address(path.read_bytes()), f"samples of class {name}"))
            for arm in arms
            if arm.style not in drawn and (path := arm.runs[0].folder / f"samples/class-{y:03d}.png").exists()
        ]
        if panels:
            captioned = [(captions.get(style, ""), figure) for style, figure in panels]
            sections.append({"name": name, "count": counts.get(y), "panels": captioned})
    return sections


def size(count: float) -> str:
    """Bytes in decimal units: 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: 0.25 s, 42 s, 3 min 20 s, 2 h 5 min."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return (
        f"{seconds // 60:.0f} min {seconds % 60:.0f} s" if seconds < 3600 else f"{minutes // 60} h {minutes % 60} min"
    )


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
            tables.append({"title": _head(arm), "head": ["client", "received", "sent", "own compute"], "rows": rows})
    return tables


def times(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """For each run its wall time in three parts: the clients' compute, the rest of the rounds, the rest.

    The first is what perfect scheduling would need: the sum of the clients' own compute over the clients at once.
    """
    bars = []
    for title, run in _titled(arms):
        local = sum(line.get("seconds") or 0 for line in run.history)
        rounds = sum({line["round"]: line.get("round_seconds") or 0 for line in run.history}.values())
        if not local or not rounds:
            continue
        at_once = run.facts.get("clients_at_once") or 1
        whole = max(run.facts.get("wall_seconds") or 0, rounds)
        ideal = min(local / at_once, rounds)
        parts = [("clients' compute", ideal), ("rest of the rounds", rounds - ideal), ("outside them", whole - rounds)]
        ratio = run.facts.get("overhead") or rounds * at_once / local
        bars.append(
            {"title": title, "parts": parts, "whole": whole, "local": local, "at_once": at_once, "ratio": ratio}
        )
    return bars


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
    """Settings by arm: `away` from their default in any arm, and `all`."""
    defaults = RunConfig().settings()
    unknown = {key for arm in arms for key in arm.runs[0].settings} - set(defaults)

    def values(key: str) -> list[str]:
        return [", ".join(dict.fromkeys(_literal(run.settings.get(key)) for run in arm.runs)) for arm in arms]

    rows = {key: [key, *values(key), _literal(defaults.get(key))] for key in [*defaults, *sorted(unknown)]}
    away = [row for key, row in rows.items() if set(row[1:-1]) != {row[-1]} and key not in ("out", "store")]
    head = ["setting", *(_head(arm) for arm in arms), "default"]
    return {"away": {"head": head, "rows": away}, "all": {"head": head, "rows": list(rows.values())}}


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
    arms = arms_of(read)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"duration": duration, "number": number}
    template = environment.from_string(Path(__file__).with_suffix(".html").read_text())
    page = template.render(
        title=", ".join(dict.fromkeys(run.name for run in read)),
        arms=[(_head(arm), arm) for arm in arms],
        answer=headline(arms),
        unfinished=[(title, run) for title, run in _titled(arms) if run.facts.get("status") != "done"],
        metrics=metric_tables(arms),
        images=len(arms[0].runs[0].facts.get("shape") or ()) == 3,
        samples=samples(arms),
        curves=curves(arms),
        costs=costs(arms),
        times=times(arms),
        faults=faults(arms),
        runs=runs_table(arms),
        settings=settings(arms),
        environments=environments(arms),
        shortage=_shortage(arms),
    )
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None
    return out
