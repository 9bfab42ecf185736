"""Commands that train, and what a newcomer needs before: presets, settings, an extractor."""

import itertools
import json
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from fedmutual.config import RunConfig, refuse_without_effect
from fedmutual.course import Course
from fedmutual.errors import UserError
from fedmutual.settings import parse_assignments
from fedmutual.text import visible
from simulations.cli.inspect import MISSING, measure, train_extractor, write_page
from simulations.cli.minutes import METHODS, SEEDS, Chosen, again, chosen, is_data, untimed
from simulations.cli.options import AsJson, Minutes, OnCluster, Preset, PresetOrData, Settings
from simulations.cli.presets import PRESETS, names, read_preset, record_preset, settings_of_run
from simulations.cli.tables import print_json
from simulations.terminal import console, moment, phases, progress

if TYPE_CHECKING:
    from torch import Tensor

    from simulations.engine.simulation import Simulation
    from simulations.experiments.plan import Plan


def simulate(
    preset: PresetOrData = "digits",
    settings: Settings = None,
    minutes: Minutes = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; by default runs/PRESET-TIME.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue the run in this folder, with its settings instead of PRESET's.")
    ] = None,
    cpus: Annotated[int, typer.Option(min=0, help="Clients that train at once; 0: one for each core.")] = 0,
    gpus: Annotated[int, typer.Option(min=-1, help="GPUs they share; -1: all there are.")] = -1,
    ray: OnCluster = "",
    as_json: AsJson = False,
) -> None:
    """Train a federation on this machine, one client a class, then sample, measure and report.

    PRESET is the name of a preset (`fedmutual presets` lists them) or the path of a TOML file of settings. DATA is a
    folder of images or a .npz: network, size and steps are then chosen for the data and for the time that --minutes
    gives, 15 by default. With --minutes a preset gets the steps that the time allows.
    """
    _refuse_timed_on_cluster(preset, minutes, ray)
    given = parse_assignments(settings or [])
    choice = _chosen_to_simulate(preset, minutes, given, resume, cpus, gpus)
    config, folder = _asked_for(preset, given, out, resume, choice)

    with moment("starting up"):
        from simulations.engine.simulation import Simulation
        from simulations.report.words import listing
        from simulations.runs.extractor import extractor_to_train, with_own_extractor
        from simulations.runs.measuring import refuse_unmeasurable
        from simulations.runs.networks import without_network

    part = choice.part if choice else untimed
    with part("reading"), phases() as shown:
        shown.begin("reading the data")
        if not resume:
            config = with_own_extractor(config, folder).with_whole_paths()
        training = extractor_to_train(config, folder) if config.measuring.samples else None
        refuse_unmeasurable(config, with_extractor=not training)  # before the training, not after it
        simulation: Simulation[Any] = Simulation(config, cpus, gpus, on_read=shown.read, ray=ray)
    print_notices(simulation.notices)
    if not resume and not is_data(preset):
        record_preset(simulation.journal.folder, preset)
    if choice:
        choice.write(simulation.journal.folder, "simulate")
    if training:
        with part("extractor"):
            train_extractor(training)
    with part("training"):
        folder = _train(simulation)
    if config.measuring.samples:
        with part("measuring"):
            measure(folder, "last")
    with part("page"):
        write_page([folder], folder / "report.html", as_json)
    if choice:
        choice.finish(folder)
    if missing := without_network(folder):
        named = missing if len(missing) <= MISSING else [*missing[:MISSING], f"{len(missing) - MISSING} more"]
        raise RuntimeError(
            f"class {listing(named)} has no network, so that this run is not complete: its page and history.jsonl "
            "say why"
        )


def _train(simulation: "Simulation[Any]") -> Path:
    """Train, with progress on the way, and say how many replies did not get through; the run folder."""
    refused, config = 0, simulation.config
    course, class_names = Course(config.rounds), simulation.journal.read_run().class_names
    with phases(then="samples, measures and the report" if config.measuring.samples else "the report") as shown:

        def on_round(rows: list[dict[str, Any]]) -> None:
            nonlocal refused
            refused += sum(row["status"] in ("error", "rejected", "missing") for row in rows)
            course.add(rows)
            shown.advance(course.done, course.worst_in_words(class_names))

        folder = simulation.run(on_round, shown.begin)
    if refused:
        print(f"{refused} replies did not get through: {folder / 'history.jsonl'} says why", file=sys.stderr)
    return folder


def _refuse_timed_on_cluster(preset: str, minutes: float | None, ray: str) -> None:
    """Raises `UserError` where settings would be chosen by the speed of this machine for a run on others."""
    if ray and (minutes is not None or is_data(preset)):
        raise UserError("--minutes and DATA choose settings by this machine's speed: with --ray name a preset instead")


def _chosen_to_simulate(
    preset: str, minutes: float | None, given: dict[str, Any], resume: Path | None, cpus: int, gpus: int
) -> Chosen | None:
    """The settings that are chosen, where any are; a run that is resumed has its own."""
    if resume and minutes is not None:
        raise UserError("--resume goes on with the steps that the run has: leave --minutes out")
    return None if resume else chosen(preset, minutes, given, cpus, gpus)


