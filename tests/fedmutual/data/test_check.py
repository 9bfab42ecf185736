"""Everything is read before a run starts, and a run knows its data again."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedmutual.config import RunConfig
from fedmutual.data import check, open_source
from fedmutual.data.fingerprint import FILE, fingerprint, refuse_changed, write_fingerprints
from fedmutual.errors import UserError

RNG = np.random.default_rng(0)


def folder(root: Path, **changes) -> RunConfig:
    for name in ("benign", "malignant"):
        (root / name).mkdir(parents=True, exist_ok=True)
        for row in range(10):
            Image.fromarray(RNG.integers(0, 256, (6, 6)).astype(np.uint8)).save(root / name / f"{row}.png")
    base = {"data": "folder", "data-path": str(root), "held-out": 2, "test": 3}
    return RunConfig.of(base, {key.replace("_", "-"): value for key, value in changes.items()})


@pytest.mark.parametrize("row", range(10))
def test_a_spoilt_file_is_named_with_its_class_wherever_the_split_puts_it(tmp_path, row):
    config = folder(tmp_path, imbalance="counts", counts="5,1")  # most of the second class is left over
    path = tmp_path / "malignant" / f"{row}.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match=rf"class malignant: .*malignant/{row}\.png is not a whole image"):
        check(config.data, config.seed)


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_values_that_are_none_are_found_in_every_part(tmp_path, part):
    arrays = {name: RNG.random((20, 4, 4)) for name in ("train", "val", "test")}
    arrays[part][15, 0, 0] = np.nan
    labels = {f"{name}_labels": np.repeat([3, 8], 10)[:, None] for name in arrays}
    np.savez(tmp_path / "a.npz", **{f"{name}_images": images for name, images in arrays.items()}, **labels)
    config = RunConfig.of({"data": "npz", "data-path": str(tmp_path / "a.npz"), "held-out": 1, "test": 1})
    with pytest.raises(UserError, match=r"class 8: images of .*a\.npz hold values that are not finite"):
        check(config.data, config.seed)


def test_too_few_samples_are_found(tmp_path):
    config = folder(tmp_path, test=8)
    with pytest.raises(UserError, match=r"class benign has 10 samples, too few for test = 8"):
        check(config.data, config.seed)


def test_a_test_part_that_is_too_small_is_found(tmp_path):
    images, labels = RNG.integers(0, 256, (20, 4, 4)).astype(np.uint8), np.repeat([3, 8], 10)
    few = {"test_images": images[:13], "test_labels": labels[:13]}
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=labels, **few)
    config = RunConfig.of({"data": "npz", "data-path": str(tmp_path / "a.npz"), "held-out": 1, "test": 5})
    with pytest.raises(UserError, match="class 8: the test part has 3 samples of class 1: lower test = 5"):
        check(config.data, config.seed)


def test_a_clients_own_class_is_checked_alone(tmp_path):
    np.savez(tmp_path / "own.npz", images=RNG.integers(0, 256, (12, 4, 4)).astype(np.uint8))
    config = RunConfig.of(
        {"data": "npz", "data-path": str(tmp_path / "own.npz"), "classes": 5, "held-out": 2, "test": 3}
    )
    assert check(config.data, config.seed).counts == [7]


@pytest.mark.parametrize(
    "settings", [{}, {"data": "gaussians", "head-count": 30}, {"imbalance": "counts", "counts": ",".join("5" * 10)}]
)
def test_fingerprints_are_those_of_what_is_trained_on(settings):
    config = RunConfig.of(settings)
    source, checked = open_source(config.data, config.seed), check(config.data, config.seed)
    assert checked.counts == source.counts
    for y, own in checked.fingerprints.items():
        assert own == fingerprint(source.train(y))


def test_a_fingerprint_knows_samples_and_no_order():
    samples = torch.rand(5, 1, 3, 3)
    own = fingerprint(samples)
    assert own == fingerprint(samples.flip(0)) == fingerprint(samples.double())
    assert own != fingerprint(samples[:4])
    assert own != fingerprint(torch.cat([samples[:4], samples[:1]]))
    assert own != fingerprint(samples + torch.finfo(torch.float32).eps * torch.tensor([1.0, 0, 0]) * 4)


@pytest.mark.parametrize("change", ["removed", "added", "renamed", "painted over"])
def test_changed_data_are_refused_in_one_line(tmp_path, change):
    config = folder(tmp_path / "data")
    before = check(config.data, config.seed)
    write_fingerprints(tmp_path, before.fingerprints)
    refuse_changed(tmp_path, check(config.data, config.seed).fingerprints, before.source.names)
    place = tmp_path / "data" / "malignant"
    if change == "removed":
        (place / "4.png").unlink()
    elif change == "added":
        Image.new("L", (6, 6)).save(place / "44.png")
    elif change == "renamed":
        (place / "0.png").rename(place / "z.png")
    else:
        for row in range(10):
            Image.new("L", (6, 6), row).save(place / f"{row}.png")
    with pytest.raises(
        UserError, match=r"changed since this run was trained: class malignant has .* restore"
    ) as caught:
        refuse_changed(tmp_path, check(config.data, config.seed).fingerprints, before.source.names)
    assert "\n" not in str(caught.value)


def test_a_run_without_fingerprints_is_taken_as_it_is_and_a_damaged_file_is_not(tmp_path):
    own = {0: fingerprint(torch.zeros(2, 3))}
    refuse_changed(tmp_path, own, ["a"])
    (tmp_path / FILE).write_text(json.dumps({"0": {"sizes": 2}}))
    with pytest.raises(UserError, match="is damaged"):
        refuse_changed(tmp_path, own, ["a"])
