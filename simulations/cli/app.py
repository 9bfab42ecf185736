"""`fedmutual`: what a person types."""

import os
import sys

import click

from fedmutual.errors import UserError
from simulations.cli import deploy, runs, upkeep  # noqa: F401  (their commands join the application)
from simulations.cli.options import app


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
