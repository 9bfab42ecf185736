"""`fedmutual`: what a person types."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fedmutual.config import RunConfig, UserError, parse_assignments, read_settings

PRESETS = Path(__file__).parent / "presets"

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Federated training of diffusion models that is fair to rare classes.",
)

Settings = Annotated[list[str] | None, typer.Option("-s", "--set", metavar="KEY=VALUE", help="Change a setting.")]
AsJson = Annotated[bool, typer.Option("--json", help='Print one object {"rows": [...]} instead of tables.')]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN")]
Preset = Annotated[str, typer.Argument()]
Which = Annotated[str, typer.Option("--round", help="Checkpoint: last, best, or a round's number.")]


def main() -> None:
    """Run the command line; exit code 0 done, 1 failed, 2 wrong usage or settings."""
    try:
        if app(standalone_mode=False) == 130:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
    except click.exceptions.NoArgsIsHelpError:  # the help is printed by now
        sys.exit(2)
    except (UserError, click.ClickException) as error:
        stop(error.format_message() if isinstance(error, click.ClickException) else str(error), 2)
    except (KeyboardInterrupt, click.Abort, SystemExit) as error:
        if isinstance(error.__context__, BrokenPipeError):  # a reader such as `head` has seen enough
            raise
        # Ray turns SIGTERM into SystemExit.
        stop("interrupted: what was checkpointed is kept, and simulate --resume DIR continues a run", 130)
    except (RuntimeError, OSError) as error:
        stop(str(error), 1)


def stop(message: str, code: int) -> None:
    """One line on stderr and out, also past threads that wait for replies that nobody reads any more."""
    print("error:", " ".join(message.split()), file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


@app.command()
def simulate(
    preset: Preset = "digits",
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; by default runs/PRESET-TIME.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue the run in this folder, with its settings instead of PRESET's.")
    ] = None,
    cpus: Annotated[int, typer.Option(min=0, help="Clients that train at once; 0: one for each core.")] = 0,
    gpus: Annotated[int, typer.Option(min=-1, help="GPUs they share; -1: all there are.")] = -1,
    as_json: AsJson = False,
) -> None:
    """Train a federation on this machine, one client a class, then sample, measure and report.

    PRESET is the name of a preset (`fedmutual presets` lists them) or the path of a TOML file of settings.
    """
    changes = parse_assignments(settings or [])
    if resume:
        if out:
            raise UserError("--resume continues in its own folder: leave --out out")
        layers = [_settings_of(resume), changes, {"resume": True, "out": str(resume)}]
    else:
        folder = out or Path("runs") / f"{Path(preset).stem}-{datetime.now():%Y%m%d-%H%M%S}"
        layers = [read_preset(preset), changes, {"resume": False, "out": str(folder)}]
    config = RunConfig.of(*layers)

    from simulations.federated import Simulation  # Flower and torch take seconds to import

    simulation, refused = Simulation(config, cpus, gpus), 0
    with progress("training", config.rounds, "rounds") as advance:

        def on_round(rows: list[dict[str, Any]]) -> None:
            nonlocal refused
            refused += sum(row["status"] in ("error", "rejected", "missing") for row in rows)
            advance(rows[0]["round"])

        folder = simulation.run(on_round)
    if refused:
        print(f"{refused} replies did not get through: {folder / 'history.jsonl'} says why", file=sys.stderr)
    if config.samples:
        _evaluate(folder, "last")
    _report([folder], folder / "report.html", as_json)


@app.command()
def evaluate(run: RunFolder, which: Which = "last", as_json: AsJson = False) -> None:
    """Draw samples of a run's checkpoint anew and measure them; rewrites its metrics, samples and report."""
    _evaluate(run, which)
    _report([run], run / "report.html", as_json)


