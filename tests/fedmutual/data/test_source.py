"""Sources on small real files: what a client gets, what it can reach, and what a user is told."""

import functools
import gc
import hashlib
import io
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from fedmutual import data
from fedmutual.config import RunConfig
from fedmutual.data import long_tail, opening
from fedmutual.data import npz as archives
from fedmutual.data.mixtures import MIXTURES
from fedmutual.errors import UserError
from tests.support.data import load_class, load_test, load_unseen, training_counts


def config(**changes) -> RunConfig:
    return RunConfig.of({key.replace("_", "-"): value for key, value in changes.items()})


def num_classes(settings: RunConfig) -> int:
    return opening.num_classes(settings.data)


def class_names(settings: RunConfig) -> list[str]:
    return opening.class_names(settings.data)


def sample_shape(settings: RunConfig) -> tuple[int, ...]:
    return opening.sample_shape(settings.data)


def npz(path: Path, **changes) -> RunConfig:
    return config(**{"data": "npz", "data_path": str(path), "held_out": 2, "test": 3, **changes})


def folder(path: Path, **changes) -> RunConfig:
    return config(**{"data": "folder", "data_path": str(path), "held_out": 1, "test": 1, **changes})


def coded(labels: np.ndarray, shape: tuple[int, ...] = (5, 4)) -> np.ndarray:
    """Images whose every pixel tells the class and the row: 20 * label + row within the class."""
    within = np.array([(labels[:row] == label).sum() for row, label in enumerate(labels)])
    codes = (20 * labels + within).astype(np.uint8)
    return np.broadcast_to(codes.reshape(-1, *[1] * len(shape)), (len(codes), *shape)).copy()


def decoded(samples: Tensor) -> list[int]:
    flat = ((samples.flatten(1) + 1) * 127.5).round().int()
    assert (flat == flat[:, :1]).all()
    return flat[:, 0].tolist()


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Four classes of 12, shuffled, in one .npz."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 12))
    np.savez_compressed(tmp_path / "mixed.npz", images=coded(labels), labels=labels)
    return tmp_path / "mixed.npz"


def write_images(path: Path, values: list[int], size=(6, 5), mode="L", suffix="png") -> None:
    path.mkdir(parents=True, exist_ok=True)
    for row, value in enumerate(values):
        colour = value if mode == "L" else (value, 0, 255 - value)
        Image.new(mode, size, colour).save(path / f"{row:03}.{suffix}")


# Digits


def test_digits_are_scikit_learns_scaled():
    settings = config(imbalance="none")
    for y in (0, 9):
        loaded = load_class(settings, y)
        result = torch.cat([loaded.train, loaded.held_out, load_test(settings, y)])
        digits = load_digits()
        expected = torch.from_numpy(digits.images[digits.target == y] / 8 - 1).float()[:, None]
        assert result.dtype == torch.float32
        assert sorted(result.flatten(1).tolist()) == sorted(expected.flatten(1).tolist())


def test_default_counts_leave_89_for_the_head():
    counts = training_counts(config())
    assert counts[0] == 89
    assert counts == long_tail.counts([89] * 10, "exponential", 0.05)
    assert [len(load_class(config(), y).train) for y in range(10)] == counts


def test_test_and_held_out_are_balanced():
    for y in range(10):
        assert len(load_class(config(), y).held_out) == 20
        assert len(load_test(config(), y)) == 65


@pytest.mark.parametrize(
    "changes",
    [{"imbalance": "none"}, {"imbalance": "step"}, {"imbalance_ratio": 0.5}, {"head_count": 40}],
)
def test_imbalance_moves_neither_test_nor_held_out(changes):
    longer, shorter = load_class(config(**changes), 3), load_class(config(), 3)
    assert torch.equal(longer.held_out, shorter.held_out)
    assert torch.equal(load_test(config(**changes), 3), load_test(config(), 3))
    common = min(len(longer.train), len(shorter.train))
    assert torch.equal(longer.train[:common], shorter.train[:common])


