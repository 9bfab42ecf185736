"""The ServerApp: opens the run folder, then runs the rounds that are left."""

import math
from collections.abc import Callable
from logging import ERROR, INFO
from typing import Any

from flwr.app import ArrayRecord, Context
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid import HttpGrid

from fedmutual.config import RunConfig, UserError
from fedmutual.data.sources import num_classes, sample_shape
from server.bank import Bank
from server.intake import Intake
from server.journal import Journal
from server.strategy import MutualLearning, RunFailed

OnRound = Callable[[list[dict[str, Any]]], None]

WORTHWHILE = 0.95
"""Share of a round that should be gradient steps: deployed, each message starts a client process anew."""

MEASURABLE = 1e-3
"""Seconds of gradient steps, as clients tell them, from which advice can be worked out."""

STOPS = "the run stops: "
"""What the log's line with the reason begins with."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """A run started by `flwr run`, whose run config holds the settings; its log is what `flwr log` shows."""
    try:
        config = RunConfig.of(dict(context.run_config))
        strategy = prepare(config, lambda rows: log(INFO, "%s", round_in_words(rows, config)))
        log(INFO, "run folder: %s", strategy.journal.folder)
        # Only replies from other machines come over Flower's HTTP; those of a simulation are this machine's own.
        serve(Intake(grid, strategy.bank.reply_limit) if isinstance(grid, HttpGrid) else grid, strategy)
    except (UserError, RunFailed) as error:
        log(ERROR, "%s%s", STOPS, error)  # ahead of the traceback that Flower prints
        raise


def round_in_words(rows: list[dict[str, Any]], config: RunConfig) -> str:
    """One line on a round: how many got through, the worst class, and local-steps if start-up outweighs training."""
    done = [row for row in rows if row["status"] == "ok"]
    text = f"round {rows[0]['round']} of {config.rounds}: {len(done)} of {len(rows)} classes"
    if not done:
        return text
    worst = max(done, key=lambda row: row["loss"])
    training, whole = max(row["seconds"] for row in done), rows[0]["round_seconds"]
    text += f", worst loss {worst['loss']:.4g} (class {worst['class']}), {whole:.1f} s"
    if not MEASURABLE <= training < WORTHWHILE * whole:
        return text
    steps = config.local_steps * (whole - training) / training * WORTHWHILE / (1 - WORTHWHILE)
    advice = f"local-steps = {math.ceil(steps):d} would make it {WORTHWHILE:.0%}"
    return f"{text}, {training / whole:.0%} of it gradient steps: {advice}"


def prepare(config: RunConfig, on_round: OnRound = lambda rows: None) -> MutualLearning:
    """Bank, run folder and strategy; `on_round` sees each round's history lines.

    Raises:
        UserError: settings that cannot work, or a run folder that is taken.
    """
    bank = Bank(config, sample_shape(config), num_classes(config))
    if config.min_clients > bank.classes:
        raise UserError(f"min-clients = {config.min_clients}, and there are {bank.classes} classes: lower it")
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
