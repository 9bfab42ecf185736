"""`fedmutual release`: what is in the folder, what is known of it, what stays with the owner."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedmutual.config import RunConfig
from fedmutual.data import open_source
from fedmutual.errors import UserError
from fedmutual.evaluation import usefulness
from fedmutual.run_folder import read_metrics
from fedmutual.settings import read_settings, write_settings
from simulations.experiments.arm import run_arm
from simulations.report.release import GALLERY, write_release
from simulations.runs.datasheet import guarantee
from simulations.runs.measuring import change_measuring, evaluate
from simulations.runs.release import Releasing, as_released, to_bytes
from simulations.runs.release_folder import folder_names
from tests.support.federation import SMALL, LocalGrid, federate

pytestmark = pytest.mark.xdist_group("release")  # its fixtures are made once

OWN = {"data": "npz", "imbalance": "counts", "counts": "10,5,2", "held-out": 5, "test": 10, "samples": 12}

HOSTILE = ["../../escaped", "<b>dog</b>", "CON"]

CommandLine = Callable[..., tuple[int, str, str]]


def write_data(path: Path, *shape: int, names: list[str] = HOSTILE) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (90, *shape), dtype=np.uint8)
    if len(shape) == 1:
        images = np.tanh(random.normal(0, 1, (90, *shape))).astype(np.float32)
    np.savez(path, images=images, labels=np.array(names)[np.arange(90) % 3])


def trained(folder: Path, *shape: int, **changes: Any) -> Path:
    """A run of three classes of 10, 5 and 2 training samples in `folder`, its data beside it."""
    folder.mkdir(exist_ok=True)
    write_data(folder / "data.npz", *shape)
    places = {"out": str(folder / "run"), "store": str(folder / "clients"), "data-path": str(folder / "data.npz")}
    federate(RunConfig.of(SMALL, OWN, places, changes), LocalGrid(range(3)))
    return folder / "run"


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usefulness, "STEPS", 5)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("release"), 8, 8)


@pytest.fixture
def run(images: Path, tmp_path: Path) -> Path:
    """A copy of the run of images, so that a test may change it."""
    return Path(shutil.copytree(images, tmp_path / "run"))


def made(run: Path, **options: Any) -> Releasing:
    releasing = Releasing(run, **options)
    releasing.draw()
    return releasing


# The folder


def test_a_release_of_images_with_hostile_names(run: Path, tmp_path: Path, command_line: CommandLine) -> None:
    out = tmp_path / "given" / "away"
    code, told, err = command_line("release", run, "--out", out, "--json")
    assert code == 0, err
    sheet = json.loads(told)
    assert sheet == json.loads((out / "datasheet.json").read_text())
    assert sorted(path.name for path in out.iterdir()) == [
        *("README.md", "datasheet.json", "images", "release.html", "samples.npz"),
    ]
    assert [path.name for path in out.parent.iterdir()] == ["away"]  # nothing partial, nothing that escaped
    assert {row["name"]: row["folder"] for row in sheet["rows"]} == {
        "../../escaped": "class-000",
        "<b>dog</b>": "class-001",
        "CON": "class-002",
    }
    archive = np.load(out / "samples.npz")
    assert archive["class_names"].tolist() == sorted(HOSTILE)
    for row in sheet["rows"]:
        assert (row["training"], row["drawn"], row["released"]) == ((10, 5, 2)[row["class"]], 12, 12)
        files = sorted((out / "images" / row["folder"]).iterdir())
        pixels = np.stack([np.asarray(Image.open(path)) for path in files])
        np.testing.assert_array_equal(pixels, archive["images"][archive["labels"] == row["class"]])
        assert row["fidelity"]["n_generated"] == 12
        assert row["fidelity"]["n_reference"] == 10
        assert row["closest"]["unseen"]["samples"] == 12
    for name in ("release.html", "README.md"):
        text = (out / name).read_text()
        assert "<b>dog" not in text
        assert "No formal guarantee." in text
        assert "proxy that proves nothing" in text
        assert str(run) not in text


def test_a_released_archive_is_data_again(run: Path, tmp_path: Path) -> None:
    releasing = made(run)
    write_release(releasing, tmp_path / "out")
    settings = {"data": "npz", "data-path": str(tmp_path / "out" / "samples.npz"), "imbalance": "none", "test": 0}
    config = RunConfig.of({**settings, "held-out": 0, "head-count": 0})
    source = open_source(config.data, 0)
    for y, samples in releasing.samples.items():
        rows = torch.cat([source.train(y)])
        assert sorted(map(bytes, to_bytes(rows).numpy())) == sorted(map(bytes, to_bytes(samples).numpy()))


def test_training_images_are_shown_to_the_owner_alone(run: Path, tmp_path: Path) -> None:
    releasing = made(run)
    _, gallery = write_release(releasing, tmp_path / "out")
    assert gallery == run / GALLERY
    assert gallery.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "out" / "release.html").read_text().count("<img") == 3  # a sheet of each class
    shown = releasing.suspects()
    assert gallery.read_text().count("<img") == 3 * len(shown)
    assert [one.ratio for one in shown] == sorted(one.ratio for one in shown)
    first = shown[0]
    distances = (releasing.train[first.class_] - first.sample).flatten(1).norm(dim=1).sort()
    assert first.rows == tuple(distances.indices[:2].tolist())
    assert first.distance == pytest.approx(float(distances.values[0]), rel=1e-5)
    assert first.ratio == pytest.approx(float(distances.values[0] / distances.values[1]), rel=1e-5)


def test_what_is_there_already_is_kept(run: Path, tmp_path: Path, command_line: CommandLine) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    code, out, err = command_line("release", run, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert "is there already: name a new folder with --out" in err.splitlines()[-1]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    assert not (run / GALLERY).exists()


def test_folders_have_names_that_every_file_system_takes() -> None:
    names = ["cat", "Übung 2 (b)", "", ".", "..", "/etc", "a/b", "a\\b", "-rf", "nul.txt", "x" * 65, "a\0b", "dot."]
    assert folder_names(names)[:2] == ["cat", "Übung 2 (b)"]
    assert folder_names(names)[2:] == [f"class-{y:03d}" for y in range(2, len(names))]
    assert folder_names(["Cat", "cat", "dog", "class-000", "line\n", "\udcff"]) == [
        *("class-000", "class-001", "dog"),
        *("class-003", "class-004", "class-005"),
    ]
    assert len({name.casefold() for name in folder_names([*names, "CAT", "class-000"])}) == len(names) + 2


# What is known of it


def test_what_is_measured_is_what_is_released(run: Path) -> None:
    releasing = made(run)
    for samples in releasing.samples.values():
        torch.testing.assert_close(as_released(samples), samples, rtol=0, atol=0)


def test_usefulness_and_attacks_are_told_with_their_counts(run: Path, tmp_path: Path) -> None:
    releasing = made(run)
    releasing.attack()
    releasing.train_classifiers()
    sheet, _ = write_release(releasing, tmp_path / "out")
    useful = sheet["usefulness"]
    assert useful["sets"]["real"]["samples"] == {0: 10, 1: 5, 2: 2}
    assert useful["sets"]["both"]["samples"] == useful["sets"]["repeated"]["samples"] == {0: 10, 1: 10, 2: 10}
    assert useful["test"] == {0: 10, 1: 10, 2: 10}
    for one in useful["sets"].values():
        recalls = [one["recall"][y]["mean"] for y in range(3)]
        assert np.mean(recalls) == pytest.approx(one["accuracy"]["mean"])  # as many test samples of each class
        assert one["macro_f1"]["seeds"] == 3
    both, real = (useful["sets"][name]["macro_f1"]["mean"] for name in ("both", "real"))
    assert useful["differences"][0]["macro_f1"]["mean"] == pytest.approx(both - real)
    attacks = {row["attack"] for row in sheet["attacks"]}
    assert attacks >= {"loss", "pia", "sima", "secmi", "distance", "density-ratio", "extraction"}
    by_ratio = next(row for row in sheet["attacks"] if row["attack"] == "density-ratio" and row["class"] == 0)
    assert by_ratio["non_members"] == len(releasing.source.unseen(0)) // 2  # half of them are its reference
    assert not (run / "audit.json").exists()


def test_copies_are_counted_and_left_out_on_request(tmp_path: Path) -> None:
    """Drawn from memory, every sample is a copy: attacks on samples find them all, and nothing is left to release."""
    write_data(tmp_path / "data.npz", 8, 8)
    own = {"data-path": str(tmp_path / "data.npz"), "samples": 0}
    run_arm("memory", RunConfig.of(SMALL, OWN, own), tmp_path / "run")
    kept = made(tmp_path / "run", count=40)
    assert kept.copies == {0: 40, 1: 40, 2: 40}
    kept.attack()
    found = {
        (row.attack, row.metric): row.value
        for row in kept.attacks
        if row.class_ == 1 and row.attack != "control-shuffled"
    }
    assert found["distance", "auc"] == found["density-ratio", "auc"] == found["extraction", "extracted"] == 1
    dropped = made(tmp_path / "run", count=40, drop_copies=True)
    dropped.attack()
    dropped.train_classifiers()
    sheet, _ = write_release(dropped, tmp_path / "out")
    assert [(row["near_copies"], row["left_out"], row["released"]) for row in sheet["rows"]] == [(40, 40, 0)] * 3
    assert sorted(path.name for path in (tmp_path / "out" / "images").iterdir()) == [
        *("class-000", "class-001", "class-002"),
    ]
    assert "synthetic" not in sheet["usefulness"]["sets"]
    assert "120 of 120 that were drawn; they were left out" in (tmp_path / "out" / "README.md").read_text()


def test_an_epsilon_is_told_and_does_not_cover_a_filtered_release() -> None:
    assert guarantee({}, False)["words"] == "No formal guarantee."
    facts = {"epsilon": 3.0, "delta": 1e-5}
    assert "epsilon = 3 at delta = 1e-05 for what its clients sent" in guarantee(facts, False)["words"]
    assert (guarantee(facts, False)["epsilon"], guarantee(facts, False)["delta"]) == (3.0, 1e-5)
    assert "does not cover this release" in guarantee(facts, True)["words"]
    from_more = guarantee(facts, False, in_parts=True)
    assert (from_more["epsilon"], from_more["delta"]) == (None, None)
    assert "drawn from the owners' private parts as well: no formal guarantee." in from_more["words"]


def test_numbers_that_are_no_pictures(tmp_path: Path, command_line: CommandLine) -> None:
    run = trained(tmp_path / "vectors", 6)
    code, _, err = command_line("release", run)
    assert code == 0, err
    out = run / "release"
    assert sorted(path.name for path in out.iterdir()) == [
        *("README.md", "datasheet.json", "release.html", "samples.npz"),
    ]
    archive = np.load(out / "samples.npz")
    assert (archive["images"].shape, archive["images"].dtype) == ((36, 6), np.float32)
    sheet = json.loads((out / "datasheet.json").read_text())
    assert sheet["usefulness"]["sets"]["synthetic"]["macro_f1"]["seeds"] == 3
    assert "<img" not in (out / "release.html").read_text() + (run / GALLERY).read_text()


# What cannot be told


def test_without_a_test_part_it_says_so(tmp_path: Path, command_line: CommandLine) -> None:
    run = trained(tmp_path / "no-test", 8, 8, test=0)
    code, told, err = command_line("release", run)
    assert code == 0, err
    assert "What the release is good for was not measured: the data have no test part" in told
    sheet = json.loads((run / "release" / "datasheet.json").read_text())
    assert sheet["usefulness"] is None
    assert sheet["rows"][0]["fidelity"]["fd"] is None
    assert sheet["not_attacked"] == ""


def test_with_too_few_unseen_samples_nothing_is_attacked(tmp_path: Path) -> None:
    run = trained(tmp_path / "few", 8, 8, **{"test": 4, "held-out": 4, "counts": "22,21,20"})
    releasing = made(run)
    releasing.attack()
    sheet, _ = write_release(releasing, tmp_path / "out")
    assert sheet["attacks"] == []
    assert "No attack was tried: class ../../escaped" in (tmp_path / "out" / "README.md").read_text()


def test_a_run_without_networks_is_refused(run: Path, command_line: CommandLine) -> None:
    shutil.rmtree(run / "checkpoints")
    code, out, err = command_line("release", run)
    assert (code, out) == (2, "")
    assert "holds no whole checkpoint" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--seeds", "2"], "needs 3 classifiers"), (["--round", "9"], "no checkpoint of round 9"), (["-n", "1"], "count")],
)
def test_what_cannot_be_released_is_one_line(
    run: Path, command_line: CommandLine, arguments: list[str], says: str
) -> None:
    code, out, err = command_line("release", run, *arguments)
    assert (code, out) == (2, "")
    assert says in err.splitlines()[-1]
    assert not (run / "release").exists()


def test_a_moved_run_finds_its_data_where_they_are_now(run: Path, tmp_path: Path, command_line: CommandLine) -> None:
    data = Path(read_settings(run / "config.toml")["data-path"])
    hidden = Path(shutil.copy(data, tmp_path / "hidden.npz"))
    gone = read_settings(run / "config.toml") | {"data-path": str(tmp_path / "gone.npz"), "device": "cuda"}
    (run / "config.toml").write_text(write_settings(gone), encoding="utf-8")
    code, _, err = command_line("release", run)
    assert code == 2
    assert "make it where they are, with -s data-path=" in err.splitlines()[-1]
    code, _, err = command_line("release", run, "-s", f"data-path={hidden}")
    assert code == 0, err


# As a measure


def test_usefulness_is_a_measure_of_a_run_where_it_is_asked_for(run: Path) -> None:
    assert not {row.metric for row in evaluate(run)} & {"tstr-f1", "tstr-recall"}
    change_measuring(run, {"tstr-seeds": 2})
    evaluate(run)
    rows = {(row.class_, row.metric): row.value for row in read_metrics(run, 3)}
    recalls = [rows[y, "tstr-recall"] for y in range(3)]
    assert rows["worst", "tstr-recall"] == min(recalls)
    assert rows["mean", "tstr-recall"] == pytest.approx(np.mean(recalls))
    assert 0 <= rows["all", "tstr-f1"] <= 1
    assert not math.isnan(rows["all", "tstr-f1"])


def test_usefulness_needs_a_test_part(tmp_path: Path) -> None:
    run = trained(tmp_path / "none", 8, 8, test=0)
    change_measuring(run, {"tstr-seeds": 2})
    with pytest.raises(UserError, match="no test part"):
        evaluate(run)