def test_the_seed_alone_decides_the_parts():
    assert torch.equal(load_class(config(), 1).train, load_class(config(), 1).train)
    assert not torch.equal(load_class(config(), 1).held_out, load_class(config(seed=1), 1).held_out)
    assert not torch.equal(load_test(config(), 1), load_test(config(seed=1), 1))


def test_each_class_is_cut_by_its_own_draw(mixed):
    def held_out_rows(y: int) -> list[int]:
        return [code - 20 * y for code in decoded(load_class(npz(mixed), y).held_out)]

    assert len({tuple(held_out_rows(y)) for y in range(4)}) > 1


# Gaussians


def test_gaussians_are_drawn_from_their_mixture():
    settings = config(data="gaussians", mixture="overlap-2d", head_count=20_000, imbalance="none")
    assert (num_classes(settings), sample_shape(settings)) == (2, (2,))
    for y, mixture in enumerate(MIXTURES["overlap-2d"]()):
        train = load_class(settings, y).train
        variance = (mixture.weights * (mixture.variances + mixture.means[:, 0] ** 2)).sum()
        assert train.shape == (20_000, 2)
        assert train[:, 0].var().item() == pytest.approx(variance.item(), rel=0.05)


def test_gaussian_parts_do_not_depend_on_the_imbalance():
    one = config(data="gaussians", head_count=500)
    other = config(data="gaussians", imbalance="counts", counts="7,9")
    assert training_counts(other) == [7, 9]
    for y in (0, 1):
        assert torch.equal(load_class(one, y).held_out, load_class(other, y).held_out)
        assert torch.equal(load_test(one, y), load_test(other, y))
        assert len(load_class(other, y).train) == [7, 9][y]


def test_gaussians_need_no_held_out_or_test_part():
    settings = config(data="gaussians", head_count=10, held_out=0, test=0)
    assert load_class(settings, 0).held_out.shape == load_test(settings, 0).shape == (0, 1)


# .npz


@pytest.mark.parametrize(
    ("stored", "shape"),
    [((5, 4), (1, 5, 4)), ((5, 4, 1), (1, 5, 4)), ((5, 4, 3), (3, 5, 4)), ((7,), (7,))],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_layouts_become_channels_first(tmp_path, stored, shape, order):
    labels = np.repeat([3, 8], 10)
    images = np.random.default_rng(0).integers(0, 256, (20, *stored), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=np.asarray(images, order=order), labels=labels)
    settings = npz(tmp_path / "a.npz", imbalance="none")
    assert sample_shape(settings) == shape
    assert class_names(settings) == ["3", "8"]
    loaded = load_class(settings, 1)
    result = torch.cat([loaded.train, loaded.held_out, load_test(settings, 1)])
    expected = torch.from_numpy(images[10:].astype(np.float32)) / 127.5 - 1
    expected = expected.movedim(-1, 1) if len(stored) == 3 else expected.reshape(10, *shape)
    assert result.is_contiguous()
    assert result.shape[1:] == shape
    assert sorted(result.flatten(1).tolist()) == sorted(expected.flatten(1).tolist())


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2"])
def test_npz_floats_are_taken_as_they_are(tmp_path, dtype):
    images = np.linspace(-1, 1, 20).reshape(10, 2).astype(dtype)
    np.savez(tmp_path / "a.npz", images=images)
    loaded = load_class(npz(tmp_path / "a.npz", test=0), 0)
    result = torch.cat([loaded.train, loaded.held_out])
    assert sorted(result.tolist()) == sorted(images.astype(np.float32).tolist())


@hypothesis.settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 64), st.booleans(), st.randoms())
def test_streamed_rows_are_numpys(tmp_path_factory, labels, chunk, fortran, random):
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    images = np.random.default_rng(len(labels)).integers(0, 256, (len(labels), 2, 3), dtype=np.uint8)
    np.savez(path, images=np.asarray(images, order="F" if fortran else "C"))
    rows = np.flatnonzero(np.array(labels) == labels[0])
    random.shuffle(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archives, "_CHUNK", chunk)
        np.testing.assert_array_equal(archives._read_rows(path, "images", rows), images[rows])


