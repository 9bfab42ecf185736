"""Commands for separate machines."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fedmutual.config import RunConfig
from fedmutual.settings import parse_assignments
from simulations.cli.options import AsJson, Settings
from simulations.cli.presets import read_preset
from simulations.cli.tables import print_json
from simulations.terminal import console, progress


def doctor(
    preset: Annotated[str | None, typer.Argument()] = None,
    settings: Settings = None,
    connection: Annotated[
        str | None, typer.Option(help="Name in Flower's config.toml: check its certificates and its SuperLink too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check whether this machine is fit for a run, and say what to do where it is not.

    PRESET is the name of a preset or a TOML file of settings, as `flwr run -c` takes it; by default the defaults.
    """
    config = RunConfig.of(read_preset(preset) if preset else {}, parse_assignments(settings or []))

    from simulations.deployment.doctor import checks

    todo, rows = checks(config, connection), []
    with progress("checking", len(todo), "checks") as advance:
        for done, check in enumerate(todo, 1):
            rows += [finding.row() for finding in check()]
            advance(done)
    if as_json:
        print_json(rows)
    else:
        table = Table("check", "", "what was seen", box=None, padding=(0, 2, 0, 0))
        for row in rows:
            table.add_row(row["check"], row["verdict"], "\n→ ".join(filter(None, (row["seen"], row["mend"]))))
        console().print(table)
    if wrong := [row["check"] for row in rows if row["verdict"] == "wrong"]:
        raise RuntimeError(f"{len(wrong)} of {len(rows)} checks are wrong: {', '.join(wrong)}")


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
    from simulations.deployment.credentials import write_credentials

    for files, place in write_credentials(folder, clients, host or []):
        print(f"{files:<24} {place}")


def deploy_demo(
    out: Annotated[Path, typer.Option(help="Run folder of the server.")] = Path("runs/deploy-demo"),
) -> None:
    """Show a deployed federation on this machine: TLS, keys, a SuperLink and three SuperNodes with private folders."""
    from simulations.deployment.demo import demo

    demo(out)
