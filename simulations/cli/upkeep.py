"""Commands that look after the project itself: benchmarks and a soak test."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from fedmutual.config import RunConfig
from fedmutual.errors import UserError
from fedmutual.settings import parse_assignments
from simulations.cli.options import AsJson, Settings
from simulations.cli.presets import read_preset
from simulations.cli.tables import print_bench, print_json, print_rows
from simulations.terminal import progress


def bench(
    parts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PART...", help="step, round, scaling, bytes or minutes; by default step."),
    ] = None,
    preset: Annotated[str, typer.Option(help="Preset whose settings are timed.")] = "digits",
    network: Annotated[list[str] | None, typer.Option(help="Network in its place; may be repeated.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Batch in its place; may be repeated.")] = None,
    minutes: Annotated[
        list[float] | None, typer.Option(help="Minutes to ask of simulate, for the part minutes; may be repeated.")
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Time the parts of a run, each beside what it could not do without.

    step: a local step beside a plain PyTorch loop with the same arithmetic, with no peer, one and all. round: a
    simulated round beside its clients' gradient steps. scaling: the same with 10, 100 and 1,000 classes, 4 peers each.
    bytes: what networks weigh on the wire. minutes: what `simulate --minutes` takes, of a preset or of data of your
    own, beside what was asked; on its own.
    """
    if minutes or "minutes" in (parts or []):
        return _bench_minutes(parts or [], preset, minutes or [], bool(network or batch or settings), as_json)
    layers = [read_preset(preset), parse_assignments(settings or [])]
    networks, batches = [{"network": name} for name in network or []], [{"batch": size} for size in batch or []]
    configs = [RunConfig.of(*layers, one, other) for one in networks or [{}] for other in batches or [{}]]

    from simulations.upkeep.bench import bench as run

    with progress("timing", 100, "%") as advance:
        rows = run(configs, parts or ["step"], lambda share: advance(int(100 * share)))
    if as_json:
        return print_json(rows)
    for name in dict.fromkeys(row["name"] for row in rows):
        print_bench([row for row in rows if row["name"] == name])


def _bench_minutes(parts: list[str], name: str, minutes: list[float], changed: bool, as_json: bool) -> None:
    if parts != ["minutes"] or not minutes or changed:
        raise UserError(
            "the part minutes is timed alone, with --minutes N and --preset PRESET or DATA: "
            "fedmutual bench minutes --preset digits --minutes 5"
        )

    from simulations.upkeep.minutes import asked_and_taken

    rows = asked_and_taken(name, minutes)
    if as_json:
        return print_json(rows)
    print_bench(rows)
    for row in rows:
        parts_of = [f"{part} {seconds:.0f}" for part, seconds in row["taken"].items()]
        foreseen = [f"{part} {seconds:.0f}" for part, seconds in row["foreseen"].items()]
        print(f"{row['bare_seconds'] / 60:g} minutes: took {', '.join(parts_of)}; foreseen {', '.join(foreseen)}")


def soak(
    rounds: Annotated[int, typer.Option(min=10, help="Rounds of ten clients; 500 take twelve minutes.")] = 500,
    cpus: Annotated[int, typer.Option(min=0, help="Clients that train at once; 0: one for each core.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A new folder; by default runs/soak-TIME.")] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate hundreds of rounds in which clients fail in every way: does memory grow, is anything lost?

    Fails when a process grows by more than 5 % after its first 50 rounds or outlives the run, or a reply is not
    accounted for.
    """
    from simulations.upkeep.soak import soak as run

    folder = out or Path("runs") / f"soak-{datetime.now():%Y%m%d-%H%M%S}"
    with progress("soaking", rounds, "rounds") as advance:
        accounts, memory, wrong = run(rounds, folder, cpus, lambda rows: advance(rows[0]["round"]))
    if as_json:
        print_json([*accounts, *memory])
    else:
        for rows in (accounts, memory):
            print_rows(rows)
        print(f"figure: {folder / 'memory.png'}")
    if wrong:
        raise RuntimeError(f"{len(wrong)} things are not as they should be: {'; '.join(wrong[:3])}")
