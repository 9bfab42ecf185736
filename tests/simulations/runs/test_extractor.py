"""`extractor = train`: one is trained into the folder of the run or of the comparison, and found there again."""

from pathlib import Path

from fedmutual.config import RunConfig
from fedmutual.run_folder import read_facts
from fedmutual.settings import read_settings
from simulations.engine.simulation import Simulation
from simulations.runs.extractor import extractor_to_train, with_own_extractor
from tests.simulations.engine.test_incomplete import train_here


def test_simulate_trains_it_and_measures_in_its_features(tmp_path: Path, command_line, monkeypatch) -> None:
    monkeypatch.setattr(Simulation, "_start_flower", train_here(lambda order, reply: reply))
    run = tmp_path / "run"
    asked = ("-s", "extractor=train", "-s", "extractor-steps=3", "-s", "samples=70")
    code, printed, error = command_line("simulate", "smoke", *asked, "--out", run)
    assert code == 0, error
    assert "test images classified correctly" in error
    assert printed.split()[:5] == ["class", "training", "images", "fd-features", "fd"]
    file = read_settings(run / "config.toml")["extractor"]
    assert file == str(run / "extractor-{seed}.safetensors")
    assert (run / "extractor-0.safetensors").exists()
    assert read_facts(run).extractor["accuracy"] > 0
    assert read_facts(run).extractor["steps"] == 3
    code, _, error = command_line("evaluate", run, "-s", "extractor=train")
    assert (code, "classified" in error) == (0, False)  # it is there


def test_an_extractor_in_another_folder_is_not_trained(tmp_path: Path) -> None:
    config = RunConfig.of({"extractor": str(tmp_path / "other" / "extractor.safetensors")})
    assert with_own_extractor(config, tmp_path) is config
    assert extractor_to_train(config, tmp_path) is None


def test_data_with_a_test_part_have_one_extractor_for_all_seeds(tmp_path: Path) -> None:
    import numpy as np

    images, labels = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 2
    parts = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels}
    np.savez(tmp_path / "data.npz", **parts)
    config = RunConfig.of({"data": "npz", "data-path": str(tmp_path / "data.npz"), "extractor": "train"})
    assert with_own_extractor(config, tmp_path).measuring.extractor == str(tmp_path / "extractor.safetensors")
    digits = RunConfig.of({"extractor": "train"})
    assert with_own_extractor(digits, tmp_path).measuring.extractor == str(tmp_path / "extractor-{seed}.safetensors")
