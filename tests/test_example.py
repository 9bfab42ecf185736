"""The worked example of the docs: its pictures are as the page says, and the command reads them."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLE = Path(__file__).parent.parent / "docs/examples/blood_cells.py"
COUNTS = {"neutrophil": 6, "basophil": 3}


@pytest.fixture
def draw(tmp_path):
    """Draw few of the pictures into a new folder of this name."""
    example = runpy.run_path(str(EXAMPLE))
    shrunk = example["main"].__globals__
    shrunk["COUNTS"], shrunk["TEST"] = COUNTS, 2

    def into(name: str, seed: int = 0) -> dict[str, np.ndarray]:
        example["main"](tmp_path / name, seed)
        files = sorted((tmp_path / name).rglob("*.png"))
        return {str(file.relative_to(tmp_path / name)): np.asarray(Image.open(file)) for file in files}

    return into


def test_the_pictures_follow_the_seed_and_no_two_are_the_same(draw):
    first, again, other = draw("a"), draw("b"), draw("c", seed=1)
    assert len({image.tobytes() for image in (*first.values(), *other.values())}) == 2 * len(first) == 2 * 13
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert {image.shape for image in first.values()} == {(28, 28, 3)}


def test_inspect_reads_both_parts(draw, tmp_path, command_line, capsys):
    draw("cells")
    capsys.readouterr()
    code, said, complained = command_line("inspect", tmp_path / "cells")
    assert code == 0, complained
    lines = [line.split() for line in said.splitlines()]
    assert lines[0] == ["class", "train", "test"]
    assert {line[0]: line[1:3] for line in lines[1:3]} == {"basophil": ["3", "2"], "neutrophil": ["6", "2"]}
    assert "note: " not in said


def test_the_tail_is_the_one_that_the_page_names():
    counts = runpy.run_path(str(EXAMPLE))["COUNTS"]
    assert (max(counts.values()), min(counts.values()), len(counts)) == (900, 25, 7)
