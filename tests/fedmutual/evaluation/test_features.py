"""Features of images: the classifier that is trained here, the literature's Inception, and the measures in both."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch_fidelity import FeatureExtractorInceptionV3
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import poly_mmd

from fedmutual.checkpoint import load
from fedmutual.config import RunConfig
from fedmutual.data import class_names
from fedmutual.errors import UserError
from fedmutual.evaluation import features, inception_score
from fedmutual.evaluation.features import Features, Training, fingerprints, read_extractor
from simulations.runs.folder import read_run
from simulations.runs.measuring import change_measuring, evaluate
from tests.support.data import load_class, load_test
from tests.support.federation import federate

pytestmark = pytest.mark.xdist_group("features")  # its fixtures are made once

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The digits extractor of seed 0, as trained, and what the training says of it."""
    path = tmp_path_factory.mktemp("extractor") / "digits-0.safetensors"
    percent = []
    facts = Training(RunConfig(), path, CPU).run(percent.append)
    assert percent[-1] == 100
    assert percent == sorted(percent)
    return path, facts


def test_the_classifier_tells_digits_it_has_not_seen(trained):
    path, facts = trained
    assert facts["accuracy"] > 0.95
    assert (facts["training_images"], facts["test_images"]) == (890, 650)
    tensors, meta = load(path)
    assert meta["accuracy"] == facts["accuracy"]
    extractor = read_extractor(RunConfig().but(extractor=str(path)), CPU)
    right = [extractor(load_test(RunConfig(), y)).logits.argmax(1) == y for y in range(10)]
    assert np.concatenate(right).mean() == facts["accuracy"]
    assert facts["sha256"] == extractor.facts["sha256"]
    assert len(tensors["trained-on"]) == 890


def test_it_is_trained_on_as_many_of_each_class_and_on_no_image_of_the_test_part(trained):
    marks = read_extractor(RunConfig().but(extractor=str(trained[0])), CPU).trained_on
    balanced = RunConfig().but(imbalance="none", head_count=89)
    train = [fingerprints(load_class(balanced, y).train) for y in range(10)]
    assert [len(part) for part in train] == [89] * 10
    assert {mark for part in train for mark in part} == marks
    assert not any(mark in marks for y in range(10) for mark in fingerprints(load_test(RunConfig(), y)))


