"""The command line's application, and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

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
