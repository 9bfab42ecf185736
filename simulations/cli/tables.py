"""Tables and JSON rows, as commands print them. Every command imports this, so that it imports nothing heavy."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from simulations.terminal import console

WIDE = 132
"""Characters that the widest table needs."""

SHOWN = 5
"""Worst and rarest classes that stand for many."""


def print_bench(rows: list[dict[str, Any]]) -> None:
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
        "client_core": ("its cores", "{:.3g}"),
        "server_mb": ("server MB", "{:,.0f}"),
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
    print_wide(table)


def print_metrics(rows: list[dict[str, Any]]) -> None:
    """A line a class, the worst class first; the metrics of several arms stand side by side.

    Where rows tell quantiles, classes are many: then these, the worst and the rarest classes stand for all.
    """
    rows = [row for row in rows if row["class"] not in ("rarest", "largest", "all")]
    shown = {row["class"]: row["name"] if isinstance(row["class"], int) else row["class"] for row in rows}
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    if not rows:
        print("No class has a measure: no samples have been measured.")
        return
    left_out, measured = 0, {row["metric"] for row in rows}
    metrics = [name for name in ("fd-features", "fd", "fid") if name == "fd" or name in measured]
    metrics += ["precision", "recall", "memorisation"] if len(arms) == 1 else ["memorisation"]
    values = {(row["arm"], row["metric"], row["class"]): row["mean"] for row in rows}
    counts = {row["class"]: row["n_train"] for row in rows if row["n_train"]}
    if len(summaries := [of for of in shown if isinstance(of, str)]) > 2:
        leading = {y: values.get((arms[0], metrics[0], y)) for y in shown if isinstance(y, int)}
        some = _worst_and_rarest(leading, counts)
        left_out = len(leading) - len(some)
        shown = {of: of for of in summaries} | {y: f"{shown[y]} ({why})" for y, why in some.items()}
    table = Table("class", "training images", box=None, padding=(0, 2, 0, 0))
    for metric in metrics:
        for arm in arms:
            table.add_column(metric if len(arms) == 1 else f"{metric} {arm}", justify="right")
    for y, name in shown.items():
        cells = [values.get((arm, metric, y)) for metric in metrics for arm in arms]
        table.add_row(name, str(counts.get(y, "")), *("" if value is None else f"{value:.3g}" for value in cells))
    print_wide(table)
    if left_out:
        print(f"and {left_out} more classes: the report, metrics.csv and --json have all")


def _worst_and_rarest(leading: Mapping[int, float | None], counts: Mapping[Any, int]) -> dict[int, str]:
    """{class: why it is shown}: the `SHOWN` worst by a distance, and as many with the fewest training samples."""
    known = {y: value for y, value in leading.items() if value is not None}
    worst = sorted(known, key=lambda y: -known[y])[:SHOWN]
    rarest = sorted(leading, key=lambda y: (counts.get(y, 0), y))[:SHOWN]
    return dict.fromkeys(rarest, "rare") | dict.fromkeys(worst, "worst")


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows that share their fields, as a table."""
    table = Table(*(key.replace("_", " ") for key in next(iter(rows), {})), box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    console().print(table)


def print_wide(table: Table) -> None:
    """A table of numbers, never narrower than `WIDE`: a narrow terminal may fold its lines, but not its columns."""
    console(WIDE).print(table)


def print_json(rows: Sequence[Mapping[str, Any]]) -> None:
    """What a command prints with --json: one object, {"rows": [...]}."""
    print(json.dumps({"rows": rows}))