def test_the_same_seed_trains_the_same_network(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        Training(RunConfig().but(seed=seed, extractor_steps=3), tmp_path / name, CPU).run()
    (a, meta_a), (b, meta_b), (c, _) = (load(tmp_path / name) for name in "abc")
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert meta_a == meta_b
    assert not torch.equal(a["head.weight"], c["head.weight"])


def test_real_digits_are_near_real_digits_and_noise_is_far(trained):
    extractor = read_extractor(RunConfig().but(extractor=str(trained[0])), CPU)
    test, held = (
        Features.joined([extractor(read(y)) for y in range(10)])
        for read in (lambda y: load_test(RunConfig(), y), lambda y: load_class(RunConfig(), y).held_out)
    )
    noise = extractor(torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    real, far = extractor.set_metrics(held, test), extractor.set_metrics(noise, test)
    assert set(real) == {f"{name}-features" for name in ("fd", "kid", "precision", "recall", "f8", "is")}
    assert real["fd-features"] < far["fd-features"] / 5
    assert real["kid-features"] < far["kid-features"] / 5
    assert real["is-features"] > 8 > 2 * far["is-features"]


def test_an_extractor_of_other_images_classes_or_nothing_is_refused(trained, tmp_path):
    path, _ = trained
    points = {"data": "gaussians", "head-count": 10}
    cases = [
        ({"extractor": str(tmp_path / "none")}, "missing"),
        ({"extractor": str(path), **points}, "shape"),
        ({"extractor": str(path), "data": "fashion-mnist"}, "shape"),
    ]
    for settings, says in cases:
        with pytest.raises(UserError, match=says):
            read_extractor(RunConfig.of(settings), CPU)
    images = tmp_path / "letters.npz"
    np.savez(images, images=np.zeros((40, 8, 8), np.uint8), labels=np.repeat([0, 1], 20))
    letters = RunConfig().but(extractor=str(path), data="npz", data_path=str(images), held_out=2, test=4)
    with pytest.raises(UserError, match="other classes"):
        read_extractor(letters, CPU)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match="damaged"):
        read_extractor(RunConfig().but(extractor=str(damaged)), CPU)
    with pytest.raises(UserError, match="there already"):
        Training(RunConfig(), path, CPU)
    with pytest.raises(UserError, match="images of two classes"):
        Training(RunConfig.of(points), tmp_path / "points", CPU)
    with pytest.raises(UserError, match="no test part"):
        Training(RunConfig().but(test=0), tmp_path / "untested", CPU)


def test_an_extractor_that_has_seen_the_test_part_is_refused(trained, small):
    """Digits are split by the seed, so that another seed's test images are this one's training images."""
    config = small(seed=1, samples=20)
    federate(config)
    with pytest.raises(UserError, match=r"trained on \d\d\d of 650 images of this run's test part.*seed=N"):
        change_measuring(Path(config.federation.out), {"extractor": str(trained[0])})
    assert 'extractor = ""' in (Path(config.federation.out) / "config.toml").read_text()


def test_a_run_is_measured_in_features(trained, small, monkeypatch):
    path, facts = trained
    monkeypatch.chdir(path.parent)
    config = small(samples=70)
    federate(config)
    folder = Path(config.federation.out)
    without = evaluate(folder)
    change_measuring(folder, {"extractor": "digits-{seed}.safetensors"})
    monkeypatch.chdir("/")  # the run has kept a path that holds from any folder
    calls = []
    rows = evaluate(folder, on_class=calls.append)
    assert calls == [*range(10), *range(10)]
    names = {row["metric"] for row in rows}
    in_features = {f"{name}-features" for name in ("fd", "kid", "precision", "recall", "f8")}
    assert names == {row["metric"] for row in without} | in_features | {"is-features"}
    values = {(row["class"], row["metric"]): row["value"] for row in rows}
    assert values["worst", "fd-features"] == max(values[y, "fd-features"] for y in range(10))
    assert values["all", "n_generated"] == 700
    assert values["all", "n_reference"] == 650
    assert {metric for y, metric in values if y == "all"} == in_features | {"is-features", "n_reference", "n_generated"}
    assert (0, "is-features") not in values
    assert json.loads((folder / "run.json").read_text())["extractor"]["sha256"] == facts["sha256"]
    assert read_run(folder).scores("fd-features")[3] == values[3, "fd-features"]
    for row in without:  # what is measured in data space is what it was
        assert values[row["class"], row["metric"]] == pytest.approx(row["value"], nan_ok=True)
    with pytest.raises(UserError, match="beta is no setting of measuring"):
        change_measuring(folder, {"beta": 0})


def test_the_frechet_distance_needs_more_samples_than_features(trained):
    extractor = read_extractor(RunConfig().but(extractor=str(trained[0])), CPU)
    random = np.random.default_rng(0)
    enough, few = (Features(random.normal(size=(n, 64)), random.normal(size=(n, 10))) for n in (65, 64))
    assert math.isnan(extractor.metrics(few, enough)["fd-features"])
    assert math.isnan(extractor.metrics(enough, few)["fd-features"])
    assert not math.isnan(extractor.metrics(enough, enough)["fd-features"])
    assert not math.isnan(extractor.metrics(few, few)["kid-features"])


def test_classes_that_a_source_names_are_the_ones_in_the_file(trained):
    assert load(trained[0])[1]["class_names"] == class_names(RunConfig().data)


# Against torchmetrics, on the same features


def test_fd_features_and_kid_features_are_torchmetrics_on_the_same_features(trained):
    extractor = read_extractor(RunConfig().but(extractor=str(trained[0])), CPU)
    real = torch.cat([load_test(RunConfig(), y)[:20] for y in range(10)])
    fake = real + 0.3 * torch.randn(real.shape, generator=torch.Generator().manual_seed(1))

    class OnlyFeatures(nn.Module):
        num_features = 64

        def forward(self, images):
            return extractor.network(images)[0]

    theirs = FrechetInceptionDistance(feature=OnlyFeatures()).set_dtype(torch.float64)
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    ours = extractor.metrics(extractor(fake), extractor(real))
    assert ours["fd-features"] == pytest.approx(float(theirs.compute()), rel=1e-3)
    pair = (torch.tensor(extractor(images).features) for images in (fake, real))
    assert ours["kid-features"] == pytest.approx(float(poly_mmd(*pair)), rel=1e-6)


@pytest.mark.parametrize("splits", [1, 10])
def test_the_inception_score_is_torchmetrics(splits):
    logits = 3 * torch.randn(100, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    theirs = InceptionScore(feature=nn.Identity(), splits=splits)
    theirs.update(logits)
    torch.manual_seed(3)
    expected, _ = theirs.compute()  # shuffles, and takes consecutive parts
    torch.manual_seed(3)
    shuffled = logits[torch.randperm(100)]
    by_turns = shuffled.view(splits, 100 // splits, 7).transpose(0, 1).reshape(100, 7)
    assert inception_score(by_turns, splits) == pytest.approx(float(expected), rel=1e-9)


def test_the_inception_score_runs_from_one_to_the_number_of_classes():
    sure = 100 * np.eye(5)[np.repeat(np.arange(5), 20)]  # sorted by class, as samples of a federation come
    assert inception_score(sure) == pytest.approx(5)
    assert inception_score(np.zeros((100, 5))) == pytest.approx(1)
    assert inception_score(sure[:20]) == pytest.approx(1)
    assert math.isnan(inception_score(sure[:9]))


# The literature's Inception


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A state of the Inception network as its file holds one, but of random numbers."""
    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "none.pth")

    class Drawn(FeatureExtractorInceptionV3):
        def load_state_dict(self, state):  # keeps what was drawn
            pass

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Drawn("drawn", ["2048"], str(folder / "none.pth"))
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
    path = folder / "weights-inception-2015-12-05-6726825d.pth"
    torch.save(network.state_dict(), path)
    return path


def test_weights_that_are_not_the_literatures_make_no_fid(weights):
    with pytest.raises(UserError, match=r"not the literature's Inception.*not 6726825d.*no number .* FID"):
        read_extractor(RunConfig().but(extractor=str(weights)), CPU)


def test_the_check_comes_before_the_file_is_read(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"no pickle at all")
    with pytest.raises(UserError, match="not the literature's"):
        read_extractor(RunConfig().but(extractor=str(tmp_path / "weights.pth")), CPU)


@pytest.mark.parametrize("channels", [1, 3])
def test_inception_features_are_torchmetrics(weights, monkeypatch, tmp_path, channels):
    monkeypatch.setattr(features, "INCEPTION_SHA256", hashlib.sha256(weights.read_bytes()).hexdigest())
    pixels = torch.randint(256, (5, channels, 16, 16), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    archive = tmp_path / "images.npz"
    np.savez(archive, images=np.zeros((2, 16, 16, 3) if channels == 3 else (2, 16, 16), np.uint8), labels=[0, 1])
    extractor = read_extractor(RunConfig().but(data="npz", data_path=str(archive), extractor=str(weights)), CPU)
    seen = extractor(pixels / 127.5 - 1)
    for layer, ours in (("2048", seen.features), ("logits_unbiased", seen.logits)):
        theirs = NoTrainInceptionV3("theirs", [layer], str(weights), antialias=False)
        expected = theirs(pixels.expand(-1, 3, -1, -1)).double().numpy()
        assert expected.std() > 1e-3
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    measured = extractor.set_metrics(seen, seen)
    assert set(measured) == {"fid", "is", *(f"{name}-inception" for name in ("kid", "precision", "recall", "f8"))}
    assert math.isnan(measured["fid"]), "5 images do not fix 2048 features"
    assert extractor.facts["sha256"] == features.INCEPTION_SHA256
