"""Archives as MedMNIST and people write them: parts, labels, arrays left out, and how often they are opened."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from fedmutual.config import RunConfig
from fedmutual.data import check, open_source
from fedmutual.errors import UserError

RNG = np.random.default_rng(0)


def settings(path: Path, **changes) -> RunConfig:
    base = {"data": "npz", "data-path": str(path), "held-out": 0, "test": 0}
    return RunConfig.of(base, {key.replace("_", "-"): value for key, value in changes.items()})


def medmnist(path: Path, channels: tuple[int, ...] = (3,)) -> Path:
    """Three classes with a tail of their own, as DermaMNIST has one; every image has a grey value of its own part."""
    sizes = {"train": (30, 12, 4), "val": (6, 3, 2), "test": (9, 5, 2)}
    arrays = {}
    for part, counts in sizes.items():
        labels = RNG.permutation(np.repeat(np.arange(3), counts)).astype(np.uint8)
        value = {"train": 0, "val": 100, "test": 200}[part]
        images = (value + np.arange(len(labels))).astype(np.uint8).reshape(-1, 1, 1, *[1] * len(channels))
        arrays[f"{part}_images"] = np.broadcast_to(images, (len(labels), 7, 7, *channels))
        arrays[f"{part}_labels"] = labels[:, None]
    np.savez_compressed(path, **arrays)
    return path


def values(samples) -> set[int]:
    return set(((samples.flatten(1)[:, 0] + 1) * 127.5).round().int().tolist())


@pytest.mark.parametrize("channels", [(), (3,)])
def test_a_medmnist_file_works_with_its_val_part_held_out(tmp_path, channels):
    config = settings(medmnist(tmp_path / "d.npz", channels), held_out=4)
    source = open_source(config.data, config.seed)
    assert source.names == ["0", "1", "2"]
    assert source.shape == ((3, 7, 7) if channels else (1, 7, 7))
    assert source.counts == [30, 12, 4]
    for y, (train, held_out, test) in enumerate([(30, 4, 9), (12, 3, 5), (4, 2, 2)]):
        loaded = source.load(y)
        assert (len(loaded.train), len(loaded.held_out), len(source.test(y))) == (train, held_out, test)
        assert max(values(loaded.train)) < 100 <= min(values(loaded.held_out)) < 120
        assert min(values(source.test(y))) >= 200
        assert values(source.unseen(y)) >= values(loaded.held_out) | values(source.test(y))
        assert not values(source.unseen(y)) & values(loaded.train)
    assert len(open_source(config.but(held_out=0).data, 0).held_out(0)) == 0
    assert not check(config.data, config.seed).notices


def test_the_seed_chooses_among_the_val_part(tmp_path):
    config = settings(medmnist(tmp_path / "d.npz"), held_out=2)
    chosen = {tuple(sorted(values(open_source(config.data, seed).held_out(0)))) for seed in range(8)}
    assert len(chosen) > 1


@pytest.mark.parametrize("labels", [np.array(["mel", "nv", "mel", "bkl", "nv", "mel"]), None])
def test_text_labels_are_the_names(tmp_path, labels):
    labels = np.array([b"mel", b"nv", b"mel", b"bkl", b"nv", b"mel"]) if labels is None else labels
    images = (np.arange(6, dtype=np.uint8) + 20)[:, None, None] + np.zeros((6, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=labels[:, None])
    config = settings(tmp_path / "a.npz")
    source = open_source(config.data, config.seed)
    assert source.names == ["bkl", "mel", "nv"]
    assert source.counts == [1, 3, 2]
    assert values(source.train(1)) == {20, 22, 25}


def test_text_labels_of_a_test_part_are_matched_by_name(tmp_path):
    images = (np.arange(4, dtype=np.uint8) + 20)[:, None, None] + np.zeros((4, 4, 4), np.uint8)
    names, others = np.array(["a", "b", "a", "b"]), np.array(["b", "longer", "a", "b"])
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=names, test_images=images, test_labels=others)
    config = settings(tmp_path / "a.npz")
    source = open_source(config.data, config.seed)
    assert (values(source.test(0)), values(source.test(1))) == ({22}, {20, 23})
    assert "1 samples of the test part" in source.notices[0]


def test_true_and_false_are_labels(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.full((4, 4, 4), 9, np.uint8), labels=np.array([True, False, True, True]))
    config = settings(tmp_path / "a.npz")
    assert open_source(config.data, 0).names == ["False", "True"]
    assert open_source(config.data, 0).counts == [1, 3]


def test_arrays_left_out_are_named(tmp_path):
    images, labels = np.full((4, 4, 4), 9, np.uint8), np.array([0, 1, 0, 1])
    np.savez(tmp_path / "a.npz", images=images, labels=labels, test_images=images, ages=labels)
    (sentence,) = open_source(settings(tmp_path / "a.npz").data, 0).notices
    assert sentence.endswith("the arrays test_images, ages")


def test_a_test_part_of_another_shape_is_refused(tmp_path):
    images, labels = np.full((4, 4, 4), 9, np.uint8), np.array([0, 1, 0, 1])
    np.savez(
        tmp_path / "a.npz", train_images=images, train_labels=labels, test_images=images[:, :3], test_labels=labels
    )
    with pytest.raises(UserError, match="test_images of another shape"):
        check(settings(tmp_path / "a.npz").data, 0)


def test_walking_all_classes_reads_the_images_once_each(tmp_path, monkeypatch):
    """Of a hundred classes, as CIFAR-100 has them."""
    labels = np.repeat(np.arange(100), 4)
    images = RNG.integers(0, 256, (400, 3, 3)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    config, read = settings(tmp_path / "a.npz"), []
    whole = zipfile.ZipFile.open
    monkeypatch.setattr(
        zipfile.ZipFile, "open", lambda self, name, *rest: read.append(name) or whole(self, name, *rest)
    )
    source = open_source(config.data, config.seed, keep=True)
    for y in range(100):
        assert len(source.train(y)) == len(source.test(y)) == 4
    assert len(read) < 30


def test_a_client_leaves_the_other_parts_alone(tmp_path):
    """A damaged test part is no concern of a training client."""
    path = medmnist(tmp_path / "d.npz")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["test_images.npy"] = members["test_images.npy"][:-5]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    config = settings(path)
    assert len(open_source(config.data, config.seed).load(0).train) == 30
    with pytest.raises(UserError, match=r"class 0: .*test_images is shorter"):
        check(config.data, config.seed)
