"""The ServerApp: opens the run folder, then runs the rounds that are left."""

from collections.abc import Callable
from typing import Any

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from fedmutual.config import RunConfig
from fedmutual.data.sources import num_classes, sample_shape
from server.bank import Bank
from server.journal import Journal
from server.strategy import MutualLearning

OnRound = Callable[[list[dict[str, Any]]], None]

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """A run started by `flwr run`, whose run config holds the settings."""
    serve(grid, prepare(RunConfig.of(dict(context.run_config))))


def prepare(config: RunConfig, on_round: OnRound = lambda rows: None) -> MutualLearning:
    """Bank, run folder and strategy; `on_round` sees each round's history lines.

    Raises:
        UserError: settings that cannot work, or a run folder that is taken.
    """
    bank = Bank(config, sample_shape(config), num_classes(config))
    return MutualLearning(config, bank, Journal(config, bank), on_round)


def serve(grid: Grid, strategy: MutualLearning) -> None:
    """Train for `rounds` rounds, or what is left of them.

    Raises:
        RunFailed: no client gets through.
    """
    config, journal = strategy.config, strategy.journal
    left = max(0, config.rounds - journal.round)
    try:
        strategy.start(grid, ArrayRecord(), num_rounds=left, timeout=config.timeout)
    except BaseException:
        journal.write_run(status="stopped")
        raise
    journal.write_run(status="done")
