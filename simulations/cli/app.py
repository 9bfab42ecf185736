"""`fedmutual`: its commands in panels, and how each ends: an exit code, and one line for an error."""

import io
import os
import sys
from collections.abc import Callable

import click
import typer

from fedmutual.errors import UserError
from fedmutual.text import visible
from simulations.cli import deploy, inspect, release, theory, train, upkeep
from simulations.cli.watch import watch

app = typer.Typer(no_args_is_help=True, help="Federated training of diffusion models that is fair to rare classes.")

PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Train": (train.simulate, train.compare, train.inspect, train.presets, train.settings, train.extractor),
    "Inspect": (
        *(watch, inspect.report, inspect.evaluate, inspect.sample, inspect.steps),
        *(inspect.peers, inspect.audit, release.release, inspect.export),
    ),
    "Deploy": (deploy.doctor, deploy.credentials, deploy.deploy_demo),
    "Theory": (theory.game,),
    "Upkeep": (upkeep.bench, upkeep.soak),
}
"""The commands as `fedmutual --help` shows them; what a newcomer needs comes first."""

for _panel, _commands in PANELS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)


def main() -> None:
    """Run the command line; exit code 0 done, 1 failed, 2 wrong usage or settings."""
    os.environ["PYTHONSAFEPATH"] = "1"  # processes that are started import no module that lies where the user stands
    for stream in (sys.stdout, sys.stderr):
        # Names of classes and files are printed as they are, whatever the locale and whatever bytes they hold.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")
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
    except MemoryError as error:
        stop(f"out of memory: {error}", 1)
    except OSError as error:
        stop(f"{error.filename} cannot be used: {error.strerror}" if error.filename else str(error), 1)
    except RuntimeError as error:
        stop(str(error), 1)


def stop(message: str, code: int) -> None:
    """One line on stderr and out, also past threads that wait for replies that nobody reads any more."""
    print("error:", visible(" ".join(message.split())), file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)
