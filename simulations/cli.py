"""`fedmutual`: what a person types."""

import itertools
import json
import os
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.console import Console
from rich.table import Table

from fedmutual.config import RunConfig, UserError, parse_assignments, read_settings
from simulations.progress import progress

PRESETS = Path(__file__).parent / "presets"

WIDE = 132
"""Characters that the widest table needs."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Federated training of diffusion models that is fair to rare classes.",
)

Settings = Annotated[list[str] | None, typer.Option("-s", "--set", metavar="KEY=VALUE", help="Change a setting.")]
AsJson = Annotated[bool, typer.Option("--json", help='Print one object {"rows": [...]} instead of tables.')]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN")]
RunFolders = Annotated[list[Path], typer.Argument(metavar="RUN...")]
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
        stop("interrupted: what was checkpointed is kept, and simulate --resume DIR or compare --out DIR goes on", 130)
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

    if config.extractor and config.samples:
        from simulations.results import run_extractor

        run_extractor(config)  # a file that does not fit is found before the training, not after it
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
def evaluate(run: RunFolder, which: Which = "last", settings: Settings = None, as_json: AsJson = False) -> None:
    """Draw samples of a run's checkpoint anew and measure them; rewrites its metrics, samples and report.

    Settings that say how to measure may change, such as extractor, samples or sampler, and stay with the run.
    """
    if settings:
        from simulations.results import change_measuring

        change_measuring(run, parse_assignments(settings))
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
def audit(
    runs: RunFolders,
    which: Which = "last",
    only: Annotated[
        int | None, typer.Option("--class", min=0, help="Audit one class, where only its holder's data are.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("-s", "--set", metavar="KEY=VALUE", help="audit-candidates, or where data lie: data, data-path."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure what a peer learns about training samples from the networks it was sent; writes audit.json.

    RUN is the folder that a run wrote. Members are a class's training samples; the others were never trained on.
    """
    from simulations.audit import audit_run, control, table
    from simulations.results import read_networks

    changes, rows = parse_assignments(settings or []), []
    for run in runs:
        classes = 1 if only is not None else len(read_networks(run, which)[1])
        done = iter(range(1, classes + 1))
        with progress("auditing", classes, "classes") as advance:
            found = audit_run(run, lambda y, done=done, advance=advance: advance(next(done)), which, changes, only)
        rows += [{"run": str(run), **row} for row in found]
        if not as_json:
            print(f"{run}:")
            Console().print(table(found))
            print(control(found))
    if as_json:
        return _print_json(rows)
    print("These are the attacks that were tried: a low number is no proof of privacy.")