def test_a_class_gets_its_own_rows_and_no_row_twice(mixed):
    settings = npz(mixed, imbalance="none")
    for y in range(4):
        loaded = load_class(settings, y)
        result = decoded(torch.cat([loaded.train, loaded.held_out, load_test(settings, y)]))
        assert sorted(result) == [20 * y + row for row in range(12)]


@pytest.mark.parametrize("imbalance", ["none", "exponential"])
def test_what_training_did_not_see_is_all_the_rest(mixed, imbalance):
    settings = npz(mixed, imbalance=imbalance)
    for y in range(4):
        unseen, train = load_unseen(settings, y), load_class(settings, y).train
        assert sorted(decoded(torch.cat([unseen, train]))) == [20 * y + row for row in range(12)]
        assert torch.equal(unseen[: settings.data.held_out], load_class(settings, y).held_out)
        assert torch.equal(unseen[-settings.data.test :], load_test(settings, y))


def test_official_test_part_stays_out_of_training(tmp_path):
    labels, test_labels = np.repeat([0, 1], 10), np.repeat([1, 0], 5)
    np.savez(
        tmp_path / "a.npz",
        train_images=coded(labels),
        train_labels=labels[:, None],
        test_images=coded(test_labels) + 100,
        test_labels=test_labels,
    )
    settings = npz(tmp_path / "a.npz", held_out=0, imbalance="none")
    for y in (0, 1):
        assert sorted(decoded(load_class(settings, y).train)) == [20 * y + row for row in range(10)]
        every = decoded(load_test(settings.but(test=0), y))
        assert sorted(every) == [100 + 20 * y + row for row in range(5)]
        assert decoded(load_test(settings, y)) == every[:3]
        assert any(decoded(load_test(settings.but(test=0, seed=seed), y)) != every for seed in (1, 2, 3))
        assert decoded(load_unseen(settings.but(held_out=2), y))[2:] == every[:3]
    with pytest.raises(UserError, match="5 samples of class 1: lower test = 6"):
        load_test(settings.but(test=6), 1)


def test_without_held_out_cifar_counts_are_the_literatures(tmp_path):
    labels = np.repeat(np.arange(10), 5000)
    blank, few = np.zeros((50_000, 1), np.uint8), np.arange(10)
    np.savez_compressed(
        tmp_path / "a.npz", train_images=blank, train_labels=labels, test_images=blank[:10], test_labels=few
    )
    settings = npz(tmp_path / "a.npz", held_out=0, imbalance="exponential", imbalance_ratio=0.01)
    assert sum(training_counts(settings)) == 12_406
    assert len(load_class(settings, 8).train) == 83


@pytest.mark.parametrize("labels", [None, np.full(12, 3)])
def test_a_file_of_one_class_is_all_the_clients_own(tmp_path, labels):
    images = coded(np.zeros(12, int))
    parts = {"images": images} if labels is None else {"images": images, "labels": labels}
    np.savez(tmp_path / "own.npz", **parts)
    settings = npz(tmp_path / "own.npz", classes=9, shape="1,5,4")
    loaded = load_class(settings, 7)
    assert sorted(decoded(torch.cat([loaded.train, loaded.held_out, load_test(settings, 7)]))) == [*range(12)]
    assert len(loaded.train) == 7
    assert len(load_class(settings.but(classes=0), 7).train) == 7
    explicit = settings.but(classes=3, imbalance="counts", counts="9,9,4")
    assert len(load_class(explicit, 2).train) == 4
    with pytest.raises(UserError, match="9 training samples of class 1, which has 7"):
        load_class(explicit, 1)
    with pytest.raises(UserError, match="class 9 does not exist"):
        load_class(settings, 9)
    with pytest.raises(UserError, match="one class of 9"):
        training_counts(settings)
    assert training_counts(settings.but(classes=0)) == [7]


