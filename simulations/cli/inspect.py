"""Commands that look at finished runs: measures, samples, audits, pages."""

import itertools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from fedmutual.errors import UserError
from fedmutual.settings import parse_assignments
from simulations.cli.options import AsJson, Here, RunFolder, RunFolders, Settings, Which
from simulations.cli.tables import print_json, print_metrics, print_wide
from simulations.terminal import console, phases, progress

if TYPE_CHECKING:
    from fedmutual.evaluation.features import Training

MISSING = 10
"""Classes without a measure that are named, of all that there may be."""


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
    write_page(runs, out or runs[0] / "report.html", as_json)
    if tensorboard:
        from simulations.runs.tensorboard import write_events

        for folder in write_events(runs):
            print(f"events: {folder}", file=sys.stderr)


def evaluate(run: RunFolder, which: Which = "last", settings: Settings = None, as_json: AsJson = False) -> None:
    """Draw samples of a run's checkpoint again and measure them; rewrites its metrics, samples and report.

    Settings that say how to measure may change, such as extractor, samples or sampler, and stay with the run; data-path
    and device say where it is measured, and hold for this command alone.
    """
    changes, here = split_here(settings)
    if changes:
        from fedmutual.config import RunConfig
        from simulations.runs.extractor import TRAIN, extractor_to_train, with_own_extractor
        from simulations.runs.measuring import change_measuring
        from simulations.runs.networks import run_config

        if changes.get("extractor") == TRAIN:
            config = with_own_extractor(RunConfig.of(run_config(run, here).settings(), changes), run)
            changes["extractor"] = config.measuring.extractor
            if training := extractor_to_train(config, run):
                train_extractor(training)
        change_measuring(run, changes, here)
    measure(run, which, here)
    write_page([run], run / "report.html", as_json)


def sample(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="Folder for samples.npz and a PNG grid of each class.")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Samples of each class.")] = 64,
    which: Which = "last",
    stack: Annotated[
        bool,
        typer.Option("--stack", help="Mix each network with its peers' as held-out samples, which must be here, say."),
    ] = False,
    settings: Here = None,
) -> None:
    """Draw samples of every class from a run's checkpoint; no data are needed, unless with --stack."""
    from simulations.runs.networks import read_networks
    from simulations.runs.sampling import draw_samples, write_samples

    networks = read_networks(run, which)[1]
    with progress("sampling", len(networks), "classes") as advance:
        drawn = draw_samples(run, count, which, one_by_one(advance), parse_assignments(settings or []), stack)
    write_samples(out, drawn, {}, grid=count)
    print(f"{count} samples of each of {len(drawn)} classes in {out}")


def steps(
    run: RunFolder,
    numbers: Annotated[str, typer.Option("--steps", help="Numbers of steps, with commas between them.")] = "5,10,20,50",
    seeds: Annotated[int, typer.Option(help="Times that each sampler draws, for intervals.")] = 3,
    extractor: Annotated[str, typer.Option(help="Measure in these features too; by default the run's setting.")] = "",
    which: Which = "last",
    settings: Here = None,
    as_json: AsJson = False,
) -> None:
    """Compare few-step samplers with full sampling on a run's networks: seconds, and distance to real images."""
    if not all(part.strip().isdecimal() for part in numbers.split(",")):
        raise UserError(f"--steps {numbers}: give whole numbers with commas between them, such as 5,10,20")

    from simulations.runs.few_steps import FewSteps

    here = parse_assignments(settings or [])
    comparison = FewSteps(run, [int(part) for part in numbers.split(",")], seeds, which, extractor, here)
    with progress("sampling", 100, "%") as advance:
        rows = comparison.rows(advance)
    if as_json:
        return print_json(rows)
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
    console().print(table)


def peers(runs: RunFolders, which: Which = "last", settings: Here = None, as_json: AsJson = False) -> None:
    """Show at which levels of noise a class's peers know something of its held-out samples that it does not."""
    from simulations.runs.networks import read_networks
    from simulations.runs.peer_gain import tables, weigh_peers

    rows = []
    for run in runs:
        with progress("weighing peers", len(read_networks(run, which)[1]), "classes") as advance:
            of_run = weigh_peers(run, which, one_by_one(advance), parse_assignments(settings or []))
        rows += [{"run": str(run), **row} for row in of_run]
        if not as_json:
            print(f"{run}:")
            console().print(*tables(of_run), sep="\n")
    if as_json:
        print_json(rows)


