"""`fedmutual game PRESET`: plays the theory exactly, writes its page, and prints tables and claims."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from fedmutual.errors import UserError
from fedmutual.evaluation.intervals import Estimate
from simulations.game import claims, pictures
from simulations.game.cases import Case, Preset, Settings, preset
from simulations.game.claims import Claim, Results
from simulations.game.dynamics import Curve, benchmark, local_step_curves, nash_curves, peer_curves, slopes, stability
from simulations.game.page import Report, Row, finite, shown_number, tables_of, write
from simulations.game.play import ALONE, BOLD, SIMILAR, Measured, at, auto, draw, measure
from simulations.game.world import World
from simulations.terminal import progress

DYNAMICS_SEEDS = 20
"""Games behind the figures of approach; their intervals are narrow, and a long descent costs most of the time."""


def run(name: str, seeds: int | None, settings: Settings, out: Path | None) -> Report:
    """Play preset `name` on `seeds` games; writes report.html, with figures, and rows.json under `out` where given."""
    chosen = preset(name)
    settings = replace(settings, betas=settings.betas or chosen.betas)
    count = chosen.default_seeds if seeds is None else seeds
    if count < 1:
        raise UserError("seeds must be at least 1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the matrices are small: threads would only wait for each other
    try:
        report = _play(name, chosen, list(range(count)), settings, figures=out is not None)
    finally:
        torch.set_num_threads(threads)
    if out:
        write(report, name, count, settings, out)
    return report


def _play(name: str, chosen: Preset, seeds: list[int], settings: Settings, figures: bool) -> Report:
    results = _measured(chosen, seeds, settings)
    rows = [row for case, measured in results.values() for row in rows_of(name, chosen, case, measured)]
    made, drawn = _claims(name, chosen, results), []
    if name == "phase":
        drawn += [pictures.phase(results, settings)] if figures else []
    else:
        case = chosen.cases[0]
        world = draw(case, seeds[:DYNAMICS_SEEDS], settings)
        beta = pictures.best_beta(results[case.label][1], settings)
        more_rows, more_claims, gaps, approach = _dynamics(name, case, world, settings, beta)
        rows, made = rows + more_rows, made + more_claims
        if figures:
            drawn += pictures.all_of(chosen, results, seeds, settings)
            drawn += pictures.approach(case.label, beta, gaps, approach)
    health: dict[str, float] = {}
    for _, measured in results.values():
        health |= {key: max(value, health.get(key, 0.0)) for key, value in measured.health.items()}
    return Report(chosen.about, rows, made, drawn, list(health.items()))


def _measured(chosen: Preset, seeds: list[int], settings: Settings) -> Results:
    """Every case of the preset, measured under a progress bar."""
    results: Results = {}
    games = [min(len(seeds), case.most_seeds) for case in chosen.cases]
    with progress("playing", sum(games), "games") as advance:

        def after(before: int) -> Callable[[int], None]:
            return lambda played: advance(before + played)

        for case, before in zip(chosen.cases, accumulate([0, *games[:-1]]), strict=True):
            measured = measure(case, chosen.metric, seeds[: case.most_seeds], settings, after(before))
            results[case.label] = (case, measured)
    return results


def rows_of(name: str, chosen: Preset, case: Case, measured: Measured) -> list[Row]:
    """One row for each arm and class: mean, interval, paired difference from beta 0, and the paper's number."""
    rows = []
    for (learning, arm), values in measured.values.items():
        base = measured.values[learning, ALONE]
        columns = {"worst": (values.amax(-1), base.amax(-1)), "mean": (values.mean(-1), base.mean(-1))}
        shown = range(len(case.counts)) if len(case.counts) <= 10 else (0, len(case.counts) - 1)
        columns |= {case.names[y]: (values[:, y], base[:, y]) for y in shown}
        for label, (mine, other) in columns.items():
            published = None
            if learning == "equilibrium" and isinstance(arm.beta, float):
                published = chosen.paper.get((case.label, arm.beta, label))
            row = _row(name, case, learning, arm.name, arm.beta, chosen.metric, Estimate.of(mine.numpy()))
            change = Estimate.of((mine - other).numpy())
            row |= {"class": label, "difference": change.mean, "difference_ci95": change.half, "paper": published}
            rows.append(row)
    return rows


