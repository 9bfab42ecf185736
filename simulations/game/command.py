"""`fedmutual game PRESET`: the theory played exactly, as rows, figures and a page that says what holds."""

import json
import math
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader
from rich.console import Console
from rich.table import Table

from fedmutual.errors import UserError
from fedmutual.evaluation.intervals import Estimate
from simulations.game import claims as game_claims
from simulations.game import pictures as game_pictures
from simulations.game.cases import Case, Preset, Settings, preset
from simulations.game.dynamics import Curve, benchmark, local_step_curves, nash_curves, peer_curves, slopes, stability
from simulations.game.figures import Picture
from simulations.game.play import Measured, draw, measure, method
from simulations.game.world import World
from simulations.terminal import progress

Row = dict[str, Any]
DYNAMICS_SEEDS = 20
"""Games behind the figures of approach; their intervals are narrow, and a long descent costs most of the time."""


@dataclass(frozen=True)
class Report:
    """What a run found. `about` says what was played; `health`: (what, its worst value over all networks)."""

    about: str
    rows: list[Row]
    claims: list[game_claims.Claim]
    pictures: list[Picture]
    health: list[tuple[str, float]]


def run(name: str, seeds: int | None, settings: Settings, out: Path | None) -> Report:
    """Play preset `name` on `seeds` games; writes report.html, with figures, and rows.json under `out` where given."""
    found = preset(name)
    settings = replace(settings, betas=settings.betas or found.betas)
    count = found.default_seeds if seeds is None else seeds
    if count < 1:
        raise UserError("seeds must be at least 1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the matrices are small: threads would only wait for each other
    try:
        report = _play(name, found, list(range(count)), settings, figures=out is not None)
    finally:
        torch.set_num_threads(threads)
    if out:
        write(report, name, count, settings, out)
    return report


def _play(name: str, found: Preset, seeds: list[int], settings: Settings, figures: bool) -> Report:
    results = {}
    games = [min(len(seeds), case.most_seeds) for case in found.cases]
    with progress("playing", sum(games), "games") as advance:
        for case, before in zip(found.cases, accumulate([0, *games[:-1]]), strict=True):
            played = seeds[: case.most_seeds]
            measured = measure(case, found.metric, played, settings, lambda n, before=before: advance(before + n))
            results[case.label] = (case, measured)
    rows = [row for case, measured in results.values() for row in rows_of(name, found, case, measured)]
    claims, pictures = _claims(name, found, results), []
    if name == "phase":
        pictures += [game_pictures.phase(results, settings)] if figures else []
    else:
        case = found.cases[0]
        world = draw(case, seeds[:DYNAMICS_SEEDS], settings)
        beta = game_pictures.best_beta(results[case.label][1], settings)
        more_rows, more_claims, gaps, approach = _dynamics(name, case, world, settings, beta)
        rows, claims = rows + more_rows, claims + more_claims
        if figures:
            pictures += game_pictures.all_of(found, results, seeds, settings)
            pictures += game_pictures.approach(case.label, beta, gaps, approach)
    health: dict[str, float] = {}
    for _, measured in results.values():
        health |= {key: max(value, health.get(key, 0.0)) for key, value in measured.health.items()}
    return Report(found.about, rows, claims, pictures, list(health.items()))


def rows_of(name: str, found: Preset, case: Case, measured: Measured) -> list[Row]:
    """One row for each arm and class: mean, interval, paired difference from beta 0, and the paper's number."""
    rows = []
    for (learning, arm), values in measured.values.items():
        base = measured.values[learning, method("0")]
        columns = {"worst": (values.amax(-1), base.amax(-1)), "mean": (values.mean(-1), base.mean(-1))}
        shown = range(len(case.counts)) if len(case.counts) <= 10 else (0, len(case.counts) - 1)
        columns |= {case.names[y]: (values[:, y], base[:, y]) for y in shown}
        for label, (mine, other) in columns.items():
            level, change = Estimate.of(mine.numpy()), Estimate.of((mine - other).numpy())
            beta = _number(arm)
            rows.append(
                {
                    "preset": name,
                    "case": case.label,
                    "learning": learning,
                    "method": arm,
                    "beta": beta,
                    "class": label,
                    "metric": found.metric,
                    "mean": level.mean,
                    "ci95": level.half,
                    "difference": change.mean,
                    "difference_ci95": change.half,
                    "seeds": len(mine),
                    "paper": found.paper.get((case.label, beta, label)) if learning == "equilibrium" else None,
                }
            )
    return rows


def _number(arm: str) -> float | str | None:
    """The beta of an arm: a number, "auto", or none for a control."""
    words = arm.replace(",", "").split()
    if words[0] != "beta":
        return None
    return "auto" if words[1] == "auto" else float(words[1])


def _claims(name: str, found: Preset, results: game_claims.Results) -> list[game_claims.Claim]:
    made: list[game_claims.Claim] = []
    if name in ("case-one", "case-two"):
        made += game_claims.lower_worst(results)
    if name == "case-one":
        made += game_claims.head_suffers(results)
    if name == "case-two":
        made += game_claims.both_better(results)
    if name in ("overlap", "case-two", "overlap-2d"):
        made += game_claims.v_shape(results)
        made += game_claims.beats_controls(results)
    if found.paper:
        made += game_claims.review_table(results, found.paper)
    if name == "many":
        made += game_claims.peers_matter(results)
        made.append(game_claims.auto_is_safe(results, "beta auto, similar peers"))
    if name == "phase":
        made += game_claims.where_it_helps(results)
    made.append(game_claims.auto_is_safe(results))
    made.append(game_claims.auto_is_safe(results, "beta auto, caution 0"))
    return made


def _dynamics(
    name: str, case: Case, world: World, settings: Settings, beta: float
) -> tuple[list[Row], list[game_claims.Claim], list[Curve], dict[str, list[Curve]]]:
    """How one case approaches its equilibrium: rows, claims, the Nash gaps, and the distances by kind."""
    pair = len(case.counts) == 2
    betas, most = ([0.0, 0.01, 0.1, 1.0], settings.descent) if pair else ([0.0, 0.1], min(settings.descent, 4000))
    gaps = nash_curves(world, betas, most, settings.descent_rate)
    rows = [_plain_row(name, case, "descent", curve.name, "nash-gap slope", slopes(curve)) for curve in gaps]
    for entry in stability(world, list(settings.betas)):
        arm = method(f"{entry['beta']:g}")
        rows += [
            _plain_row(name, case, "equilibrium", arm, what, np.array([entry[key]]))
            for key, what in (("monotone", "share of monotone games"), ("radius", "spectral radius"))
        ]
    rounds = min(settings.descent, 2000)
    approach = {"local steps": local_step_curves(world, beta, rounds)}
    if not pair:
        approach["peers a round"] = peer_curves(world, 0.1, rounds)
    for curve in (curve for lines in approach.values() for curve in lines):
        what = f"distance after {rounds} rounds"
        rows.append(_plain_row(name, case, "descent", curve.name, what, curve.values[-1].numpy()))
    return rows, game_claims.nash_rate(gaps, case.label), gaps, approach


def _plain_row(name: str, case: Case, learning: str, arm: str, metric: str, values: np.ndarray) -> Row:
    found = Estimate.maybe(values)
    beta = _number(arm)
    return {
        "preset": name, "case": case.label, "learning": learning, "method": arm, "beta": beta, "class": "all",
        "metric": metric, "mean": found and found.mean, "ci95": found and found.half,
        "difference": None, "difference_ci95": None,
        "seeds": len(values), "paper": None,
    }  # fmt: skip


def write(report: Report, name: str, seeds: int, settings: Settings, out: Path) -> Path:
    """rows.json and the self-contained report.html under `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "rows.json").write_text(json.dumps({"rows": _finite(report.rows)}, indent=1))
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    environment.filters["number"] = _shown
    page = environment.get_template("report.html").render(
        name=name,
        seeds=seeds,
        report=report,
        settings=asdict(settings),
        tables=_tables(report.rows),
        flaws=report.health,
    )
    path = out / "report.html"
    path.write_text(page)
    return path


def _shown(value: float | None) -> str:
    """Three decimals, three digits for what has diverged, nothing for what there is not."""
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.2e}"


def _tables(rows: list[Row]) -> list[dict[str, Any]]:
    """One table for each case and way of learning: a line an arm, a column a class."""
    tables: dict[tuple[str, str, str], dict[str, dict[str, Row]]] = {}
    for row in rows:
        tables.setdefault((row["case"], row["learning"], row["metric"]), {}).setdefault(row["method"], {})[
            row["class"]
        ] = row
    shown = []
    for (case, learning, metric), lines in tables.items():
        classes = list(dict.fromkeys(label for line in lines.values() for label in line))
        paper = any(row["paper"] is not None for line in lines.values() for row in line.values())
        shown.append(
            {"case": case, "learning": learning, "metric": metric, "classes": classes, "lines": lines, "paper": paper}
        )
    return shown


def _finite(rows: list[Row]) -> list[Row]:
    """JSON has no nan: null stands for an interval that one seed cannot give."""
    return [
        {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        for row in rows
    ]


def command(name: str, seeds: int | None, settings: list[str], out: Path | None, as_json: bool) -> None:
    """What `fedmutual game` does: play, write the report, print tables and claims, or rows as JSON."""
    chosen = Settings.parse(settings)
    if name == "bench":
        return _print_bench(benchmark(), as_json)
    preset(name)
    folder = out or Path("runs") / f"game-{name}-{datetime.now():%Y%m%d-%H%M%S}"
    report = run(name, seeds, chosen, folder)
    if as_json:
        print(json.dumps({"rows": _finite(report.rows)}))
        return
    console = Console()
    for table in _tables(report.rows):
        _print_table(console, table)
    for claim in report.claims:
        console.print(f"[bold]{claim.verdict}[/bold]: {claim.claim}. {claim.sentence}", highlight=False)
    print(f"report: {folder / 'report.html'}")


def _print_table(console: Console, table: dict[str, Any]) -> None:
    lines = Table(title=f"{table['case']}, {table['learning']}: {table['metric']}", box=None, title_justify="left")
    lines.add_column("method")
    shown = [label for label in table["classes"] if label in ("worst", "head", "tail", "all", "mean")]
    for label in shown:
        lines.add_column(label, justify="right")
    for arm, cells in table["lines"].items():
        lines.add_row(arm, *(f"{_shown(cells[label]['mean'])} ± {_shown(cells[label]['ci95'])}" for label in shown))
    console.print(lines)


def _print_bench(rows: list[Row], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"rows": rows}))
        return
    for row in rows:
        print(
            f"{row['name']}: {row['iterations']} iterations of {row['games']} games in {row['seconds']:.2f} CPU-s; "
            f"a loop over clients with autograd needs {row['autograd_seconds_per_game']:.1f} s for one game, "
            f"{row['ratio']:.0f} times as long"
        )
