"""The folder of the proof: a line for each finished piece, so that a proof that was cut short goes on, and tables."""

import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedmutual.checkpoint import write_atomic
from fedmutual.errors import UserError

MACHINE, RESULTS, TABLES = "machine.json", "results.jsonl", "tables.md"

Row = dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """One thing that is measured by itself: its part of the proof, its name, and what measures it."""

    part: str
    name: str
    measure: Callable[[], list[Row]]


def machine() -> Row:
    """The card and what else the numbers depend on."""
    cuda = torch.cuda.is_available()
    properties = torch.cuda.get_device_properties(0) if cuda else None
    return {
        "card": properties.name if properties else "none: toy sizes on the CPU",
        "memory_gb": round(properties.total_memory / 1e9, 1) if properties else None,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda if cuda else None,
    }


class Findings:
    """What has been found, in `folder`.

    Raises:
        UserError: the folder holds what was found on another machine.
    """

    def __init__(self, folder: Path, here: Mapping[str, Any]):
        self.folder, self.here = folder, here
        path = folder / MACHINE
        if path.exists():
            before = json.loads(path.read_bytes())
            if before != here:
                raise UserError(f"{folder} holds what was found on {before['card']} with torch {before['torch']}: "
                                "choose another folder")  # fmt: skip
        write_atomic(path, json.dumps(here, indent=1).encode())
        results = folder / RESULTS
        whole = results.read_text().splitlines(keepends=True) if results.exists() else []
        self.lines: list[Row] = [json.loads(line) for line in whole if line.endswith("\n")]

    def has(self, piece: Piece) -> bool:
        """Whether the piece is done, and did not fail."""
        return any(self._is(line, piece) and "failed" not in line for line in self.lines)

    @property
    def failed(self) -> list[str]:
        """The pieces that failed at their last try."""
        return [f"{line['part']}, {line['name']}: {line['failed']}" for line in self.lines if "failed" in line]

    def add(self, piece: Piece, seconds: float, **outcome: Any) -> None:
        """Keep a piece's rows, or why it failed, in place of what an earlier try brought."""
        self.lines = [line for line in self.lines if not self._is(line, piece)]
        self.lines.append({"part": piece.part, "name": piece.name, "seconds": round(seconds, 2), **outcome})
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        write_atomic(self.folder / RESULTS, text.encode())
        write_atomic(self.folder / TABLES, self._tables().encode())

    @staticmethod
    def _is(line: Row, piece: Piece) -> bool:
        return bool((line["part"], line["name"]) == (piece.part, piece.name))

    def _tables(self) -> str:
        """All rows as Markdown, a table for each set of columns of a part."""
        text = [f"# {self.here['card']}", "", ", ".join(f"{key} {value}" for key, value in self.here.items()), ""]
        for part in dict.fromkeys(line["part"] for line in self.lines):
            text += [f"## {part}", ""]
            rows = [row for line in self.lines if line["part"] == part for row in line.get("rows", [])]
            for columns in dict.fromkeys(tuple(row) for row in rows):
                text += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
                text += [
                    "| " + " | ".join(_cell(value) for value in row.values()) + " |"
                    for row in rows
                    if tuple(row) == columns
                ]
                text.append("")
            text += [f"- failed: {failed}" for failed in self.failed if failed.startswith(f"{part}, ")]
        return "\n".join(text) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value).replace("|", "\\|")
