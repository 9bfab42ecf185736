"""The table of a comparison for a terminal. It needs the report, and so NumPy and SciPy: commands import it late."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from fedmutual.methods import DATA
from simulations.report.comparison import SUMMARIES, headline, signed
from simulations.report.words import NOTHING, interval_parts, size


def comparison_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows of `comparison` for a terminal: an arm a line, the headline metric, differences for the worst class."""
    metric = headline({row["arm"]: {other["metric"] for other in rows if other["arm"] == row["arm"]} for row in rows})
    of_metric = {(row["arm"], row["class"]): row for row in rows if row["metric"] == metric}
    arms = {row["arm"]: row for row in rows}
    names = {row["class"]: row["name"] for row in rows if row["class"] in SUMMARIES}
    shown = [of for of in SUMMARIES if of in names]
    versus = [name for name in ("isolated", "pooled") if any(row[f"versus_{name}"] is not None for row in rows)]
    tail = "rarest" if "rarest" in names else "worst"
    leaks = any(row["leakage"] is not None for row in rows)
    title = metric and f"{metric}, ± half the 95 % interval" + (
        ", vs for the worst class, paired by seed" if versus else ""
    )
    table = Table(box=None, padding=(0, 2, 0, 0), title=title)
    table.add_column("arm", no_wrap=True, min_width=max(map(len, [*arms, *DATA.values()])))
    for head in [*(names[of] for of in shown), *(f"vs {name}" for name in versus)]:
        table.add_column(head, justify="right")
    if leaks:
        table.add_column(f"AUC {names[tail]}", justify="right")
    table.add_column("bytes", justify="right")
    tuned = any(row["tuned"] != "no" for row in rows)
    if tuned:
        table.add_column("tuned")
    group = None
    for label, row in arms.items():
        if row["data"] != group and len({arm["data"] for arm in arms.values()}) > 1:
            table.add_row(Text(DATA[row["data"]], style="bold"))
        group = row["data"]
        values = [of_metric.get((label, of)) for of in shown]
        cells = [_narrow(value["mean"], value["ci95"]) if value else NOTHING for value in values]
        worst, leaking = of_metric.get((label, "worst"), {}), of_metric.get((label, tail), {})
        cells += [signed(worst.get(f"versus_{name}"), worst.get(f"versus_{name}_ci95"), _narrow) for name in versus]
        if leaks:
            leakage = leaking.get("leakage")
            cells.append(NOTHING if leakage is None else _narrow(leakage, leaking["leakage_ci95"]))
        table.add_row(label, *cells, size(row["bytes"]), *([row["tuned"]] if tuned else []))
    return table


def _narrow(value: float, half: float | None) -> str:
    """8.75 ±0.36: a narrow column breaks before the ±, and not after it."""
    middle, width = interval_parts(value, half)
    return f"{middle} ±{width}" if width else middle
