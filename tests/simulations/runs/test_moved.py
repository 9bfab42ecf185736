"""A run on another machine: without its data, from another folder, without the GPU that it was trained on."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from fedmutual.config import RunConfig
from fedmutual.errors import UserError
from fedmutual.settings import read_settings, write_settings
from simulations.runs.measuring import evaluate
from simulations.runs.networks import run_config
from simulations.runs.peer_gain import weigh_peers
from simulations.runs.sampling import draw_samples
from tests.support.federation import SMALL, LocalGrid, federate

pytestmark = pytest.mark.xdist_group("moved")  # its fixture is made once


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(the run, where its data are now): both were moved after the training, and the settings speak of a GPU."""
    folder = tmp_path_factory.mktemp("moved")
    images = np.random.default_rng(0).integers(0, 256, (90, 8, 8), dtype=np.uint8)
    np.savez(folder / "data.npz", images=images, labels=np.arange(90) % 3)
    places = {"out": str(folder / "run"), "store": str(folder / "clients"), "data-path": str(folder / "data.npz")}
    config = RunConfig.of(SMALL, places, {"data": "npz", "head-count": 10, "held-out": 5, "test": 10, "samples": 12})
    federate(config, LocalGrid(range(3)))
    (folder / "data.npz").rename(folder / "hidden.npz")
    run = folder / "elsewhere" / "run"
    shutil.copytree(folder / "run", run)
    settings = read_settings(run / "config.toml") | {"device": "cuda"}
    (run / "config.toml").write_text(write_settings(settings), encoding="utf-8")
    return run, folder / "hidden.npz"


def test_samples_need_no_data_and_no_gpu(moved: tuple[Path, Path]) -> None:
    drawn = draw_samples(moved[0], 4)
    assert {y: tuple(samples.shape) for y, samples in drawn.items()} == dict.fromkeys(range(3), (4, 1, 8, 8))


def test_measures_find_the_data_where_they_are_now(moved: tuple[Path, Path]) -> None:
    run, data = moved
    with pytest.raises(UserError, match="missing: set data-path"):
        evaluate(run)
    assert evaluate(run, here={"data-path": str(data)})
    assert weigh_peers(run, here={"data-path": str(data)})
    assert read_settings(run / "config.toml")["data-path"] != str(data)


def test_what_was_trained_cannot_change(moved: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match="beta cannot change in a finished run"):
        run_config(moved[0], {"beta": 3.0})


def test_paths_are_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = RunConfig.of({"data": "npz", "data-path": "data.npz", "extractor": "e-{seed}.safetensors"})
    whole = config.with_whole_paths()
    assert (whole.data.path, whole.measuring.extractor, whole.federation.store) == (
        str(tmp_path / "data.npz"),
        str(tmp_path / "e-{seed}.safetensors"),
        "",
    )