def audit(
    runs: RunFolders,
    which: Which = "last",
    only: Annotated[
        int | None, typer.Option("--class", min=0, help="Audit one class, where only its holder's data are.")
    ] = None,
    shadows: Annotated[
        int, typer.Option(help="Networks trained for each class, for the attacks GSA and LiRA; 0: none.")
    ] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "-s", "--set", metavar="KEY=VALUE", help="audit-candidates, or where things are: data, data-path, store."
        ),
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Of networks published in part, attack the owners' whole ones.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure what a peer learns about training samples from the networks it was sent; writes audit.json.

    RUN is the folder that a run wrote. Members are a class's training samples; the others were never trained on.
    """
    from fedmutual.run_folder import read_facts
    from simulations.runs.membership import audit_run, control, part_in_words, table
    from simulations.runs.networks import read_networks
    from simulations.runs.proved import refutation

    changes, rows = parse_assignments(settings or []), []
    for run in runs:
        classes = 1 if only is not None else len(read_networks(run, which)[1])
        with progress("auditing", classes, "classes") as advance:
            of_run = audit_run(run, one_by_one(advance), which, changes, only, whole=whole, shadows=shadows)
        rows += [{"run": str(run), **row} for row in of_run]
        if not as_json:
            print(f"{run}{part_in_words(of_run)}:")
            print_wide(table(of_run))
            print(control(of_run))
            if said := refutation(of_run, read_facts(run)):
                print(said)
    if as_json:
        return print_json(rows)
    print("These are the attacks that were tried: a low number is no proof of privacy.")


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


def split_here(settings: list[str] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings that a command changes in a run, and those that only say where its data lie and what computes."""
    from simulations.runs.networks import HERE

    given = parse_assignments(settings or [])
    here = {key: given.pop(key) for key in HERE if key in given}
    return given, here


def measure(folder: Path, which: str, here: Mapping[str, Any] = MappingProxyType({})) -> None:
    from simulations.runs.measuring import evaluate as measure_run

    with phases() as shown:
        measure_run(folder, which, shown.step, here=here, on_phase=shown.begin)


def one_by_one(advance: Callable[[int], None]) -> Callable[[int], None]:
    """What a command calls with each class that is done, as a progress bar that counts them."""
    done = itertools.count(1)
    return lambda y: advance(next(done))


def write_page(runs: list[Path], out: Path, as_json: bool) -> None:
    from simulations.cli.comparison import comparison_table
    from simulations.report.comparison import comparison
    from simulations.report.missing import missing_classes
    from simulations.report.page import write_report
    from simulations.runs.arms import arms_of
    from simulations.runs.folder import read_runs
    from simulations.runs.proved import claim

    with progress("writing the report"):
        rows = comparison(runs)
        page = write_report(runs, out)
    missing = missing_classes(arms_of(read_runs(runs)))
    for one in missing[:MISSING]:
        print(f"class {one.name} of {one.run} has no measure: {one.reason}", file=sys.stderr)
    if len(missing) > MISSING:
        print(f"and {len(missing) - MISSING} more classes have none", file=sys.stderr)
    if as_json:
        return print_json(rows)
    arms = len({row["arm"] for row in rows})
    if arms < 3:
        print_metrics(rows)
    if arms > 2 or (arms > 1 and any(row["seeds"] > 1 for row in rows)):
        print_wide(comparison_table(rows))
    for said in dict.fromkeys(claim(run.facts, run.settings, run.history) for run in read_runs(runs)):
        if said:
            print(said)
    print(f"report: {page}")


def train_extractor(training: "Training", quiet: bool = False) -> tuple[dict[str, Any], str]:
    """Train an extractor under a progress bar; what its file says of itself, and a sentence on it.

    The sentence goes to stderr unless `quiet`: standard output is for the command's own answer.
    """
    with progress("training the extractor", 100, "%") as advance:
        facts = training.run(advance)
    right = f"{100 * facts['accuracy']:.1f} % of {facts['test_images']} test images classified correctly"
    sentence = f"{training.path}: {facts['training_images']} training images, {right}, sha256 {facts['sha256'][:16]}"
    if not quiet:
        print(sentence, file=sys.stderr)
    return facts, sentence
