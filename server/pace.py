"""How long a round should be: on separate machines each message starts a client process anew, which must not cost much.

With `local-steps = 0` the server tries rounds out before the first one, and settles on one number for all
clients and rounds. A trial is an attempt that the server then gives up, so that clients forget it like any
other: the run that follows is, bit for bit, the run with that number in its settings.
"""

import math
import time
from logging import INFO, WARNING

from flwr.app import Message
from flwr.common.logger import log
from flwr.serverapp import Grid

from fedmutual.errors import UserError
from fedmutual.learning.igd import NO_STEPS
from fedmutual.records import Rejected, unpack_numbers
from server.orders import Run, order_round
from server.roster import Roster, RunFailed, reason_of

WORTHWHILE = 0.95
"""Share of a round that should be gradient steps."""

MARGIN = 1.1
"""More steps than the trials ask for, since rounds differ."""

TRIAL_STEPS = 10
"""Of the first trial, whose steps are mostly warm-up."""

TRIAL_SECONDS = 10.0
"""Of gradient steps in the last trial: long enough that warm-up no longer counts."""

FILLED = 0.5
"""Share of `timeout` that a round may last, so that a slow day does not lose it."""


PATIENCE = 3
"""Trials in a row without an answer of every client, after which the run fails."""


def settle(grid: Grid, run: Run, roster: Roster) -> Run:
    """`run` with the number of local steps that makes a round worthwhile, which is in its run folder too from now on.

    Raises:
        RunFailed: no client gets through a trial, or one never answers.
        UserError: the clients are simulated.
    """
    steps, whole, training, timeout = TRIAL_STEPS, 0.0, 0.0, run.config.federation.timeout
    while training < TRIAL_SECONDS:
        if training:
            steps = max(2 * steps, math.ceil(steps * MARGIN * TRIAL_SECONDS / training))
        whole, training = _trial(grid, run.with_steps(steps), roster)
        log(INFO, "trial of %d local steps: %.1f s, %.1f s of it gradient steps", steps, whole, training)
    start_up, step = whole - training, training / steps
    wanted = worthwhile_steps(start_up, step)
    settled = max(1, min(math.ceil(MARGIN * wanted), int((FILLED * timeout - start_up) / step)))
    run = run.with_steps(settled)
    run.journal.write_settings(run.config)
    round_ = start_up + settled * step
    words = "local-steps = %d: start-up and transport, %.1f s, will be %.0f%% of a round of %.0f s"
    log(INFO, words, settled, start_up, 100 * start_up / round_, round_)
    if settled < wanted:
        words = "rounds end at %.0f%% of timeout = %g: a higher one would let %d local steps make that %.0f%%"
        log(WARNING, words, 100 * FILLED, timeout, wanted, 100 * (1 - WORTHWHILE))
    return run


def worthwhile_steps(start_up: float, step: float) -> int:
    """The smallest n with n step >= WORTHWHILE (start_up + n step); both in seconds."""
    return max(1, math.ceil(start_up / step * WORTHWHILE / (1 - WORTHWHILE)))


def _trial(grid: Grid, run: Run, roster: Roster) -> tuple[float, float]:
    """Seconds of a first round, and of the gradient steps at its slowest client; then the round is given up."""
    settings = run.config.federation
    for _ in range(PATIENCE):
        roster.wait_for(settings.min_clients or run.bank.classes, grid, settings.timeout)
        round_ = order_round(run, run.journal.round + 1, roster.nodes)
        if roster.simulated:
            raise UserError(f"{NO_STEPS} (a client with num-partitions in its settings counts as simulated)")
        replies = list(grid.send_and_receive(round_.orders.values(), timeout=settings.timeout))
        whole = time.monotonic() - round_.started
        run.journal.begin_attempt()  # clients forget the round, as any other of an attempt that is over
        seconds, failures = _seconds(replies, whole)
        if not seconds and replies:
            raise RunFailed(f"no client got through a trial of local steps: {failures[0]}")
        if len(replies) == len(round_.orders):
            return whole, max(seconds)
        log(WARNING, "a trial took timeout = %g s, and not all replied: once more", settings.timeout)
    raise RunFailed(f"{PATIENCE} trials without a reply of every client: raise timeout, or set local-steps")


def _seconds(replies: list[Message], whole: float) -> tuple[list[float], list[str]]:
    """What the clients say their steps took, where that can be, and what kept the others."""
    seconds, failures = [], []
    for reply in replies:
        try:
            if reply.has_error():
                raise Rejected(reason_of(reply))
            claimed = unpack_numbers(reply.content)["seconds"]
            if not 0 < claimed <= whole:
                raise Rejected(f"steps of {claimed:g} s do not fit in a round of {whole:.1f} s")
            seconds.append(claimed)
        except Rejected as rejected:
            failures.append(str(rejected))
            log(WARNING, "trial: %s", rejected)
    return seconds, failures