@app.command()
def sample(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="Folder for samples.npz and a PNG grid of each class.")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Samples of each class.")] = 64,
    which: Which = "last",
) -> None:
    """Draw samples of every class from a run's checkpoint."""
    from simulations.results import draw_samples, read_networks, write_samples

    networks = read_networks(run, which)[1]
    done = iter(range(1, len(networks) + 1))
    with progress("sampling", len(networks), "classes") as advance:
        drawn = draw_samples(run, count, which, lambda y: advance(next(done)))
    write_samples(out, drawn, {}, grid=count)
    print(f"{count} samples of each of {len(drawn)} classes in {out}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...")],
    out: Annotated[Path | None, typer.Option(help="The page; by default report.html in the first RUN.")] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write TensorBoard event files, RUN/tensorboard.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained page about a run, or several side by side.

    RUN is the folder that a run wrote, or a folder of such folders.
    """
    _report(runs, out or runs[0] / "report.html", as_json)
    if tensorboard:
        from simulations.events import write_events

        for folder in write_events(runs):
            print(f"events: {folder}", file=sys.stderr)


@app.command()
def presets(as_json: AsJson = False) -> None:
    """List the presets and what each is for."""
    rows = []
    for path in sorted(PRESETS.glob("*.toml")):
        words = [line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#")]
        rows.append({"preset": path.stem, "about": " ".join(words), "file": str(path)})
    if as_json:
        return _print_json(rows)
    table = Table("preset", "what it is", box=None, padding=(0, 2, 1, 0))
    for row in rows:
        table.add_row(row["preset"], row["about"])
    Console().print(table)


@app.command()
def settings(as_json: AsJson = False) -> None:
    """List every setting, its default and what it does."""
    defaults = RunConfig().settings()
    rows = [
        {"setting": key, "default": defaults[key], "about": field.description}
        for key, field in zip(defaults, RunConfig.model_fields.values(), strict=True)
    ]
    if as_json:
        return _print_json(rows)
    table = Table("setting", "default", "what it does", box=None)
    for row in rows:
        table.add_row(row["setting"], json.dumps(row["default"]), row["about"])
    Console().print(table)


@app.command()
def game(
    preset: Annotated[str, typer.Argument()],
    seeds: Annotated[
        int | None, typer.Option(help="Games for each case; by default enough for a minute or two.")
    ] = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report; by default runs/game-PRESET-TIME.")] = None,
    as_json: AsJson = False,
) -> None:
    """The theory, exactly: equilibrium, Nash gap and divergence of every class, with figures.

    PRESET is case-one, case-two, overlap, overlap-2d, many or phase; or bench, for its speed.
    """
    from simulations.game import command

    command(preset, seeds, settings or [], out, as_json)


@app.command()
def bench(
    preset: Preset = "digits",
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Time a local step beside a plain PyTorch loop with the same arithmetic.

    Network and batch are those of PRESET.
    """
    config = RunConfig.of(read_preset(preset), parse_assignments(settings or []))

    from simulations.bench import bench as run

    with progress("timing", 100, "%") as advance:
        rows = run(config, advance)
    if as_json:
        return _print_json(rows)
    table = Table("network", "batch", "peers", "ms a step", "bare loop", "ratio", box=None, padding=(0, 2, 0, 0))
    for row in rows:
        times = (f"{1e3 * row[key]:.3f}" for key in ("seconds", "bare_seconds"))
        table.add_row(row["network"], str(row["batch"]), str(row["peers"]), *times, f"{row['ratio']:.2f}")
    Console().print(table)


@app.command()
def credentials(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    clients: Annotated[int, typer.Option(min=1, help="Clients that get a key pair.")],
    host: Annotated[
        list[str] | None, typer.Option(help="Name or address of the SuperLink beside localhost; may be repeated.")
    ] = None,
) -> None:
    """Write a CA, a server certificate and one key pair a client, for a federation on separate machines.

    DIR is a new folder for them.
    """
    from simulations.credentials import write_credentials

    for files, place in write_credentials(folder, clients, host or []):
        print(f"{files:<24} {place}")


@app.command()
def deploy_demo(
    out: Annotated[Path, typer.Option(help="Run folder of the server.")] = Path("runs/deploy-demo"),
) -> None:
    """Show a deployed federation on this machine: TLS, keys, a SuperLink and three SuperNodes with private folders."""
    from simulations.deploy_demo import demo

    demo(out)


def read_preset(name: str) -> dict[str, Any]:
    """The settings of a preset by name, or of a TOML file by path."""
    path = Path(name) if name.endswith(".toml") else PRESETS / f"{name}.toml"
    if not path.exists():
        known = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.toml")))
        raise UserError(f"no preset {name!r}: there are {known}, or give the path of a .toml file")
    return read_settings(path)


def _settings_of(folder: Path) -> dict[str, Any]:
    if not (folder / "config.toml").exists():
        raise UserError(f"{folder} holds no run to resume: name the folder that an earlier run wrote")
    return read_settings(folder / "config.toml")


def _evaluate(folder: Path, which: str) -> None:
    from simulations.results import evaluate as measure
    from simulations.results import read_networks

    classes = len(read_networks(folder, which)[1])
    done = iter(range(1, classes + 1))
    with progress("sampling", classes, "classes") as advance:
        measure(folder, which, lambda y: advance(next(done)))


def _report(runs: list[Path], out: Path, as_json: bool) -> None:
    from simulations.comparison import comparison, comparison_table
    from simulations.report import write_report

    rows = comparison(runs)
    page = write_report(runs, out)
    if as_json:
        return _print_json(rows)
    arms = len({row["arm"] for row in rows})
    if arms < 3:
        print_metrics(rows)
    if arms > 2 or (arms > 1 and any(row["seeds"] > 1 for row in rows)):
        Console().print(comparison_table(rows))
    print(f"report: {page}")


def print_metrics(rows: list[dict[str, Any]]) -> None:
    """A line a class, the worst class first; the metrics of several arms stand side by side."""
    rows = [row for row in rows if row["class"] in ("worst", "mean") or isinstance(row["class"], int)]
    shown = {row["class"]: row["name"] if isinstance(row["class"], int) else row["class"] for row in rows}
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    metrics = ("fd", "precision", "recall", "memorisation") if len(arms) == 1 else ("fd", "memorisation")
    values = {(row["arm"], row["metric"], row["class"]): row["mean"] for row in rows}
    counts = {row["class"]: row["n_train"] for row in rows if row["n_train"]}
    table = Table("class", "training images", box=None, padding=(0, 2, 0, 0))
    for metric in metrics:
        for arm in arms:
            table.add_column(metric if len(arms) == 1 else f"{metric} {arm}", justify="right")
    for y, name in shown.items():
        cells = [values.get((arm, metric, y)) for metric in metrics for arm in arms]
        table.add_row(name, str(counts.get(y, "")), *("" if value is None else f"{value:.3g}" for value in cells))
    Console().print(table)


def _print_json(rows: list[dict[str, Any]]) -> None:
    print(json.dumps({"rows": rows}))


@contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Any]:
    """A bar on stderr; yields a function that takes how many of `total` are done."""
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit)]
    columns += [TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