@app.command()
def extractor(
    preset: Preset = "digits",
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="The file; by default extractors/PRESET-SEED.safetensors.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train a classifier for measures in features: fd-features, is-features, precision-features and so on.

    It learns from the training images of PRESET's data, as many of each class, whatever the long tail; its
    accuracy on the test part is recorded in the file. Use it with -s extractor=FILE.
    """
    config = RunConfig.of(read_preset(preset), parse_assignments(settings or []))

    from client.app import pick_device
    from fedmutual.evaluation.features import Training

    path = out or Path("extractors") / f"{Path(preset).stem}-{config.seed}.safetensors"
    training = Training(config, path, pick_device(config))
    with progress("training", 100, "%") as advance:
        facts = training.run(advance)
    if as_json:
        return _print_json([facts])
    right = f"{100 * facts['accuracy']:.1f} % of {facts['test_images']} test images"
    print(f"{path}: {facts['training_images']} training images, {right} told right, sha256 {facts['sha256'][:16]}")


@app.command()
def export(
    run: RunFolder,
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    name: Annotated[str, typer.Option("--class", help="The class, by its name or its number.")],
    which: Which = "last",
) -> None:
    """Write a class's U-Net into the new folder DIR, from which diffusers' DDPMPipeline.from_pretrained samples."""
    from simulations.export import export as write

    write(run, name, folder, which)
    print(f"{folder}: diffusers.DDPMPipeline.from_pretrained({str(folder)!r}) loads it; README.md there says how")


@app.command()
def report(
    runs: RunFolders,
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
def compare(
    preset: Preset = "digits",
    methods: Annotated[str, typer.Option(help="Names with commas between them, or all.")] = "all",
    seeds: Annotated[int, typer.Option(help="Seeds of each method, from the setting seed on.")] = 5,
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the comparison, also one to go on with; by default a new one.")
    ] = None,
    cpus: Annotated[int, typer.Option(min=0, help="Cores to use; 0: all there are.")] = 0,
    gpus: Annotated[int, typer.Option(min=-1, help="GPUs for federated arms; -1: all there are.")] = -1,
    as_json: AsJson = False,
) -> None:
    """Train several methods on the same data, split and budget, over several seeds, and report.

    PRESET is as in simulate. `-s METHOD.key=value` changes a setting of one method alone. An arm that is finished
    is not run again, so that the same command goes on after a stop.
    """
    changes = {**read_preset(preset), **parse_assignments(settings or [])}
    folder = out or Path("runs") / f"compare-{Path(preset).stem}-{datetime.now():%Y%m%d-%H%M%S}"

    from simulations.compare import plan, run_arms  # Flower and torch take seconds to import

    made = plan(changes, methods, seeds, folder)
    with progress("comparing", len(made.arms), "arms") as advance:
        run_arms(made, cpus, gpus, advance)
    _report(made.places, folder / "report.html", as_json)


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
    parts: Annotated[
        list[str] | None, typer.Argument(metavar="PART...", help="step, round, scaling, bytes; by default step.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Preset whose settings are timed.")] = "digits",
    network: Annotated[list[str] | None, typer.Option(help="Network in its place; may be repeated.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Batch in its place; may be repeated.")] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Time the parts of a run, each beside what it could not do without.

    step: a local step beside a plain PyTorch loop with the same arithmetic, with no peer, one and all. round: a
    simulated round beside its clients' gradient steps. scaling: the same with 5, 10 and 20 classes and 4 peers each.
    bytes: what networks weigh on the wire.
    """
    layers = [read_preset(preset), parse_assignments(settings or [])]
    networks, batches = [{"network": name} for name in network or []], [{"batch": size} for size in batch or []]
    configs = [RunConfig.of(*layers, one, other) for one in networks or [{}] for other in batches or [{}]]

    from simulations.bench import bench as run

    with progress("timing", 100, "%") as advance:
        rows = run(configs, parts or ["step"], lambda share: advance(int(100 * share)))
    if as_json:
        return _print_json(rows)
    for name in dict.fromkeys(row["name"] for row in rows):
        _print_bench([row for row in rows if row["name"] == name])


def _print_bench(rows: list[dict[str, Any]]) -> None:
    """The rows of one part; a column for each number they have."""
    shown = {
        "classes": ("classes", "{:d}"),
        "seconds": ("seconds", "{:.4g}"),
        "bare_seconds": ("bare", "{:.4g}"),
        "ratio": ("ratio", "{:.2f}"),
        "images_per_second": ("images/s", "{:.4g}"),
        "share_of_peak": ("of peak", "{:.0%}"),
        "memory": ("GPU bytes", "{:,d}"),
        "client_seconds": ("a client", "{:.3g}"),
        "bytes_down": ("bytes down", "{:,.0f}"),
        "bytes_up": ("bytes up", "{:,.0f}"),
        "run_gigabytes": ("GB a run", "{:,.2f}"),
    }
    columns = {key: style for key, style in shown.items() if rows[0].get(key) is not None}
    titles = [title for title, _ in columns.values()]
    table = Table(rows[0]["name"], "batch", "peers", *titles, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        cells = [style.format(row[key]) for key, (_, style) in columns.items()]
        table.add_row(row["network"], str(row["batch"]), str(row["peers"]), *cells)
    _print_wide(table)


@app.command()
def steps(
    run: RunFolder,
    numbers: Annotated[str, typer.Option("--steps", help="Numbers of steps, with commas between them.")] = "5,10,20,50",
    seeds: Annotated[int, typer.Option(help="Times that each sampler draws, for intervals.")] = 3,
    extractor: Annotated[str, typer.Option(help="Measure in these features too; by default the run's setting.")] = "",
    which: Which = "last",
    as_json: AsJson = False,
) -> None:
    """Compare few-step samplers with full sampling on a run's networks: seconds, and distance to real images."""
    if not all(part.strip().isdecimal() for part in numbers.split(",")):
        raise UserError(f"--steps {numbers}: give whole numbers with commas between them, such as 5,10,20")

    from simulations.steps import FewSteps

    comparison = FewSteps(run, [int(part) for part in numbers.split(",")], seeds, which, extractor)
    with progress("sampling", 100, "%") as advance:
        rows = comparison.rows(advance)
    if as_json:
        return _print_json(rows)
    metric = rows[-3]["metric"]  # in features, where there are any
    shown = [(metric, "worst"), (metric, "mean"), ("from-full", "mean")]
    table = Table("sampler", "steps", "seconds", "of full", box=None, padding=(0, 2, 0, 0))
    for name, class_ in shown:
        table.add_column(f"{name}, {class_}", justify="right")
    for (sampler, count), group in itertools.groupby(rows, key=lambda row: (row["sampler"], row["steps"])):
        own = {(row["metric"], row["class"]): row for row in group}
        values = [f"{own[key]['mean']:.3g} ± {own[key]['ci95']:.2g}" for key in shown]
        seconds, share = own[shown[0]]["seconds"], own[shown[0]]["share"]
        table.add_row(sampler, str(count), f"{seconds:.2f}", f"1/{1 / share:.0f}", *values)
    Console().print(table)


@app.command()
def peers(runs: RunFolders, which: Which = "last", as_json: AsJson = False) -> None:
    """Show at which levels of noise a class's peers know something of its held-out samples that it does not."""
    from simulations.peers import tables, weigh_peers
    from simulations.results import read_networks

    rows = []
    for run in runs:
        done = itertools.count(1)
        with progress("weighing peers", len(read_networks(run, which)[1]), "classes") as advance:
            found = weigh_peers(run, which, lambda y, done=done, advance=advance: advance(next(done)))
        rows += [{"run": str(run), **row} for row in found]
        if not as_json:
            print(f"{run}:")
            Console().print(*tables(found), sep="\n")
    if as_json:
        _print_json(rows)


@app.command()
def doctor(
    preset: Annotated[str | None, typer.Argument()] = None,
    settings: Settings = None,
    connection: Annotated[
        str | None, typer.Option(help="Of Flower's config.toml: check its certificates and its SuperLink too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check whether this machine is fit for a run, and say what to mend.

    PRESET is the name of a preset or a TOML file of settings, as `flwr run -c` takes it; by default the defaults.
    """
    config = RunConfig.of(read_preset(preset) if preset else {}, parse_assignments(settings or []))

    from simulations.doctor import checks, read_connection

    todo, rows = checks(config, read_connection(connection) if connection else None), []
    with progress("checking", len(todo), "checks") as advance:
        for done, check in enumerate(todo, 1):
            rows += [asdict(finding) for finding in check()]
            advance(done)
    if as_json:
        _print_json(rows)
    else:
        table = Table("check", "", "what was seen", box=None, padding=(0, 2, 0, 0))
        for row in rows:
            table.add_row(row["check"], row["verdict"], "\n→ ".join(filter(None, (row["seen"], row["mend"]))))
        Console().print(table)
    if wrong := [row["check"] for row in rows if row["verdict"] == "wrong"]:
        raise RuntimeError(f"{len(wrong)} of {len(rows)} checks are wrong: {', '.join(wrong)}")


@app.command()
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
    from simulations.soak import soak as run

    folder = out or Path("runs") / f"soak-{datetime.now():%Y%m%d-%H%M%S}"
    with progress("soaking", rounds, "rounds") as advance:
        accounts, memory, wrong = run(rounds, folder, cpus, lambda rows: advance(rows[0]["round"]))
    if as_json:
        _print_json(accounts + memory)
    else:
        for rows in (accounts, memory):
            print_rows(rows)
        print(f"figure: {folder / 'memory.png'}")
    if wrong:
        raise RuntimeError(f"{len(wrong)} things are not as they should be: {'; '.join(wrong[:3])}")


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

    steps = 2 * len(read_networks(folder, which)[1])  # a class is drawn, then measured
    done = iter(range(1, steps + 1))
    with progress("sampling, measuring", steps, "steps") as advance:
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
        _print_wide(comparison_table(rows))
    print(f"report: {page}")


def print_metrics(rows: list[dict[str, Any]]) -> None:
    """A line a class, the worst class first; the metrics of several arms stand side by side."""
    rows = [row for row in rows if row["class"] in ("worst", "mean") or isinstance(row["class"], int)]
    shown = {row["class"]: row["name"] if isinstance(row["class"], int) else row["class"] for row in rows}
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    metrics = ["fd", "precision", "recall", "memorisation"] if len(arms) == 1 else ["fd", "memorisation"]
    metrics[1:1] = sorted({row["metric"] for row in rows} & {"fid", "fd-features"})
    values = {(row["arm"], row["metric"], row["class"]): row["mean"] for row in rows}
    counts = {row["class"]: row["n_train"] for row in rows if row["n_train"]}
    table = Table("class", "training images", box=None, padding=(0, 2, 0, 0))
    for metric in metrics:
        for arm in arms:
            table.add_column(metric if len(arms) == 1 else f"{metric} {arm}", justify="right")
    for y, name in shown.items():
        cells = [values.get((arm, metric, y)) for metric in metrics for arm in arms]
        table.add_row(name, str(counts.get(y, "")), *("" if value is None else f"{value:.3g}" for value in cells))
    _print_wide(table)


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Rows that share their fields, as a table."""
    table = Table(*(key.replace("_", " ") for key in next(iter(rows), {})), box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)


def _print_wide(table: Table) -> None:
    """Its columns are numbers, which a narrow terminal may fold and a table may not."""
    Console(width=max(Console().width, WIDE)).print(table)


def _print_json(rows: list[dict[str, Any]]) -> None:
    print(json.dumps({"rows": rows}))