def _asked_for(
    preset: str, changes: dict[str, Any], out: Path | None, resume: Path | None, choice: Chosen | None
) -> tuple[RunConfig, Path]:
    """The settings and the folder of a run that is begun, or resumed with the settings that it has.

    Raises:
        UserError: settings that cannot work, or that would change nothing.
    """
    if resume and out:
        raise UserError("--resume continues in its own folder: leave --out out")
    folder = resume or out or Path("runs") / f"{Path(preset).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    before = choice.settings if choice else settings_of_run(resume) if resume else read_preset(preset)
    config = RunConfig.of(before, changes, {"resume": resume is not None, "out": str(folder)})
    refuse_without_effect(config, changes)
    return config, folder


def compare(
    preset: PresetOrData = "digits",
    methods: Annotated[
        str | None,
        typer.Option(help=f"Names with commas between them, or all; by default all, of DATA {METHODS}."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(help=f"Seeds of each method, from the setting seed on; by default 5, of DATA {SEEDS}."),
    ] = None,
    settings: Settings = None,
    minutes: Minutes = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the comparison, also one to go on with; by default a new one.")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="First let each method choose one setting by held-out samples.")
    ] = False,
    cpus: Annotated[int, typer.Option(min=0, help="Cores to use; 0: all there are.")] = 0,
    gpus: Annotated[int, typer.Option(min=-1, help="GPUs for federated arms; -1: all there are.")] = -1,
    ray: OnCluster = "",
    as_json: AsJson = False,
) -> None:
    """Train several methods on the same data, split and budget, over several seeds, and report.

    PRESET, DATA and --minutes are as in simulate. `-s METHOD.key=value` changes a setting of one method alone. An arm
    that is finished is not run again, so that the same command with its --out goes on after a stop.
    """
    _refuse_timed_on_cluster(preset, minutes, ray)
    if tune:
        _refuse_tuning(preset, minutes, ray)
    given, own = parse_assignments(settings or []), is_data(preset)
    methods, seeds = methods or (METHODS if own else "all"), seeds if seeds is not None else SEEDS if own else 5
    choice = again(out, preset, minutes, given) or chosen(preset, minutes, given, cpus, gpus, (methods, seeds))
    changes = {**(choice.settings if choice else read_preset(preset)), **given}
    folder = out or Path("runs") / f"compare-{Path(preset).stem}-{datetime.now():%Y%m%d-%H%M%S}"

    with moment("starting up"):
        from simulations.experiments import tuning
        from simulations.experiments.plan import plan, run_arms

    def planned() -> "Plan":
        return plan({**tuning.chosen_settings(folder), **changes}, methods, seeds, folder, given=given)

    part = choice.part if choice else untimed
    with part("reading"), progress("reading the data"):
        made = planned()
    print_notices(made.notices)
    if choice:
        choice.write(folder, "compare")
    if tune and (waiting := tuning.to_tune(made, given)):
        with progress("tuning", sum(len(values) for _, values in waiting.values()), "values") as advance:
            tuning.tune(made, waiting, cpus, gpus, advance)
        made = planned()
    with part("extractor"):
        _train_extractors(made)
    with part("arms"), phases(then="the report") as shown:
        shown.begin("comparing", len(made.arms), "arms", timed=False)
        run_arms(made, cpus, gpus, shown.advance, ray)
    for place in made.places if not own else ():
        record_preset(place, preset)
    tuning.record_choices(made)
    with part("page"):
        write_page(made.places, folder / "report.html", as_json)
    if choice:
        choice.finish(folder)


def _refuse_tuning(preset: str, minutes: float | None, ray: str) -> None:
    """Raises `UserError` where --tune would take time that is not counted, or train where it cannot."""
    if minutes is not None or is_data(preset):
        raise UserError(
            "--tune trains several values of each method, which --minutes and DATA do not count: leave --tune out, or "
            "name a preset, such as the preset.toml that a comparison of DATA writes"
        )
    if ray:
        raise UserError("--tune trains on this machine alone: leave --tune or --ray out")


def _train_extractors(made: "Plan") -> None:
    """Those of the arms that are not there yet, where anything is measured."""
    from simulations.runs.extractor import extractor_to_train

    for config in made.arms.values():
        if config.measuring.samples and (training := extractor_to_train(config, made.folder)):
            train_extractor(training)


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
    changes = parse_assignments(settings or [])

    from fedmutual.device import pick_device
    from fedmutual.evaluation.features import Training
    from simulations.runs.extractor import TRAIN

    config = RunConfig.of(read_preset(preset), changes, {"extractor": TRAIN})
    refuse_without_effect(config, changes)

    path = out or Path("extractors") / f"{Path(preset).stem}-{config.seed}.safetensors"
    facts, sentence = train_extractor(Training(config, path, pick_device(config.compute)), quiet=True)
    if as_json:
        return print_json([facts])
    print(sentence)