# Folders


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "jpg", "JPEG"])
def test_each_sub_folder_is_a_class(tmp_path, suffix):
    for name, start in (("b-cat", 100), ("a-dog", 10)):
        write_images(tmp_path / name, [start + row for row in range(6)], suffix=suffix)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "a-dog" / "notes.txt").write_text("not an image")
    settings = folder(tmp_path, imbalance="none")
    assert class_names(settings) == ["a-dog", "b-cat"]
    channels = 3 if suffix == "webp" else 1  # WebP has no grey
    assert sample_shape(settings) == (channels, 5, 6)
    settings = settings.but(shape="1,5,6")
    loaded = load_class(settings, 1)
    result = decoded(torch.cat([loaded.train, loaded.held_out, load_test(settings, 1)]))
    assert all(abs(a - b) <= 2 for a, b in zip(sorted(result), range(100, 106), strict=True))


def test_a_folder_without_sub_folders_is_one_class(tmp_path):
    write_images(tmp_path, [1, 2, 3, 4, 5], mode="RGB")
    settings = folder(tmp_path)
    assert sample_shape(settings) == (3, 5, 6)
    assert load_class(settings, 4).train.shape == (3, 3, 5, 6)


def test_shape_resizes_and_decides_the_channels(tmp_path):
    write_images(tmp_path, [200, 100, 0], size=(40, 30), mode="RGB")
    grey = load_class(folder(tmp_path, shape="1,8,8"), 0)
    colour = load_class(folder(tmp_path, shape="3,16,12"), 0)
    assert grey.train.shape == (1, 1, 8, 8)
    assert colour.train.shape == (1, 3, 16, 12)
    assert (colour.train[:, 1] == -1).all()  # the green that was painted


def test_resizing_does_not_alias(tmp_path):
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    small = load_class(folder(tmp_path, shape="1,8,8", held_out=0, test=0), 0).train
    assert small[..., 1:-1].abs().max() < 0.1


# Torchvision's sets, from files in their own formats


def write_mnist(root: Path, name: str) -> np.ndarray:
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    labels = np.repeat(np.arange(10), 8).astype(np.uint8)
    images = coded(labels.astype(int), (28, 28))
    for part in ("train", "t10k"):
        header = struct.pack(">IIII", 0x803, len(images), 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, len(labels)) + labels.tobytes())
    return images


