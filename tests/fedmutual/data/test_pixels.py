"""What a person sees is what is trained on: ranges by type, orientation, transparency, depth."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fedmutual.config import RunConfig
from fedmutual.data import check
from fedmutual.data.images import GROUND
from fedmutual.errors import UserError
from tests.support.data import load_class, opened

ALL = {"held-out": 0, "test": 0}
STAIRS = np.arange(24).reshape(4, 6) / 23


def archive(path: Path, images: np.ndarray, **more: np.ndarray) -> RunConfig:
    np.savez(path / "a.npz", images=images, **more)
    return RunConfig.of({"data": "npz", "data-path": str(path / "a.npz"), **ALL})


def notices(config: RunConfig) -> list[str]:
    return check(config.data, config.seed).notices


def sample(path: Path, image: Image.Image, name: str = "a.png", shape: str = "", **how) -> Tensor:
    image.save(path / name, **how)
    return load_class(RunConfig.of({"data": "folder", "data-path": str(path), "shape": shape, **ALL}), 0).train[0]


# Ranges of arrays


@pytest.mark.parametrize(
    ("stored", "scale"),
    [
        ((STAIRS * 255).round().astype(np.uint8), 255),
        ((STAIRS * 255).round().astype(np.int64), 255),
        ((STAIRS * 255).round().astype(np.int16), 255),
        ((STAIRS * 65535).round().astype(np.uint16), 65535),
        ((STAIRS * 65535).round().astype(">u2"), 65535),
        (STAIRS > 0.5, 1),
        (STAIRS * 2 - 1, None),
        ((STAIRS * 2 - 1).astype(np.float16), None),
    ],
)
def test_arrays_are_scaled_by_their_type(tmp_path, stored, scale):
    config = archive(tmp_path, np.stack([stored, stored]))
    train = load_class(config, 0).train
    expected = stored.astype(float) if scale is None else stored.astype(float) / scale * 2 - 1
    assert train.dtype == torch.float32
    np.testing.assert_allclose(train[0, 0], expected, atol=1e-6)
    assert not notices(config)


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        (STAIRS * 255, "floats from 0 to 255"),
        (STAIRS * 4 - 2, "floats from -2 to 2"),
        ((STAIRS * 1000).astype(np.int32), "int32 from 0 to 1000"),
        ((STAIRS * 20 - 10).astype(np.int8), "int8 from -10 to 10"),
    ],
)
def test_a_range_that_no_image_has_is_refused_and_named(tmp_path, stored, says):
    with pytest.raises(UserError, match=rf"{says}: store bytes from 0 to 255, 16-bit .* or floats from -1 to 1"):
        load_class(archive(tmp_path, np.stack([stored, stored])), 0)


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        (STAIRS, "between 0 and 1, and floats are taken as they are"),
        ((STAIRS > 0.5).astype(np.uint8), "between 0 and 1, and bytes reach 255"),
        ((STAIRS > 0.5).astype(np.int64), "between 0 and 1, and bytes reach 255"),
        ((STAIRS * 255).astype(np.uint16), "between 0 and 255, and 16-bit numbers reach 65535"),
    ],
)
def test_a_range_that_looks_like_a_mistake_is_a_notice(tmp_path, stored, says):
    (sentence,) = notices(archive(tmp_path, np.stack([stored, stored])))
    assert says in sentence


def test_a_class_of_one_range_among_others_is_no_mistake(tmp_path):
    """Only the lowest and the highest value of all classes tell."""
    images = np.stack([STAIRS, STAIRS * 2 - 1])
    assert not notices(archive(tmp_path, images, labels=np.array([0, 1])))


def test_clients_scale_alike_whatever_their_own_values(tmp_path):
    dark, bright = np.zeros((2, 4, 4), np.uint8), np.full((2, 4, 4), 255, np.uint8)
    config = archive(tmp_path, np.concatenate([dark, bright]), labels=np.repeat([0, 1], 2))
    assert load_class(config, 0).train.unique().tolist() == [-1]
    assert load_class(config, 1).train.unique().tolist() == [1]


# Image files


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(tmp_path, suffix, orientation):
    """The picture is dark on the left and bright on the right, however the camera was held."""
    upright = np.repeat((np.linspace(0, 255, 24)[None, :, None]), 16, 0).repeat(3, 2).astype(np.uint8)
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    image = Image.fromarray(upright)
    stored = image if undo is None else image.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    seen = sample(tmp_path, stored, f"a.{suffix}", exif=exif)
    assert seen.shape == (3, 16, 24)
    assert (seen[0].mean(0).diff() > 0).float().mean() > 0.9


@pytest.mark.parametrize("hidden", [0, 90, 255])
def test_what_lies_under_transparency_is_never_seen(tmp_path, hidden):
    pixels = np.full((8, 8, 4), hidden, np.uint8)
    pixels[..., 3] = 0
    pixels[2:6, 2:6] = (200, 30, 60, 255)
    pixels[0, 0] = (0, 0, 0, 128)
    seen = (sample(tmp_path, Image.fromarray(pixels)) + 1) * 127.5
    assert seen.shape == (3, 8, 8)
    assert seen[:, 3, 3].round().tolist() == [200, 30, 60]
    assert seen[:, 7, 7].tolist() == [GROUND] * 3
    assert seen[0, 0, 0].item() == pytest.approx(GROUND * 127 / 255, abs=1)


def test_grey_with_transparency_stays_grey(tmp_path):
    pixels = np.zeros((4, 4, 2), np.uint8)
    pixels[1, 1] = (90, 255)
    seen = (sample(tmp_path, Image.fromarray(pixels, "LA")) + 1) * 127.5
    assert seen.shape == (1, 4, 4)
    assert (seen[0, 1, 1].round().item(), seen[0, 0, 0].item()) == (90, GROUND)


def test_a_colour_that_stands_for_transparency_is_transparent(tmp_path):
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((0, 0), 0)
    opaque = (sample(tmp_path, palette) + 1) * 127.5
    assert opaque[:, 0, 0].round().tolist() == [10, 20, 30]
    seen = (sample(tmp_path, palette, transparency=0) + 1) * 127.5
    assert seen[:, 0, 0].tolist() == [GROUND] * 3
    assert seen[:, 1, 1].round().tolist() == [200, 100, 50]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("shape", ["", "1,4,6", "3,4,6"])
def test_sixteen_bits_are_all_counted(tmp_path, name, shape):
    seen = sample(tmp_path, Image.fromarray((STAIRS * 65535).round().astype(np.uint16)), name, shape)
    for channel in seen:
        np.testing.assert_allclose(channel, STAIRS * 2 - 1, atol=1e-4)


@pytest.mark.parametrize("largest", [65535, 4095])
def test_sixteen_bits_of_a_pgm_reach_as_far_as_its_header_says(tmp_path, largest):
    stored = (STAIRS * largest).round().astype(">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 6 4 %d\n" % largest + stored.tobytes())
    read = load_class(RunConfig.of({"data": "folder", "data-path": str(tmp_path), **ALL}), 0).train[0, 0]
    np.testing.assert_allclose(read, STAIRS * 2 - 1, atol=2 / largest)


def test_a_grey_of_sixteen_bits_that_stands_for_transparency_is_white(tmp_path):
    stored = (STAIRS * 65535).round().astype(np.uint16)
    read = sample(tmp_path, Image.fromarray(stored), transparency=0)[0]
    assert read[0, 0] == 1.0
    np.testing.assert_allclose(read.flatten()[1:], (STAIRS * 2 - 1).flatten()[1:], atol=1e-4)


def test_sixteen_bits_are_resized_within_their_range(tmp_path):
    deep = np.where(np.arange(64).reshape(8, 8) % 8 < 4, 0, 65535).astype(np.uint16)
    seen = sample(tmp_path, Image.fromarray(deep), shape="1,4,4")
    assert seen.shape == (1, 4, 4)
    assert (seen.min().item(), seen.max().item()) == (-1, 1)


def test_float_images_are_held_to_their_range(tmp_path):
    seen = sample(tmp_path, Image.fromarray((STAIRS * 2 - 1).astype(np.float32)), "a.tif")
    np.testing.assert_allclose(seen[0], STAIRS * 2 - 1, atol=1e-6)
    with pytest.raises(UserError, match=r"a\.tif are floats from 0 to 255"):
        sample(tmp_path, Image.fromarray((STAIRS * 255).astype(np.float32)), "a.tif")


@pytest.mark.parametrize(("mode", "name", "channels"), [("1", "a.png", 1), ("CMYK", "a.jpg", 3), ("P", "a.bmp", 3)])
def test_other_modes_are_read_as_they_look(tmp_path, mode, name, channels):
    image = Image.fromarray(np.repeat(STAIRS[..., None] * 255, 3, 2).astype(np.uint8)).convert(mode)
    seen = sample(tmp_path, image, name)
    assert seen.shape == (channels, 4, 6)
    assert seen[:, 0, 0].mean() < -0.9
    assert seen[:, -1, -1].mean() > 0.9


def test_pages_beyond_the_first_are_noticed(tmp_path):
    first, second = (Image.new("L", (4, 4), value) for value in (10, 200))
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    config = RunConfig.of({"data": "folder", "data-path": str(tmp_path), **ALL})
    assert ((opened(config).train(0) + 1) * 127.5).round().unique().tolist() == [10]
    (sentence,) = notices(config)
    assert "1 images have several pages" in sentence
