"""Commands that train, measure and report."""

import itertools
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedmutual.config import RunConfig
from fedmutual.errors import UserError
from fedmutual.settings import parse_assignments
from simulations.cli.options import AsJson, Preset, RunFolder, RunFolders, Settings, Which, app
from simulations.cli.presets import _settings_of, read_preset, record_preset
from simulations.cli.tables import _print_json, _print_wide, print_metrics
from simulations.terminal import progress


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

    from simulations.engine.simulation import Simulation

    if config.measuring.extractor and config.measuring.samples:
        from simulations.runs.measuring import run_extractor

        run_extractor(config)  # a file that does not fit is found before the training, not after it
    simulation, refused = Simulation(config, cpus, gpus), 0
    if not resume:
        record_preset(simulation.strategy.journal.folder, preset)
    with progress("training", config.rounds, "rounds") as advance:

        def on_round(rows: list[dict[str, Any]]) -> None:
            nonlocal refused
            refused += sum(row["status"] in ("error", "rejected", "missing") for row in rows)
            advance(rows[0]["round"])

        folder = simulation.run(on_round)
    if refused:
        print(f"{refused} replies did not get through: {folder / 'history.jsonl'} says why", file=sys.stderr)
    if config.measuring.samples:
        _evaluate(folder, "last")
    _report([folder], folder / "report.html", as_json)


@app.command()
def evaluate(run: RunFolder, which: Which = "last", settings: Settings = None, as_json: AsJson = False) -> None:
    """Draw samples of a run's checkpoint anew and measure them; rewrites its metrics, samples and report.

    Settings that say how to measure may change, such as extractor, samples or sampler, and stay with the run.
    """
    if settings:
        from simulations.runs.measuring import change_measuring

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
    from simulations.runs.networks import read_networks
    from simulations.runs.sampling import draw_samples, write_samples

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
    from simulations.runs.membership import audit_run, control, table
    from simulations.runs.networks import read_networks

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

    from fedmutual.device import pick_device
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
    from simulations.runs.export import export as write

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
        from simulations.runs.tensorboard import write_events

        for folder in write_events(runs):
            print(f"events: {folder}", file=sys.stderr)


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

    from simulations.experiments.plan import plan, run_arms

    made = plan(changes, methods, seeds, folder)
    with progress("comparing", len(made.arms), "arms") as advance:
        run_arms(made, cpus, gpus, advance)
    for place in made.places:
        record_preset(place, preset)
    _report(made.places, folder / "report.html", as_json)


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

    from simulations.runs.few_steps import FewSteps

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
    from simulations.runs.networks import read_networks
    from simulations.runs.peer_gain import tables, weigh_peers

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


def _evaluate(folder: Path, which: str) -> None:
    from simulations.runs.measuring import evaluate as measure
    from simulations.runs.networks import read_networks

    steps = 2 * len(read_networks(folder, which)[1])  # a class is drawn, then measured
    done = iter(range(1, steps + 1))
    with progress("sampling, measuring", steps, "steps") as advance:
        measure(folder, which, lambda y: advance(next(done)))


def _report(runs: list[Path], out: Path, as_json: bool) -> None:
    from simulations.cli.tables import comparison_table
    from simulations.report.comparison import comparison
    from simulations.report.missing import missing_classes
    from simulations.report.page import write_report
    from simulations.runs.arms import arms_of
    from simulations.runs.folder import read_runs

    rows = comparison(runs)
    page = write_report(runs, out)
    for one in missing_classes(arms_of(read_runs(runs))):
        print(f"class {one.name} of {one.run} has no measure: {one.reason}", file=sys.stderr)
    if as_json:
        return _print_json(rows)
    arms = len({row["arm"] for row in rows})
    if arms < 3:
        print_metrics(rows)
    if arms > 2 or (arms > 1 and any(row["seeds"] > 1 for row in rows)):
        _print_wide(comparison_table(rows))
    print(f"report: {page}")
