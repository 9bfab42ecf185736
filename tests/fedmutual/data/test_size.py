"""The setting `size`: images are cut to the square in their middle and resized, whatever they are stored as."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedmutual.config import RunConfig
from fedmutual.data import check, open_source, sample_shape
from fedmutual.data.facts import facts_of
from fedmutual.errors import UserError


def settings(source: str, path: Path, **changes) -> RunConfig:
    base = {"data": source, "data-path": str(path), "held-out": 0, "test": 1}
    return RunConfig.of(base, {key.replace("_", "-"): value for key, value in changes.items()})


def striped(height: int, width: int, channels: int = 3) -> np.ndarray:
    """White in its middle square and black beside it, [height, width, channels] bytes."""
    side = min(height, width)
    image = np.zeros((height, width, channels), np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    image[top : top + side, left : left + side] = 255
    return image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of wide and tall images, in colour and in grey."""
    for name, sides in (("a", [(40, 90), (90, 40)]), ("b", [(64, 65), (50, 50)])):
        (tmp_path / "images" / name).mkdir(parents=True)
        for k, (height, width) in enumerate(sides):
            image = striped(height, width)
            Image.fromarray(image if name == "a" else image[..., 0]).save(tmp_path / "images" / name / f"{k}.png")
    return tmp_path / "images"


def test_the_middle_of_every_image_of_a_folder_is_read(folder: Path) -> None:
    config = settings("folder", folder, size=16)
    source = open_source(config.data, 0)
    assert source.shape == sample_shape(config.data) == (3, 16, 16)
    for y in (0, 1):
        for samples in (source.train(y), source.test(y)):
            torch.testing.assert_close(samples, torch.ones(1, 3, 16, 16), msg="what is beside the middle is not read")
    assert check(config.data, 0).counts == [1, 1]
    stretched = open_source(settings("folder", folder, shape="3,16,16").data, 0)
    assert min(stretched.train(0).min(), stretched.test(0).min()) == -1


@pytest.mark.parametrize("kind", ["bytes", "floats", "bits", "deep"])
@pytest.mark.parametrize(("height", "width"), [(20, 31), (31, 20), (16, 16)])
@pytest.mark.parametrize("keep", [False, True])
def test_the_middle_of_every_image_of_an_archive_is_read(tmp_path: Path, kind, height, width, keep) -> None:
    image = striped(height, width)
    stored = {
        "bytes": image,
        "floats": image / np.float32(127.5) - 1,
        "bits": image > 0,
        "deep": image.astype(np.uint16) * 257,
    }[kind]
    np.savez(tmp_path / "d.npz", images=np.stack([stored] * 6), labels=np.arange(6) % 2)
    config = settings("npz", tmp_path / "d.npz", size=12)
    source = open_source(config.data, 0, keep)
    assert source.shape == sample_shape(config.data) == (3, 12, 12)
    torch.testing.assert_close(source.train(1), torch.ones(2, 3, 12, 12))


def test_both_readers_resize_alike_and_stay_within_the_range(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", images=pixels, labels=np.arange(4) % 2)
    for k, image in enumerate(pixels):
        (tmp_path / "f" / str(k % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "f" / str(k % 2) / f"{k}.png")
    archive, folder = (
        open_source(settings(source, tmp_path / name, size=9, test=0).data, 0)
        for source, name in (("npz", "d.npz"), ("folder", "f"))
    )
    for y in (0, 1):
        assert (archive.train(y) - folder.train(y)).abs().max() < 0.02
        assert archive.train(y).abs().max() <= 1


def test_a_size_that_contradicts_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="shape = 3,32,32 is not of size = 16"):
        settings("folder", folder, size=16, shape="3,32,32")
    assert settings("folder", folder, size=16, shape="1,16,16").data.dims == (1, 16, 16)
    np.savez(tmp_path / "v.npz", images=np.zeros((4, 5), np.float32), labels=np.arange(4) % 2)
    with pytest.raises(UserError, match="size = 16 is for images"):
        open_source(settings("npz", tmp_path / "v.npz", size=16).data, 0)


def test_facts_are_read_off_names_labels_and_headers(tmp_path: Path, folder: Path) -> None:
    facts = facts_of(settings("folder", folder).data)
    assert (facts.names, facts.counts, facts.samples) == (["a", "b"], [2, 2], 4)
    assert (facts.channels, facts.side, facts.square, facts.images) == (3, 40, False, True)
    assert (facts.test, facts.held_out, facts.compressed) == (None, None, False)
    parts = {"train": 9, "val": 4, "test": 6}
    arrays = {f"{part}_images": np.zeros((count, 8, 8), np.uint8) for part, count in parts.items()}
    arrays |= {f"{part}_labels": np.arange(count)[:, None] % 2 for part, count in parts.items()}
    np.savez(tmp_path / "m.npz", **arrays)
    facts = facts_of(settings("npz", tmp_path / "m.npz").data)
    assert (facts.counts, facts.held_out, facts.test) == ([5, 4], [2, 2], [3, 3])
    assert (facts.shapes, facts.square, facts.compressed) == ([(1, 8, 8)], True, True)