@pytest.mark.parametrize(("source", "name"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_mnist_files_are_read(tmp_path, source, name):
    write_mnist(tmp_path, name)
    settings = config(data=source, data_path=str(tmp_path), held_out=2, test=0, imbalance="none")
    loaded = load_class(settings, 6)
    assert loaded.train.shape == (6, 1, 28, 28)
    assert sorted(decoded(torch.cat([loaded.train, loaded.held_out]))) == [*range(120, 128)]
    assert sorted(decoded(load_test(settings, 6))) == [*range(120, 128)]
    assert len(load_test(settings.but(test=3), 6)) == 3


@pytest.mark.parametrize(
    ("source", "name", "key"), [("cifar10", "CIFAR10", "labels"), ("cifar100", "CIFAR100", "fine_labels")]
)
def test_cifar_files_are_read(tmp_path, monkeypatch, source, name, key):
    from torchvision import datasets

    kind = getattr(datasets, name)
    classes = len(class_names(config(data=source, data_path="-")))
    labels = np.repeat(np.arange(classes), 4)
    pixels = np.arange(len(labels) * 3072).reshape(-1, 3072).astype(np.uint8)
    base = tmp_path / kind.base_folder
    base.mkdir()

    def write(file: str, content: dict) -> tuple[str, str]:
        (base / file).write_bytes(pickle.dumps(content))
        return file, hashlib.md5((base / file).read_bytes()).hexdigest()

    batch = {"data": pixels, key: labels.tolist()}
    # Only the checksums are replaced: they are those of the real sets.
    monkeypatch.setattr(kind, "train_list", [write(kind.train_list[0][0], batch)])
    monkeypatch.setattr(kind, "test_list", [write(kind.test_list[0][0], batch)])
    names, digest = write(kind.meta["filename"], {kind.meta["key"]: class_names(config(data=source, data_path="-"))})
    monkeypatch.setattr(kind, "meta", {**kind.meta, "filename": names, "md5": digest})
    settings = config(data=source, data_path=str(tmp_path), held_out=0, test=0, imbalance="none")
    train = load_class(settings, 7).train
    expected = torch.from_numpy(pixels[labels == 7].reshape(-1, 3, 32, 32).astype(np.float32)) / 127.5 - 1
    assert sorted(train.flatten(1).tolist()) == sorted(expected.flatten(1).tolist())
    assert len(load_test(settings, 7)) == 4


@pytest.mark.parametrize("source", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_a_missing_set_says_how_to_get_it(tmp_path, source):
    settings = config(data=source, data_path=str(tmp_path / "none"))
    for load in (lambda: load_class(settings, 0), lambda: load_test(settings, 0), lambda: training_counts(settings)):
        with pytest.raises(UserError, match="set data-path to its folder, or download = true"):
            load()
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize(
    ("source", "file"), [("cifar10", "cifar-10-batches-py/data_batch_2"), ("cifar100", "cifar-100-python/meta")]
)
def test_an_edited_set_is_refused_and_never_written_over(tmp_path, monkeypatch, source, file, download):
    monkeypatch.setattr("torchvision.datasets.utils.download_url", lambda *_, **__: pytest.fail("downloaded"))
    edited = tmp_path / file
    edited.parent.mkdir()
    edited.write_bytes(b"edited by its owner")
    with pytest.raises(UserError, match=f"{edited.name} is not as {source} has it") as refused:
        load_class(config(data=source, data_path=str(tmp_path), download=download), 0)
    assert "download = true" not in str(refused.value)
    assert edited.read_bytes() == b"edited by its owner"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [edited]


# What a client can reach


def reachable_bytes(*roots: object) -> int:
    """Bytes of all arrays and tensor storages that can be reached, whole where only a view is held.

    Modules and classes are not entered, functions only through what they close over or remember.
    """
    seen, result, stack = set(), {}, list(roots)
    while stack:
        thing = stack.pop()
        if id(thing) in seen or isinstance(thing, ModuleType | type):
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            result[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        elif isinstance(thing, np.ndarray) and isinstance(thing.base, np.ndarray):
            stack.append(thing.base)
        elif isinstance(thing, np.ndarray):
            result[id(thing)] = thing.nbytes
        if isinstance(thing, FunctionType):
            stack += [thing.__closure__, thing.__defaults__, thing.__kwdefaults__, thing.__dict__]
        else:
            stack += gc.get_referents(thing)
    return sum(result.values())


def test_the_reach_test_sees_views_closures_and_caches():
    tensor, array = torch.zeros(100), np.zeros(50)

    @dataclass
    class Holder:
        part: object

    @functools.cache
    def remembering():
        return tensor

    assert reachable_bytes(Holder(tensor[:3])) == 400
    assert reachable_bytes({"key": [array[2:]]}) == 400
    assert reachable_bytes(lambda: array) == 400
    remembering()
    assert reachable_bytes(remembering) == 400


def every_source(root: Path) -> list[RunConfig]:
    labels = np.repeat(np.arange(4), 12)
    images = coded(labels)
    np.savez(root / "plain.npz", images=images, labels=labels)
    np.savez(root / "parts.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    for y in range(3):
        write_images(root / "images" / str(y), [1, 2, 3, 4, 5])
    write_mnist(root, "MNIST")
    return [
        config(),
        config(data="gaussians", head_count=100),
        config(data="mnist", data_path=str(root), held_out=2, test=3),
        npz(root / "plain.npz"),
        npz(root / "parts.npz"),
        folder(root / "images"),
    ]


def test_a_client_reaches_its_own_class_and_nothing_else(tmp_path):
    for settings in every_source(tmp_path):
        for y in range(num_classes(settings)):
            loaded = load_class(settings, y)
            samples = training_counts(settings)[y] + settings.data.held_out
            own = samples * int(np.prod(sample_shape(settings))) * 4
            assert reachable_bytes(loaded) == own, settings.data
            for part in (loaded.train, loaded.held_out, load_test(settings, y)):
                assert part.is_contiguous()
                assert part.untyped_storage().nbytes() == part.nbytes


def test_no_module_remembers_samples(tmp_path):
    modules = [sys.modules[name] for name in sys.modules if name.split(".")[0] == "fedmutual"]
    assert opening in modules
    assert data in modules
    for settings in every_source(tmp_path):
        load_class(settings, 0)
        load_test(settings, 0)
    assert reachable_bytes(*(vars(module) for module in modules)) == 0


def test_loading_holds_little_more_than_the_class(tmp_path):
    """Counts numpy's memory while streaming, so it also sees what no reference shows."""
    labels = np.tile(np.arange(100), 100)
    np.savez(tmp_path / "large.npz", images=np.zeros((10_000, 40, 50), np.uint8), labels=labels)
    settings = npz(tmp_path / "large.npz", imbalance="none")
    load_class(settings, 0)
    gc.collect()
    tracemalloc.start()
    try:
        loaded = load_class(settings, 5)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(loaded.train) == 95
    own, everything = 100 * 40 * 50 * 5, 10_000 * 40 * 50  # a byte and its float32; a byte
    assert peak < own + 2**21 < everything / 4
    assert after < 2**16


def test_values_of_other_classes_do_not_matter(tmp_path):
    images = np.zeros((20, 3))
    images[10:] = np.nan
    np.savez(tmp_path / "a.npz", images=images, labels=np.repeat([0, 1], 10))
    assert load_class(npz(tmp_path / "a.npz"), 0).train.isfinite().all()
    with pytest.raises(UserError, match="not finite"):
        load_class(npz(tmp_path / "a.npz", imbalance="none"), 1)


def test_files_of_other_classes_are_not_opened(tmp_path):
    for name in ("a", "c"):
        (tmp_path / name).mkdir()
        for row in range(5):
            (tmp_path / name / f"{row}.png").write_bytes(b"not an image at all")
    write_images(tmp_path / "b", [1, 2, 3, 4, 5])
    assert len(load_class(folder(tmp_path, shape="1,5,6", imbalance="none"), 1).train) == 3


# What is known without data


@pytest.mark.parametrize(
    ("source", "classes", "shape"),
    [
        ("digits", 10, (1, 8, 8)),
        ("mnist", 10, (1, 28, 28)),
        ("fashion-mnist", 10, (1, 28, 28)),
        ("cifar10", 10, (3, 32, 32)),
        ("cifar100", 100, (3, 32, 32)),
        ("gaussians", 2, (1,)),
    ],
)
def test_named_sources_are_known_without_data(source, classes, shape):
    settings = config(data=source, data_path="/nowhere")
    assert (num_classes(settings), sample_shape(settings)) == (classes, shape)
    assert len(set(class_names(settings))) == classes
    with pytest.raises(UserError, match="set classes=0"):
        num_classes(settings.but(classes=classes + 1))
    with pytest.raises(UserError, match="leave shape empty"):
        sample_shape(settings.but(shape="1,9,9"))


def test_importing_the_sources_imports_no_reader():
    code = "import sys, fedmutual.data; print(*{'torchvision', 'sklearn', 'PIL'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


@pytest.mark.parametrize("source", ["npz", "folder"])
def test_a_server_without_data_needs_classes_and_shape_only(source):
    settings = config(data=source, data_path="/nowhere", classes=3, shape="1,5,6")
    assert (num_classes(settings), sample_shape(settings)) == (3, (1, 5, 6))
    assert class_names(settings) == ["0", "1", "2"]
    with pytest.raises(UserError, match="set data-path, or classes where"):
        num_classes(settings.but(classes=0))
    with pytest.raises(UserError, match="set data-path, or shape where"):
        sample_shape(settings.but(shape=""))
    with pytest.raises(UserError, match=r"/nowhere is missing: set data-path$"):
        load_class(settings, 0)


# What a user is told


def raw_npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


GOOD, LABELS = np.zeros((12, 5, 4), np.uint8), np.repeat([0, 1], 6)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": LABELS}, "holds labels: name its arrays images and labels"),
        ({"train_images": GOOD, "train_labels": LABELS}, "name its arrays"),
        ({"images": GOOD, "targets": LABELS}, "holds images, targets: name its arrays"),
        ({"images": GOOD, "labels": LABELS[:-1]}, "12 images and 11 labels"),
        ({"images": np.array([{}] * 12), "labels": LABELS}, "type object"),
        ({"images": GOOD, "labels": LABELS.astype(object)}, "labels .* are object"),
        ({"images": GOOD, "labels": LABELS / 2}, "labels .* are float64"),
        ({"images": GOOD, "labels": np.eye(12, dtype=int)}, "whole numbers"),
        ({"images": GOOD, "labels": np.array(3)}, "whole numbers"),
        ({"images": GOOD.astype(int) + 256, "labels": LABELS}, "int64 from 256 to 256: store bytes"),
        ({"images": GOOD + 0j, "labels": LABELS}, "type complex128"),
        ({"images": GOOD[:, 0, 0], "labels": LABELS}, r"shape \(12,\)"),
        ({"images": GOOD[..., None, None], "labels": LABELS}, r"\(12, 5, 4, 1, 1\)"),
        ({"images": np.zeros((12, 3, 5, 4), np.uint8), "labels": LABELS}, r"\(12, 3, 5, 4\)"),
        ({"images": GOOD[:, :0], "labels": LABELS}, "shape"),
        ({"images": np.array(3.0), "labels": LABELS}, "shape"),
        ({"images": GOOD[:0], "labels": LABELS[:0]}, "no samples"),
        ({"images": np.full((12, 3), np.inf), "labels": LABELS}, "not finite"),
        ({"images": np.full((12, 3), 1e300), "labels": LABELS}, "not finite"),
        ({"images": GOOD, "labels": LABELS, "classes": 3}, "classes = 3, but npz has 2"),
        ({"images": GOOD, "labels": LABELS, "shape": "1,4,5"}, "shape = 1,4,5, but samples of npz have 1,5,4"),
        ({"images": GOOD, "shape": "1,4,5"}, "shape = 1,4,5"),
        ({"images": GOOD, "labels": LABELS, "held_out": 3}, "class 0 has 6 samples.*lower test or held-out"),
        ({"images": GOOD, "labels": LABELS, "head_count": 2}, "head-count = 2"),
    ],
)
def test_a_bad_npz_is_one_clear_line(tmp_path, arrays, message):
    changes = {key: arrays[key] for key in ("classes", "shape", "held_out", "head_count") if key in arrays}
    np.savez(tmp_path / "a.npz", **{key: value for key, value in arrays.items() if key not in changes})
    with pytest.raises(UserError, match=message) as caught:
        load_class(npz(tmp_path / "a.npz", **changes), 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("y", [-1, 2, 10**9])
def test_a_class_out_of_range_is_refused(tmp_path, y):
    np.savez(tmp_path / "a.npz", images=GOOD, labels=LABELS)
    for settings in (npz(tmp_path / "a.npz"), config(data="gaussians", head_count=9)):
        for load in (load_class, load_test):
            with pytest.raises(UserError, match=f"class {y} does not exist: there are 2"):
                load(settings, y)


def test_no_damaged_npz_escapes_as_another_error(tmp_path):
    """Cut anywhere, or with any byte changed: either the class as it was, or one line."""
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=coded(LABELS), labels=LABELS)
    whole, right = path.read_bytes(), load_class(npz(path), 0).train
    damaged = [whole[:end] for end in range(0, len(whole), 7)]
    damaged += [whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :] for at in range(0, len(whole), 3)]

    def outcome(content: bytes) -> Tensor | str:
        path.write_bytes(content)
        try:
            return load_class(npz(path), 0).train
        except UserError as error:
            return str(error)

    outcomes = [outcome(content) for content in damaged]
    refusals = [result for result in outcomes if isinstance(result, str)]
    assert not any("\n" in line for line in refusals)
    assert len(refusals) > len(damaged) / 2
    assert all(torch.equal(result, right) for result in outcomes if isinstance(result, Tensor))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (npy(GOOD)[:-1], "images is shorter than its header says"),
        (npy(GOOD) + b"x", "images is longer than its header says"),
        (npy(GOOD)[:30], ""),
        (b"\x93NUMPY\x09\x00", ""),
        (b"no array", ""),
        (b"", ""),
    ],
)
def test_a_member_that_is_no_whole_array_is_refused(tmp_path, content, reason):
    path = raw_npz(tmp_path / "a.npz", images=content, labels=npy(LABELS))
    with pytest.raises(UserError, match=rf"not a whole \.npz file \({reason}"):
        load_class(npz(path), 1)


