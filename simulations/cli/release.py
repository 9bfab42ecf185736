"""The command that gives samples away, with all that is known of them."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedmutual.settings import parse_assignments
from simulations.cli.inspect import one_by_one
from simulations.cli.options import AsJson, Here, RunFolder, Which
from simulations.terminal import progress


def release(
    run: RunFolder,
    out: Annotated[Path | None, typer.Option(help="A new folder for the release; by default RUN/release.")] = None,
    count: Annotated[
        int | None,
        typer.Option("-n", "--count", min=2, help="Samples drawn of each class; by default the run's setting."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Classifiers that tell what the samples are good for, 3 or more.")] = 3,
    drop_copies: Annotated[
        bool,
        typer.Option("--drop-copies", help="Leave out samples that nearly copy a training sample, and count them."),
    ] = False,
    which: Which = "last",
    settings: Here = None,
    as_json: AsJson = False,
) -> None:
    """Write samples to give away, with a datasheet: how real, how useful, and what they reveal about the training data.

    Needs the data of every class. RUN/release-nearest.html shows training images beside the most suspicious samples: it
    is for the owner of the data alone, and no part of the release.
    """
    from simulations.report.release import PAGE, write_release
    from simulations.report.release_sections import answer
    from simulations.runs.release import Releasing
    from simulations.runs.release_folder import refuse_taken

    place = out or run / "release"
    refuse_taken(place)
    made = Releasing(run, count, seeds, drop_copies, which, parse_assignments(settings or []))
    with progress("sampling", len(made.classes), "classes") as advance:
        made.draw(one_by_one(advance))
    with progress("attacking", len(made.classes), "classes") as advance:
        made.attack(one_by_one(advance))
    with progress("training classifiers", 100, "%") as advance:
        made.train_classifiers(advance)
    sheet, gallery = write_release(made, place)
    print(f"for the owner alone, with training samples: {gallery}", file=sys.stderr)
    if as_json:
        return print(json.dumps(sheet))
    for sentence in answer(sheet):
        print(sentence)
    print(f"release: {place / PAGE}")
