"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from simulations.cli.presets import names

Settings = Annotated[list[str] | None, typer.Option("-s", "--set", metavar="KEY=VALUE", help="Change a setting.")]
Here = Annotated[
    list[str] | None,
    typer.Option("-s", "--set", metavar="KEY=VALUE", help="Where things are: data, data-path, store; and the device."),
]
AsJson = Annotated[bool, typer.Option("--json", help='Print one object {"rows": [...]} instead of tables.')]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN")]
RunFolders = Annotated[list[Path], typer.Argument(metavar="RUN...")]
OnCluster = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS",
        help="Ray cluster to run clients on: HOST:PORT, or auto: that of RAY_ADDRESS, else the one that runs here.",
    ),
]
Preset = Annotated[str, typer.Argument(autocompletion=names)]
PresetOrData = Annotated[str, typer.Argument(metavar="[PRESET|DATA]", autocompletion=names)]
Minutes = Annotated[
    float | None, typer.Option(help="Choose what makes the most of so many minutes; for DATA 15 by default.")
]
Which = Annotated[str, typer.Option("--round", help="Checkpoint: last, best, or a round's number.")]
