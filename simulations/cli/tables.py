"""Tables and JSON rows, as commands print them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from fedmutual.methods import DATA
from simulations.report.comparison import SUMMARIES, headline, signed
from simulations.report.words import NOTHING, interval_parts, size
from simulations.terminal import console

WIDE = 132
"""Characters that the widest table needs."""


def _print_bench(rows: list[dict[str, Any]]) -> None:
    """The rows of one part; a column for each number they have."""
    shown = {
        "classes": ("classes", "{:d}"),
        "seconds": ("seconds", "{:.4g}"),
        "bare_seconds": ("bare", "{:.4g}"),
        "ratio": ("ratio", "{:.2f}"),
        "images_per_second": ("images/s", "{:.4g}"),
        "share_of_peak": ("of peak", "{:.0%}"),
        "memory": ("GPU bytes", "{:,d}"),
        "client_seconds": ("a client", "{:.3g}"),
        "bytes_down": ("bytes down", "{:,.0f}"),
        "bytes_up": ("bytes up", "{:,.0f}"),
        "run_gigabytes": ("GB a run", "{:,.2f}"),
    }
    columns = {key: style for key, style in shown.items() if rows[0].get(key) is not None}
    titles = [title for title, _ in columns.values()]
    table = Table(rows[0]["name"], "batch", "peers", *titles, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        cells = [style.format(row[key]) for key, (_, style) in columns.items()]
        table.add_row(row["network"], str(row["batch"]), str(row["peers"]), *cells)
    _print_wide(table)


def print_metrics(rows: list[dict[str, Any]]) -> None:
    """A line a class, the worst class first; the metrics of several arms stand side by side."""
    rows = [row for row in rows if row["class"] in ("worst", "mean") or isinstance(row["class"], int)]
    shown = {row["class"]: row["name"] if isinstance(row["class"], int) else row["class"] for row in rows}
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    if not rows:
        print("No class has a measure: no samples have been measured.")
        return
    measured = {row["metric"] for row in rows}
    metrics = [name for name in ("fd-features", "fd", "fid") if name == "fd" or name in measured]
    metrics += ["precision", "recall", "memorisation"] if len(arms) == 1 else ["memorisation"]
    values = {(row["arm"], row["metric"], row["class"]): row["mean"] for row in rows}
    counts = {row["class"]: row["n_train"] for row in rows if row["n_train"]}
    table = Table("class", "training images", box=None, padding=(0, 2, 0, 0))
    for metric in metrics:
        for arm in arms:
            table.add_column(metric if len(arms) == 1 else f"{metric} {arm}", justify="right")
    for y, name in shown.items():
        cells = [values.get((arm, metric, y)) for metric in metrics for arm in arms]
        table.add_row(name, str(counts.get(y, "")), *("" if value is None else f"{value:.3g}" for value in cells))
    _print_wide(table)


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows that share their fields, as a table."""
    table = Table(*(key.replace("_", " ") for key in next(iter(rows), {})), box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    console().print(table)


def _print_wide(table: Table) -> None:
    """Its columns are numbers, which a narrow terminal may fold and a table may not."""
    console(WIDE).print(table)


def _print_json(rows: Sequence[Mapping[str, Any]]) -> None:
    print(json.dumps({"rows": rows}))


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
        table.add_row(label, *cells, size(row["bytes"]))
    return table


def _narrow(value: float, half: float | None) -> str:
    """8.75 ±0.36: a narrow column breaks before the ±, and not after it."""
    middle, width = interval_parts(value, half)
    return f"{middle} ±{width}" if width else middle