def _row(
    name: str,
    case: Case,
    learning: str,
    arm: str,
    beta: float | str | None,
    metric: str,
    level: Estimate | None,
    seeds: int | None = None,
) -> Row:
    """A row of all classes together, compared with nothing; `seeds` where there is no estimate that knows them."""
    return {
        "preset": name,
        "case": case.label,
        "learning": learning,
        "method": arm,
        "beta": beta,
        "class": "all",
        "metric": metric,
        "mean": level and level.mean,
        "ci95": level and level.half,
        "difference": None,
        "difference_ci95": None,
        "seeds": level.seeds if level else seeds,
        "paper": None,
    }


def _claims(name: str, chosen: Preset, results: Results) -> list[Claim]:
    """What was claimed about the games of this preset, with verdicts."""
    made: list[Claim] = []
    if name in ("case-one", "case-two"):
        made += claims.lower_worst(results)
    if name == "case-one":
        made += claims.head_suffers(results)
    if name == "case-two":
        made += claims.both_better(results)
    if name in ("overlap", "case-two", "overlap-2d"):
        made += claims.v_shape(results)
        made += claims.beats_controls(results)
    if chosen.paper:
        made += claims.review_table(results, chosen.paper)
    if name == "many":
        made += claims.peers_matter(results)
        made.append(claims.auto_is_safe(results, auto(peers=SIMILAR), "similar peers"))
    if name == "phase":
        made += claims.where_it_helps(results)
    made.append(claims.auto_is_safe(results, auto(), "the gain less its error"))
    made.append(claims.auto_is_safe(results, auto(BOLD), "caution 0"))
    return made


def _dynamics(
    name: str, case: Case, world: World, settings: Settings, beta: float
) -> tuple[list[Row], list[Claim], list[Curve], dict[str, list[Curve]]]:
    """How one case approaches its equilibrium: rows, claims, the Nash gaps, and the distances by kind."""
    pair = len(case.counts) == 2
    betas, most = ([0.0, 0.01, 0.1, 1.0], settings.descent) if pair else ([0.0, 0.1], min(settings.descent, 4000))
    gaps = nash_curves(world, betas, most, settings.descent_rate)

    def row(learning: str, arm: str, arm_beta: float | None, metric: str, values: np.ndarray) -> Row:
        return _row(name, case, learning, arm, arm_beta, metric, Estimate.maybe(values), len(values))

    rows = [row("descent", curve.name, curve.beta, "nash-gap slope", slopes(curve)) for curve in gaps]
    for entry in stability(world, list(settings.betas)):
        arm = at(entry["beta"])
        rows += [
            row("equilibrium", arm.name, entry["beta"], what, np.array([entry[key]]))
            for key, what in (("monotone", "share of monotone games"), ("radius", "spectral radius"))
        ]
    rounds = min(settings.descent, 2000)
    approach = {"local steps": local_step_curves(world, beta, rounds)}
    if not pair:
        approach["peers a round"] = peer_curves(world, 0.1, rounds)
    for curve in (curve for lines in approach.values() for curve in lines):
        rows.append(row("descent", curve.name, None, f"distance after {rounds} rounds", curve.values[-1].numpy()))
    return rows, claims.nash_rate(gaps, case.label), gaps, approach


def command(name: str, seeds: int | None, settings: list[str], out: Path | None, as_json: bool) -> None:
    """What `fedmutual game` does: play, write the report, print tables and claims, or rows as JSON."""
    chosen = Settings.parse(settings)
    if name == "bench":
        return _print_bench(benchmark(), as_json)
    preset(name)
    folder = out or Path("runs") / f"game-{name}-{datetime.now():%Y%m%d-%H%M%S}"
    report = run(name, seeds, chosen, folder)
    if as_json:
        print(json.dumps({"rows": finite(report.rows)}))
        return
    console = Console()
    for table in tables_of(report.rows):
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
        lines.add_row(arm, *(_with_interval(cells[label]) for label in shown))
    console.print(lines)


def _with_interval(row: Row) -> str:
    interval = shown_number(row["ci95"])
    return shown_number(row["mean"]) + (f" ± {interval}" if interval else "")


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