def presets(as_json: AsJson = False) -> None:
    """List the presets and what each is for."""
    rows = []
    for path in sorted(PRESETS.glob("*.toml")):
        words = [
            line.removeprefix("#").strip()
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.startswith("#")
        ]
        rows.append({"preset": path.stem, "about": " ".join(words), "file": str(path)})
    if as_json:
        return print_json(rows)
    table = Table("preset", "what it is", box=None, padding=(0, 2, 1, 0))
    for row in rows:
        table.add_row(row["preset"], row["about"])
    console().print(table)


def settings(
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/settings.md.")] = False,
) -> None:
    """List every setting, its default and what it does."""
    rows = [
        {"group": group, "setting": key, "default": field.default, "about": field.description}
        for group, key, field in RunConfig.documented()
    ]
    if as_json:
        return print_json(rows)
    if markdown:
        return print(settings_page(rows), end="")
    table = Table("setting", "default", "what it does", box=None)
    for row in rows:
        table.add_row(row["setting"], json.dumps(row["default"]), row["about"])
    console().print(table)


def settings_page(rows: list[dict[str, Any]]) -> str:
    """The page of docs about all settings: a table for each group."""
    lines = [
        "# Settings",
        "",
        "A setting is the same in a preset, after `-s key=value` and in `flwr run -c`. This page is printed by",
        "`fedmutual settings --markdown`; a test holds it to the code.",
    ]
    for group, settings_of_group in itertools.groupby(rows, key=lambda row: row["group"]):
        lines += ["", f"## {group}", "", "| setting | default | what it does |", "|---|---|---|"]
        for row in settings_of_group:
            about = row["about"].replace("|", "\\|")
            lines.append(f"| `{row['setting']}` | `{json.dumps(row['default'])}` | {about} |")
    return "\n".join(lines) + "\n"


def print_notices(notices: Sequence[str]) -> None:
    """What a person should know of the data before the training, such as files that are left out."""
    for notice in notices:
        print(f"note: {visible(notice)}", file=sys.stderr)


def inspect(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A folder of images, or a .npz.")],
    settings: Settings = None,
    png: Annotated[Path | None, typer.Option("--png", help="Write a sheet of the first images, a class a row.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what will be read of your data: classes, counts, values, what is left out, copies. Nothing is trained."""
    from fedmutual.data.facts import facts_of
    from fedmutual.data.overview import look, settings_for

    given = parse_assignments(settings or [])
    config = RunConfig.of(settings_for(data), given)
    if not config.data.shape and not config.data.size and len((facts := facts_of(config.data)).shapes) > 1:
        side = min(facts.side, 32)
        config = config.but(shape=f"{facts.channels},{side},{side}", size=side)
        print(
            f"note: images have several shapes: their middle squares are read at {side} x {side}, in "
            f"{'colour' if facts.channels == 3 else 'grey'}; -s size=N or -s shape=... reads them otherwise",
            file=sys.stderr,
        )
    with phases() as shown:
        shown.begin("reading the data")
        overview = look(config.data, shown.read)
    if png:
        write_sheet(png, overview.first, overview.shape)
    if as_json:
        rows = [
            {"class": y, "name": name, **{part: counts[y] for part, counts in overview.counts.items()}}
            for y, name in enumerate(overview.names)
        ]
        return print_json(rows)
    table = Table("class", *overview.counts, "", box=None, padding=(0, 2, 0, 0))
    largest = max(overview.counts["train"])
    for y, name in enumerate(overview.names):
        of_parts = (str(counts[y]) for counts in overview.counts.values())
        table.add_row(name, *of_parts, "█" * max(1, round(40 * overview.counts["train"][y] / largest)))
    console().print(table)
    print(f"samples: {' x '.join(map(str, overview.shape))}, channels first")
    for kind, (low, high) in overview.ranges.items():
        print(f"stored as: {kind} from {low:g} to {high:g}")
    for ((part, y), (other, z)), count in overview.twice.items():
        first = "it" if (part, y) == (other, z) else f"{part} class {overview.names[y]}"
        repeat = "repeats" if count == 1 else "repeat"
        print(f"copies: {count} of {other} class {overview.names[z]} {repeat} another sample of {first}")
    for notice in overview.notices:
        print(f"note: {visible(notice)}")
    print(f"next: {visible(next_command(data, given))}")


def next_command(data: Path, given: dict[str, Any]) -> str:
    """A command that trains on these data, with the settings that were given."""
    name = (
        str(data) if data.parent != Path() or data.is_absolute() else f"./{data}" if str(data) in names() else str(data)
    )
    return shlex.join(
        ["fedmutual", "simulate", name, *(word for key in given for word in ("-s", f"{key}={given[key]}"))]
    )


def write_sheet(path: Path, images: "dict[int, Tensor]", shape: tuple[int, ...]) -> None:
    """The first images of each class as one PNG, a class a row.

    Raises:
        UserError: the samples are no images, or the file cannot be written.
    """
    import numpy as np
    from PIL import Image

    from simulations.runs.sampling import sheet

    if len(shape) != 3:
        raise UserError("--png needs images, and these samples are not: leave --png out")
    rows = [sheet(own.numpy(), columns=len(own), most=len(own)) for own in images.values() if len(own)]
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(padded)).save(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be written: {error}") from None
