"""The report: one self-contained page, made from run folders and from nothing else."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from fedmutual.checkpoint import Unwritable, write_atomic
from fedmutual.errors import UserError
from fedmutual.evaluation import METRICS
from simulations.report import costs, pictures, provenance, sections
from simulations.report.answer import answer
from simulations.report.class_table import class_table
from simulations.report.comparison import Comparison
from simulations.report.leakage import leakage
from simulations.report.line_charts import DASHES
from simulations.report.missing import missing_classes
from simulations.report.proved import proved
from simulations.report.samples import samples
from simulations.report.tables import FEW, head_of
from simulations.report.training import curves, quantile_curves
from simulations.report.words import duration
from simulations.runs.arms import Arm, arms_of
from simulations.runs.folder import read_runs

SHOWN = 50
"""Lines of a list that may hold one for each class and round; the run folders hold all."""


@dataclass(frozen=True)
class Shortage:
    """Real samples that are too few to fix a covariance matrix: the fewest of a class, in so many dimensions."""

    dimension: int
    fewest: int


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write the page for `runs` to `out` and return it.

    Raises:
        UserError: as `read_runs`, samples that cannot be read, or a page that cannot be written.
    """
    return save(render(arms_of(read_runs(runs))), Path(out))


def save(page: str, out: Path) -> Path:
    """Put the page at `out`, where a reader never finds a part of it.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_atomic(out, page.encode("utf-8"))
    except Unwritable as error:
        raise UserError(f"{out} cannot be written: {error.reason}") from None
    return out


def render(arms: Sequence[Arm], reload: int = 0) -> str:
    """The page about `arms`; a browser that shows it loads it again every `reload` seconds, unless that is 0."""
    compared = Comparison(arms)
    about = _about(compared) | _measures(compared) | _training(compared)
    return _template().render(about, many=len(arms) > FEW, many_classes=compared.many, dashes=DASHES, reload=reload)


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "duration": duration,
        "commands": _commands,
        "known_metric": METRICS.__getitem__,
    }
    return environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))


def _commands(sentence: str) -> Markup:
    """What stands between ` ` set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(sentence)))


def _about(compared: Comparison) -> dict[str, Any]:
    """What was run, and the answer."""
    arms, first = compared.arms, compared.runs[0]
    runs = provenance.titled_runs(arms)
    return {
        "title": provenance.title(compared.runs),
        "arms": [(head_of(arm), arm) for arm in arms],
        "seeds": max(len(arm.runs) for arm in arms),
        "images": len(first.facts.get("shape") or ()) == 3,
        "answer": answer(compared),
        "missing": missing_classes(arms),
        "shown": SHOWN,
        "under_way": _under_way(compared),
        "unfinished": [(name, run) for name, run in runs if run.facts.get("status") != "done"],
        "faults": provenance.faults(arms),
        "runs": provenance.runs_table(arms),
        "settings": provenance.settings(arms),
        "environments": provenance.environments(arms),
        "extractors": provenance.extractors(compared.runs),
    }


def _under_way(compared: Comparison) -> str:
    """Of one run that goes on: the time left and the worst held-out loss, as far as they are known."""
    run = compared.runs[0]
    if len(compared.runs) > 1 or run.facts.status != "running":
        return ""
    return run.course.in_words(run.classes)


def _measures(compared: Comparison) -> dict[str, Any]:
    """What the samples are worth, and what they give away."""
    several = len(compared.arms) > 1
    return {
        "overview": sections.overview(compared) if several else None,
        "tradeoff": pictures.tradeoff(compared) if several else None,
        "dots": pictures.dots(compared) if several else None,
        "metrics": sections.metric_tables(compared),
        "together": sections.together(compared),
        "differences": sections.differences(compared) if len(compared.arms) > FEW else [],
        "samples": samples(compared.arms, compared.many or len(compared.arms) > FEW, _worst(compared)),
        "class_table": class_table(compared),
        "proved": proved(compared),
        "leakage": leakage(compared),
        "shortage": _shortage(compared),
    }


def _worst(compared: Comparison) -> list[int]:
    """The three worst classes of the first arm, where classes are many."""
    if not compared.many or compared.headline is None:
        return []
    scores = {y: -value for y, value in compared.arms[0].runs[0].scores(compared.headline).items()}
    return sorted((y for y, value in scores.items() if not math.isnan(value)), key=lambda y: scores[y])[:3]


def _training(compared: Comparison) -> dict[str, Any]:
    """The course of the training, and what it cost."""
    return {
        "curves": quantile_curves(compared.arms) if compared.many else curves(compared.arms),
        "budgets": costs.budgets(compared) if len(compared.arms) > 1 else None,
        "unequal": costs.unequal(compared.arms),
        "costs": costs.costs(compared.arms, compared.many),
        "times": costs.times(compared.arms),
    }


def _shortage(compared: Comparison) -> Shortage | None:
    dimension = math.prod(compared.runs[0].facts.get("shape") or [0])
    counts = [int(value) for run in compared.runs for value in run.scores("n_reference").values()]
    fewest = min(counts, default=dimension)
    return Shortage(dimension, fewest) if fewest <= dimension and fewest else None
