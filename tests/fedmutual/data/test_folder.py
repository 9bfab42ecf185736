"""Layouts of folders as people have them: classes, parts, and what is left out and said."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedmutual.config import RunConfig
from fedmutual.data import check, open_source
from fedmutual.errors import UserError


def tree(root: Path, *files: str) -> Path:
    """Images at the given places, the n-th of grey value n + 2, so that none looks like a mask.

    Other files are empty.
    """
    for value, file in enumerate(files):
        if file.lower().endswith((".png", ".tif", ".tiff", ".jfif", ".bmp")):
            place = root / file
            place.parent.mkdir(parents=True, exist_ok=True)
            kind = {".jfif": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP"}.get(place.suffix, "PNG")
            Image.new("L", (6, 5), value + 2).save(place, kind)
        else:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).touch()
    return root


def settings(path: Path, **changes) -> RunConfig:
    base = {"data": "folder", "data-path": str(path), "held-out": 0, "test": 0}
    return RunConfig.of(base, {key.replace("_", "-"): value for key, value in changes.items()})


def counts(path: Path) -> dict[str, int]:
    config = settings(path)
    source = open_source(config.data, config.seed)
    return dict(zip(source.names, source.counts, strict=True))


def notices(path: Path) -> list[str]:
    config = settings(path)
    return check(config.data, config.seed).notices


def values(samples) -> list[int]:
    return sorted(((samples[:, 0, 0, 0] + 1) * 127.5 - 2).round().int().tolist())


def test_tiff_jfif_and_nested_images_are_read(tmp_path):
    tree(tmp_path, "a/0.png", "a/1.tif", "a/2.TIFF", "b/p1/0.jfif", "b/p1/deep/1.png", "b/p2/0.png", "b/x.png")
    assert counts(tmp_path) == {"a": 3, "b": 4}
    assert not notices(tmp_path)


def test_what_is_left_out_is_counted(tmp_path):
    tree(tmp_path, "a/0.png", "a/1.gif", "a/2.gif", "a/x/3.GIF", "b/0.png", "b/scan.dcm", "labels.csv", "b/README")
    assert counts(tmp_path) == {"a": 1, "b": 1}
    (sentence,) = notices(tmp_path)
    for part in ("3 .gif files", "1 .dcm files", "1 .csv files", "1 unnamed files"):
        assert part in sentence


def test_masks_inside_a_class_are_left_out_and_counted(tmp_path):
    tree(tmp_path, "a/images/0.png", "a/masks/0.png", "a/masks/1.png", "b/images/0.png", "b/masks/0.png")
    assert counts(tmp_path) == {"a": 1, "b": 1}
    assert "3 images in folders named masks" in notices(tmp_path)[0]


def test_what_systems_leave_behind_is_ignored(tmp_path):
    tree(tmp_path, "a/0.png", "b/0.png", "a/Thumbs.db", "b/desktop.ini", ".DS_Store", "a/._0.png")
    tree(tmp_path, "__MACOSX/a/0.png", "@eaDir/0.png", "a/@eaDir/0.png", ".ipynb_checkpoints/0.png")
    assert counts(tmp_path) == {"a": 1, "b": 1}
    assert not notices(tmp_path)


@pytest.mark.parametrize("inner", ["masks/0.png", "healthy/p1/0.png"])
def test_images_beside_folders_of_images_are_refused(tmp_path, inner):
    tree(tmp_path, "0.png", "1.png", inner)
    with pytest.raises(UserError, match=rf"holds 2 images beside folders of images \({Path(inner).parts[0]}\)"):
        counts(tmp_path)


def test_images_beside_masks_folders_are_no_two_classes(tmp_path):
    tree(tmp_path, "images/0.png", "masks/0.png")
    with pytest.raises(UserError, match=r"set data-path to images"):
        counts(tmp_path)


def test_a_folder_around_the_classes_is_refused(tmp_path):
    tree(tmp_path, "archive/a/0.png", "archive/b/0.png")
    with pytest.raises(UserError, match=r"set data-path to .*archive"):
        counts(tmp_path)


def test_an_empty_class_is_refused_with_what_it_holds(tmp_path):
    tree(tmp_path, "a/0.png", "b/0.gif")
    with pytest.raises(UserError, match=r"b holds no PNG.*1 \.gif files left out"):
        counts(tmp_path)


@pytest.mark.parametrize("names", [("train", "test"), ("Training", "Testing")])
def test_train_and_test_are_parts(tmp_path, names):
    train, test = names
    tree(tmp_path, *(f"{train}/{y}/{i}.png" for y in "ab" for i in range(5)), *(f"{test}/{y}/0.png" for y in "ab"))
    assert counts(tmp_path) == {"a": 5, "b": 5}
    source = open_source(settings(tmp_path, held_out=2).data, 0)
    loaded = source.load(1)
    assert values(source.test(1)) == [11]
    assert sorted(values(loaded.train) + values(loaded.held_out)) == [5, 6, 7, 8, 9]
    assert values(source.unseen(1)) == sorted([*values(loaded.held_out), 11])


def test_a_val_part_is_held_out(tmp_path):
    tree(tmp_path, *(f"{part}/{y}/{i}.png" for part in ("train", "val", "test") for y in "ab" for i in range(3)))
    source = open_source(settings(tmp_path, held_out=2).data, 0)
    assert values(source.train(0)) == [0, 1, 2]
    assert len(source.held_out(0)) == 2
    assert set(values(source.held_out(0))) < {6, 7, 8}
    assert values(source.test(0)) == [12, 13, 14]
    assert values(source.unseen(0)) == [6, 7, 8, 12, 13, 14]


def test_parts_of_one_class_hold_images_themselves(tmp_path):
    tree(tmp_path / "cats", "train/0.png", "train/1.png", "test/0.png")
    assert counts(tmp_path / "cats") == {"cats": 2}
    assert values(open_source(settings(tmp_path / "cats").data, 0).test(0)) == [2]


def test_a_class_may_be_called_train(tmp_path):
    tree(tmp_path, "bus/0.png", "plane/0.png", "train/0.png")
    assert counts(tmp_path) == {"bus": 1, "plane": 1, "train": 1}


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (("train/a/0.png", "test/a/0.png", "extra/0.png"), "beside extra"),
        (("train/a/0.png", "val/a/0.png", "valid/a/0.png"), "several folders for one part"),
        (("train/a/0.png", "test/0.png"), "give every part the same folders"),
        (("a/train/0.png", "a/test/0.png", "b/train/0.png"), "put them outermost"),
    ],
)
def test_layouts_that_are_not_understood_are_refused(tmp_path, files, says):
    tree(tmp_path, *files)
    with pytest.raises(UserError, match=says):
        counts(tmp_path)


def test_a_test_class_that_is_not_trained_on_is_counted(tmp_path):
    tree(tmp_path, "train/a/0.png", "train/b/0.png", "test/a/0.png", "test/b/0.png", "test/c/0.png")
    assert counts(tmp_path) == {"a": 1, "b": 1}
    assert "1 images of test class c" in notices(tmp_path)[0]


def test_a_broken_link_is_named_and_a_folder_like_an_image_is_none(tmp_path):
    tree(tmp_path, "a/0.png", "a/dir.png/1.png", "b/0.png")
    assert counts(tmp_path) == {"a": 2, "b": 1}
    (tmp_path / "a" / "z.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"class a: .*z\.png is not a whole image"):
        notices(tmp_path)


@pytest.mark.parametrize("target", ["a", ".", "..", "a/p1"])
def test_a_link_that_leads_back_brings_no_image_again_and_none_of_another_class(tmp_path, target):
    tree(tmp_path / "data", "a/0.png", "a/p1/deep/1.png", "b/0.png")
    (tmp_path / "data/a/p1/deep/again").symlink_to(tmp_path / "data" / target)
    assert counts(tmp_path / "data") == {"a": 2, "b": 1}


def test_links_to_images_and_to_folders_of_images_elsewhere_are_followed(tmp_path):
    tree(tmp_path, "data/a/0.png", "store/x/1.png", "store/y.png")
    (tmp_path / "data/b").symlink_to(tmp_path / "store/x")
    (tmp_path / "data/a/1.png").symlink_to(tmp_path / "store/y.png")
    (tmp_path / "data/a/more").symlink_to(tmp_path / "store/x")
    assert counts(tmp_path / "data") == {"a": 3, "b": 1}


def test_names_that_are_not_utf8_are_text(tmp_path):
    tree(tmp_path, "a/0.png")
    place = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(place)
    Image.new("L", (6, 5)).save(os.fsdecode(place) + "/0.png")
    assert counts(tmp_path) == {"a": 1, "café": 1}


def test_a_users_own_tail_is_kept_by_default(tmp_path):
    tree(tmp_path / "f", *(f"{y}/{i}.png" for y, n in (("a", 2), ("b", 6), ("c", 11)) for i in range(n)))
    assert counts(tmp_path / "f") == {"a": 2, "b": 6, "c": 11}
    np.savez(tmp_path / "d.npz", images=np.zeros((19, 4, 4), np.uint8), labels=np.repeat([0, 1, 2], [2, 6, 11]))
    archive = settings(tmp_path / "d.npz", data="npz")
    assert open_source(archive.data, 0).counts == [2, 6, 11]
    assert open_source(archive.but(imbalance="exponential").data, 0).counts == [2, 1, 1]  # 2, 0.4, 0.1 at least 1
