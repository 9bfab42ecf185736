"""A class's network as a folder of diffusers: loaded and sampled by diffusers itself."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline

from fedmutual.config import RunConfig
from fedmutual.diffusion import make_process
from fedmutual.diffusion.sampling import sample
from fedmutual.errors import UserError
from fedmutual.settings import write_settings
from simulations.runs.export import export
from simulations.runs.networks import class_networks
from tests.support.federation import SMALL, LocalGrid, federate

pytestmark = pytest.mark.xdist_group("export")  # its fixtures are made once

UNET = {"network": "unet", "width": 8, "depth": 1, "multipliers": "1,2", "attention": "4", "dropout": 0.1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two classes, and its settings."""
    folder = tmp_path_factory.mktemp("unet")
    images = np.random.default_rng(0).integers(256, size=(60, 8, 8), dtype=np.uint8)
    np.savez(folder / "data.npz", images=images, labels=np.repeat([3, 7], 30))
    places = {"out": str(folder / "run"), "store": str(folder / "clients")}
    data = {"data": "npz", "data-path": str(folder / "data.npz"), "head-count": 10, "held-out": 5, "test": 5}
    config = RunConfig.of(SMALL, data, places, UNET)
    federate(config, LocalGrid(range(2)))
    return config


@pytest.fixture(scope="module")
def pipeline(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "seven"
    export(Path(run.federation.out), "7", folder)
    loaded = DDPMPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded, folder


def own(run):
    return class_networks(Path(run.federation.out), "last", torch.device("cpu"))[1][1]


def test_the_network_puts_out_what_ours_does(run, pipeline):
    draw = torch.Generator().manual_seed(0)
    x, t = torch.randn(6, 1, 8, 8, generator=draw), torch.tensor([0, 1, 5, 12, 20, 24])
    with torch.no_grad():
        theirs = pipeline[0].unet(x, t).sample
        ours = own(run)(x, t.float())
    assert ours.std() > 1e-3
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [25, 8])
def test_the_pipeline_draws_our_samples_from_the_same_noise(run, pipeline, steps):
    assert_same_samples(run, pipeline[0], "noise", steps)


def test_a_network_of_velocities_is_exported_as_such(run, tmp_path):
    shutil.copytree(run.federation.out, tmp_path / "run")
    (tmp_path / "run" / "config.toml").write_text(write_settings(run.settings() | {"parametrisation": "velocity"}))
    export(tmp_path / "run", "7", tmp_path / "seven")
    loaded = DDPMPipeline.from_pretrained(tmp_path / "seven")
    loaded.set_progress_bar_config(disable=True)
    assert_same_samples(run, loaded, "velocity", 25)


def assert_same_samples(run, pipeline, parametrisation, steps):
    images = pipeline(
        batch_size=5, generator=torch.Generator().manual_seed(1), num_inference_steps=steps, output_type="np"
    ).images
    draw = torch.Generator().manual_seed(1)
    options = {"parametrisation": parametrisation, "sampler": "ddpm", "steps": steps, "clip": True}
    ours = sample(own(run), make_process(run.diffusion), (1, 8, 8), 5, draw, **options)
    expected = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(images, expected, atol=1e-4)
    assert images.std() > 0.05


def test_the_scheduler_is_the_runs_and_can_be_exchanged(run, pipeline):
    loaded, _ = pipeline
    torch.testing.assert_close(
        loaded.scheduler.alphas_cumprod.double().sqrt(), make_process(run.diffusion).alpha.double()
    )
    assert loaded.scheduler.config.clip_sample is True
    quick = DDPMPipeline(loaded.unet, DDIMScheduler.from_config(loaded.scheduler.config))
    quick.set_progress_bar_config(disable=True)
    assert quick(batch_size=2, num_inference_steps=4, output_type="np").images.shape == (2, 8, 8, 1)


def test_the_card_says_what_it_is_and_what_it_may_give_away(run, pipeline):
    card = (pipeline[1] / "README.md").read_text()
    assert "of class 7 alone" in card
    assert "num_inference_steps=25" in card
    assert "can reproduce images that it was trained on" in card
    assert "beta = 3.0" in card
    assert run.data.path not in card
    assert run.federation.out not in card
    assert "training images" not in card, "a server that was not told the counts does not know them"


def test_a_number_names_a_class_too_and_an_empty_folder_will_do(run, tmp_path):
    (tmp_path / "empty").mkdir()
    export(Path(run.federation.out), "0", tmp_path / "empty", "1")
    assert "of class 3 alone" in (tmp_path / "empty" / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_what_diffusers_cannot_run_is_refused(run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="there already"):
        export(Path(run.federation.out), "3", tmp_path / "full")
    with pytest.raises(UserError, match="no class '9': there are 3, 7"):
        export(Path(run.federation.out), "9", tmp_path / "new")
    for changes, says in [
        ({"process": "ou"}, "needs process = ddpm"),
        ({"parametrisation": "score"}, "needs parametrisation = noise or velocity"),
    ]:
        copy = tmp_path / next(iter(changes))
        shutil.copytree(run.federation.out, copy)
        (copy / "config.toml").write_text(write_settings(run.settings() | changes))
        with pytest.raises(UserError, match=says):
            export(copy, "3", tmp_path / "new")
    for name, changes, says in [
        ("mlp", {"network": "mlp"}, "own U-Net.*network = mlp"),
        ("deep", {"multipliers": "1,1,1,1,1"}, "pads images of shape .*fewer levels"),
    ]:
        config = run.but(**changes, out=str(tmp_path / name), store=str(tmp_path / "clients"), rounds=1, local_steps=1)
        federate(config, LocalGrid(range(2)))
        with pytest.raises(UserError, match=says):
            export(Path(config.federation.out), "3", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_images_that_are_not_square_are_drawn_in_their_own_shape(tmp_path):
    images = np.random.default_rng(0).integers(256, size=(40, 8, 12), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.repeat([0, 1], 20))
    places = {"out": str(tmp_path / "run"), "store": str(tmp_path / "clients")}
    data = {"data": "npz", "data-path": str(tmp_path / "data.npz"), "head-count": 10, "held-out": 5, "test": 5}
    federate(RunConfig.of(SMALL, data, places, UNET), LocalGrid(range(2)))
    export(tmp_path / "run", "1", tmp_path / "exported")
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "exported")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(batch_size=1, num_inference_steps=2).images[0].size == (12, 8)
