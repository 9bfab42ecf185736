"""The command that solves and plays the theory's game."""

from pathlib import Path
from typing import Annotated

import typer

from simulations.cli.options import AsJson, Settings


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
    from simulations.game.command import command

    command(preset, seeds, settings or [], out, as_json)
