"""What a run of the game leaves behind: rows.json, and a page with claims, figures and tables."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from simulations.game.cases import Settings
from simulations.game.claims import Claim
from simulations.game.pictures import Picture

Row = dict[str, Any]


@dataclass(frozen=True)
class Report:
    """What a run measured. `about` says what was played; `health`: (what, its worst value over all networks)."""

    about: str
    rows: list[Row]
    claims: list[Claim]
    pictures: list[Picture]
    health: list[tuple[str, float]]


def write(report: Report, name: str, seeds: int, settings: Settings, out: Path) -> Path:
    """rows.json and the self-contained report.html under `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "rows.json").write_text(json.dumps({"rows": finite(report.rows)}, indent=1), encoding="utf-8")
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    environment.filters["number"] = shown_number
    page = environment.get_template("report.html").render(
        name=name,
        seeds=seeds,
        report=report,
        settings=asdict(settings),
        tables=tables_of(report.rows),
        flaws=report.health,
    )
    path = out / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def shown_number(value: float | None) -> str:
    """Three decimals, three digits for what has diverged, nothing for what there is not."""
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.2e}"


def tables_of(rows: list[Row]) -> list[dict[str, Any]]:
    """One table for each case and way of learning: a line an arm, a column a class."""
    tables: dict[tuple[str, str, str], dict[str, dict[str, Row]]] = {}
    for row in rows:
        tables.setdefault((row["case"], row["learning"], row["metric"]), {}).setdefault(row["method"], {})[
            row["class"]
        ] = row
    shown = []
    for (case, learning, metric), lines in tables.items():
        classes = list(dict.fromkeys(label for line in lines.values() for label in line))
        paper = any(row["paper"] is not None for line in lines.values() for row in line.values())
        shown.append(
            {"case": case, "learning": learning, "metric": metric, "classes": classes, "lines": lines, "paper": paper}
        )
    return shown


def finite(rows: list[Row]) -> list[Row]:
    """JSON has no nan: null stands for a number that diverged, as for an interval that one seed cannot give."""
    return [
        {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        for row in rows
    ]
