"""The ServerApp: opens the run folder, then runs the rounds that are left."""

from collections.abc import Mapping
from contextlib import suppress
from logging import ERROR, INFO
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from fedmutual.checkpoint import Unwritable
from fedmutual.config import RunConfig, beyond_defaults, refuse_without_effect
from fedmutual.course import Course
from fedmutual.data import num_classes, sample_shape
from fedmutual.errors import UserError
from fedmutual.privacy.versions import sent_epsilon
from fedmutual.run_folder import read_history
from server.bank import Bank
from server.intake import guarded
from server.journal import Journal, settled_before
from server.orders import OnRound, Run
from server.pace import WORTHWHILE, settle, worthwhile_steps
from server.resending import Resending
from server.roster import Roster, RunFailed
from server.strategy import MutualLearning
from server.wishes import Wishes

MEASURABLE = 1e-3
"""Seconds of gradient steps, as clients report them, from which advice can be worked out."""

STOPS = "the run stops: "
"""What the log's line with the reason begins with."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """A run started by `flwr run`, whose run config holds the settings; its log is what `flwr log` shows."""
    try:
        config = RunConfig.of(dict(context.run_config))
        refuse_without_effect(config, beyond_defaults(config))
        refuse_relative(config)
        run = prepare(config)
        log(INFO, "run folder: %s", run.journal.folder)
        serve(guarded(grid, run.bank.reply_limit), run)
    except (UserError, RunFailed, Unwritable) as error:
        log(ERROR, "%s%s", STOPS, error)  # ahead of the traceback that Flower prints
        raise


def refuse_relative(config: RunConfig) -> None:
    """Raises `UserError` for a path that would be looked for in the folder where the SuperLink was started."""
    for key in ("data-path", "out", "store", "extractor"):
        path = str(config.settings()[key])
        if path and not Path(path).expanduser().is_absolute():
            raise UserError(f"{key} = {path} is relative, and the server runs in another folder: give the whole path")


def round_in_words(
    rows: list[dict[str, Any]], config: RunConfig, course: Course | None = None, simulated: bool = False
) -> str:
    """One line on a round: how many got through, the worst class, seconds; of the `course` so far the time left.

    It ends with local-steps if start-up outweighs training; simulated clients share this machine's cores and are not
    started anew, so that for them there is no such advice.
    """
    done = [row for row in rows if row["status"] == "ok"]
    text = f"round {rows[0]['round']} of {config.rounds}: {len(done)} of {len(rows)} classes"
    if not done:
        return text
    measured = [row for row in done if row["loss"] is not None]
    training, whole = max(row["seconds"] for row in done), rows[0]["round_seconds"]
    said = []
    if measured:
        worst = max(measured, key=lambda row: row["loss"])
        said.append(f", worst loss {worst['loss']:.4g} (class {worst['class']})")
    said += [f", {words}" for words in (course.worst_in_words(), course.left_in_words) if words] if course else []
    text += "".join(said) + f", {whole:.1f} s"
    if simulated or training < MEASURABLE:
        return text
    text += f", {training / whole:.0%} of it gradient steps"
    if training >= WORTHWHILE * whole:
        return text
    steps = worthwhile_steps(whole - training, training / config.local_steps)
    return f"{text}: local-steps = {steps} would make it {WORTHWHILE:.0%}"


def prepare(config: RunConfig, for_clients: Mapping[str, Any] | None = None) -> Run:
    """Bank and run folder of a run; `for_clients` are settings that its clients are sent in place of the run's own.

    Raises:
        UserError: settings that cannot work, or a run folder that is taken.
    """
    config = settled_before(config)
    bank = Bank(config, sample_shape(config.data), num_classes(config.data))
    if config.federation.min_clients > bank.classes:
        raise UserError(
            f"min-clients = {config.federation.min_clients}, and there are {bank.classes} classes: lower it"
        )
    journal = Journal(config, bank)
    told = read_history(journal.folder, bank.classes) if config.federation.ask_for_peers else []
    if (epsilon := sent_epsilon(config, bank.shape)) is not None:
        journal.write_run(epsilon=epsilon, delta=config.publishing.delta)
    return Run(config, bank, journal, for_clients or {}, Wishes(told))


def serve(grid: Grid, run: Run, on_round: OnRound = lambda rows: None) -> None:
    """Train for `rounds` rounds, or what is left of them; before the first, settle how long they are.

    Raises:
        RunFailed: no client gets through.
        UserError: simulated clients, and no number of local steps.
        Unwritable: the run folder's disk is full.
    """
    journal, roster, timeout = run.journal, Roster(run.bank.classes), run.config.federation.timeout
    left = max(0, run.config.rounds - journal.round)
    try:
        run = run if run.config.local_steps else settle(grid, run, roster)
        config, course = run.config, Course(run.config.rounds)

        def report(rows: list[dict[str, Any]]) -> None:
            course.add(rows)
            log(INFO, "%s", round_in_words(rows, config, course, roster.simulated))
            on_round(rows)

        strategy = MutualLearning(run, roster, report)
        strategy.start(Resending(grid, roster), ArrayRecord(), num_rounds=left, timeout=timeout)
    except BaseException:
        with suppress(Unwritable):  # on a full disk the first error says so, and the status stays as it was
            journal.write_run(status="stopped")
        raise
    journal.write_run(status="done")