def test_pickles_are_never_loaded(tmp_path):
    touched = tmp_path / "touched"

    class Trap:
        def __reduce__(self):
            return (Path.touch, (touched,))

    np.savez(tmp_path / "a.npz", images=np.array([Trap()] * 12), labels=LABELS)
    with pytest.raises(UserError):
        load_class(npz(tmp_path / "a.npz"), 0)
    np.savez(tmp_path / "a.npz", images=GOOD, labels=np.array([Trap()] * 12))
    with pytest.raises(UserError):
        load_class(npz(tmp_path / "a.npz"), 0)
    assert not touched.exists()


def test_paths_of_the_wrong_kind_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(UserError, match=r"not a whole \.npz"):
        load_class(npz(tmp_path / "text.npz"), 0)
    with pytest.raises(UserError, match=r"not a whole \.npz"):
        load_class(npz(tmp_path), 0)
    with pytest.raises(UserError, match="not a readable folder"):
        load_class(folder(tmp_path / "text.npz"), 0)
    with pytest.raises(UserError, match="holds no PNG"):
        load_class(folder(tmp_path), 0)
    write_images(tmp_path / "full", [1])
    (tmp_path / "hollow").mkdir()
    with pytest.raises(UserError, match="hollow holds no PNG"):
        load_class(folder(tmp_path), 0)


