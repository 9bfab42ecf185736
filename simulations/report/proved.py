"""What is proved of what the clients of each arm send."""

from simulations.report.comparison import Comparison
from simulations.runs.proved import claim, refutation


def proved(compared: Comparison) -> list[tuple[str, list[str]]]:
    """(run, sentences on its epsilon) of each run that claims one."""
    return [
        (arm.title(run), list(filter(None, [said, refutation(run.audit, run.facts)])))
        for arm in compared.arms
        for run in arm.runs
        if (said := claim(run.facts, run.settings, run.history))
    ]
