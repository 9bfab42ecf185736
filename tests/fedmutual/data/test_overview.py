"""What `fedmutual inspect` finds in a user's own data."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedmutual.config import RunConfig
from fedmutual.data.overview import FIRST, look, settings_for
from fedmutual.errors import UserError


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Three classes of 12, 6 and 4 images; one image twice in its class, one in another class, one in the test part."""
    images = np.random.default_rng(0).integers(0, 200, (22, 8, 8), dtype=np.uint8)
    images[5], images[13] = images[2], images[7]
    test = np.concatenate([images[20:21], np.random.default_rng(1).integers(0, 200, (5, 8, 8), dtype=np.uint8)])
    np.savez(
        tmp_path / "own.npz",
        train_images=images,
        train_labels=np.repeat([0, 1, 2], [12, 6, 4]),
        test_images=test,
        test_labels=np.arange(6) % 3,
    )
    return tmp_path / "own.npz"


def test_classes_values_and_copies_are_counted(archive: Path) -> None:
    overview = look(RunConfig.of(settings_for(archive)).data)
    assert overview.counts == {"train": [12, 6, 4], "test": [2, 2, 2]}
    assert overview.shape == (1, 8, 8)
    assert overview.ranges["bytes"][1] == 199
    assert overview.twice == {
        (("train", 0), ("train", 0)): 1,
        (("train", 0), ("train", 1)): 1,
        (("train", 2), ("test", 0)): 1,
    }
    assert {y: len(first) for y, first in overview.first.items()} == {0: FIRST, 1: 6, 2: 4}


def test_the_command_shows_them_draws_a_sheet_and_says_what_to_run_next(
    archive: Path, tmp_path: Path, command_line
) -> None:
    code, printed, error = command_line("inspect", archive, "--png", tmp_path / "sheet.png")
    assert code == 0, error
    assert "copies: 1 of train class 1 repeats another sample of train class 0" in printed
    assert "stored as: bytes from 0 to 199" in printed
    assert Image.open(tmp_path / "sheet.png").size[0] > 8 * 8
    assert printed.strip().splitlines()[-1] == f"next: fedmutual simulate {archive}"
    _, printed, _ = command_line("inspect", archive, "-s", "size=6")
    assert "samples: 1 x 6 x 6, channels first" in printed
    assert printed.strip().splitlines()[-1] == f"next: fedmutual simulate {archive} -s size=6"


def test_nothing_and_something_else_are_refused(tmp_path: Path, command_line) -> None:
    (tmp_path / "a.txt").write_text("no data", encoding="utf-8")
    for path, says in ((tmp_path / "none", "is missing"), (tmp_path / "a.txt", "neither a folder nor a .npz")):
        with pytest.raises(UserError, match=says):
            settings_for(path)
        code, printed, error = command_line("inspect", path)
        assert (code, printed, len(error.strip().splitlines())) == (2, "", 1)


def test_left_out_files_are_named(tmp_path: Path, command_line) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(3):
            pixels = np.random.default_rng(k).integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels + (name == "b")).save(tmp_path / "data" / name / f"{k}.png")
    (tmp_path / "data" / "a" / "notes.txt").write_text("left out", encoding="utf-8")
    code, printed, _ = command_line("inspect", tmp_path / "data")
    assert code == 0
    assert any(line.startswith("note: ") and ".txt" in line for line in printed.splitlines())


def test_images_of_several_shapes_are_read_as_one_and_the_next_command_says_so(tmp_path: Path, command_line) -> None:
    for name, sides in (("a", (20, 24)), ("b", (24, 20))):
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(3):
            pixels = np.random.default_rng(k).integers(0, 255, (*sides, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{k}.png")
    code, printed, error = command_line("inspect", tmp_path / "data")
    assert code == 0, error
    assert "images have several shapes: their middle squares are read at 20 x 20, in colour" in error
    assert "samples: 3 x 20 x 20, channels first" in printed