def test_a_damaged_image_is_named(tmp_path):
    write_images(tmp_path, [1, 2, 3], size=(64, 64), mode="RGB")
    whole = (tmp_path / "001.png").read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole[:10], b"GIF89a", whole[:50] + b"\0\0" + whole[52:]):
        (tmp_path / "001.png").write_bytes(content)
        for shape in ("", "3,64,64"):
            with pytest.raises(UserError, match=r"001\.png is not a whole image"):
                load_class(folder(tmp_path, shape=shape, test=0), 0)


@pytest.mark.parametrize(("size", "mode"), [((7, 5), "L"), ((6, 5), "RGB")])
def test_an_image_unlike_the_first_is_named(tmp_path, size, mode):
    write_images(tmp_path, [1, 2, 3])
    Image.new(mode, size).save(tmp_path / "odd.png")
    with pytest.raises(UserError, match=r"odd\.png is .* the first image \(1, 5, 6\): set shape"):
        load_class(folder(tmp_path, held_out=0, test=0), 0)
    assert len(load_class(folder(tmp_path, held_out=0, test=0, shape="1,5,6"), 0).train) == 4


def test_images_whose_range_is_unknown_are_refused(tmp_path):
    Image.new("I", (6, 5)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="32 bits a pixel"):
        sample_shape(folder(tmp_path))


@pytest.mark.parametrize("shape", ["28,28", "2,8,8", "1,0,8"])
def test_a_shape_no_image_can_have_is_refused(tmp_path, shape):
    with pytest.raises(UserError, match="give channels"):
        sample_shape(folder(tmp_path, shape=shape))


def test_gaussians_say_what_they_need():
    with pytest.raises(UserError, match="set head-count"):
        load_class(config(data="gaussians"), 0)
    with pytest.raises(UserError, match="choose one of case-one, case-two"):
        num_classes(config(data="gaussians", mixture="unheard-of"))
    with pytest.raises(UserError, match="names 3 classes, there are 2"):
        load_class(config(data="gaussians", imbalance="counts", counts="1,2,3"), 0)


def test_digits_say_what_is_too_much():
    with pytest.raises(UserError, match=r"class 8 has 174 samples.*lower test or held-out"):
        load_class(config(held_out=110), 0)
