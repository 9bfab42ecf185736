"""Features of images: of a classifier trained here, or of the literature's Inception network.

Measures in features are named after the features. Those of a classifier trained here are `fd-features`,
`kid-features` and so on, and compare nothing but runs measured by the same file. The names `fid` and `is` are
kept for the one network that the literature's numbers were made with, known by the SHA-256 of its weights.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedmutual.checkpoint import CheckpointError, load, save
from fedmutual.config import RunConfig
from fedmutual.data import class_names, open_source, sample_shape
from fedmutual.errors import UserError
from fedmutual.evaluation.classifier import Classifier, classify, fit, steps_for
from fedmutual.evaluation.metrics import Array, frechet_distance, inception_score, set_metrics
from fedmutual.evaluation.registry import Space, name_in
from fedmutual.seeds import derive

INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of the weights that pytorch-fid and torch-fidelity publish as *inception-2015-12-05-6726825d.pth, converted
from the TensorFlow graph of Heusel et al., 2017."""

SEEN = 0.01
"""Share of a run's test images that its extractor may have been trained on: the duplicates of a data set."""


class Features(NamedTuple):
    """What a network sees in n images: features [n, d], and logits [n, classes] of its own classes."""

    features: Array
    logits: Array

    @classmethod
    def joined(cls, parts: Sequence["Features"]) -> "Features":
        """The features of all parts, one after the other."""
        return cls(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


@dataclass(frozen=True)
class Extractor:
    """A network that turns images [n, *dims] into `Features`, and the names of the measures in them.

    network: images to (features, logits); space: which features they are, by which the registry names measures;
    facts: what a report must say about it, its file and SHA-256 among them; trained_on: `fingerprints` of images.
    """

    network: Callable[[Tensor], tuple[Tensor, Tensor]]
    space: Space
    facts: Mapping[str, Any]
    device: torch.device
    trained_on: frozenset[int] = frozenset()

    @torch.no_grad()
    def __call__(self, images: Tensor, batch: int = 256) -> Features:
        """The features of `images`, float in [-1, 1]; at least one."""
        outputs = [self.network(part.to(self.device, torch.float32)) for part in torch.split(images, batch)]
        return Features.joined([Features(*(out.double().cpu().numpy() for out in pair)) for pair in outputs])

    def metrics(self, generated: Features, reference: Features) -> dict[str, float]:
        """Fréchet and kernel distance, precision, recall and F8 in features; the first as `frechet` has it."""
        measured = set_metrics(generated.features, reference.features)
        if _too_few(generated, reference):
            measured["fd"] = math.nan
        return {self.name(metric): value for metric, value in measured.items()}

    def frechet(self, generated: Features, reference: Features) -> float:
        """The Fréchet distance in features; nan where either side has no more samples than features.

        Its covariance is then singular, and the number tells the sample size. The kernel distance is unbiased
        there too.
        """
        if _too_few(generated, reference):
            return math.nan
        return frechet_distance(generated.features, reference.features)

    def set_metrics(self, generated: Features, reference: Features) -> dict[str, float]:
        """`metrics` of all classes together, as the literature has them, and their inception score.

        The score of one class alone says nothing: it is 1 where every sample shows that class.
        """
        return {**self.metrics(generated, reference), self.name("is"): inception_score(generated.logits)}

    def name(self, metric: str) -> str:
        """What `metric` is called in these features."""
        return name_in(metric, self.space)

    def check_unseen(self, images: Tensor) -> None:
        """Raises `UserError` where the extractor was trained on more than `SEEN` of the test images `images`."""
        seen = sum(mark in self.trained_on for mark in fingerprints(images))
        if seen > SEEN * len(images):
            raise UserError(
                f"the extractor was trained on {seen} of {len(images)} images of this run's test part: train one "
                f"with this run's seed (`fedmutual extractor PRESET -s seed=N`), and name it extractor-{{seed}}"
            )


def extractor_path(config: RunConfig) -> Path:
    """The file that the setting `extractor` names; `{seed}` in it stands for the run's seed."""
    return Path(config.measuring.extractor.replace("{seed}", str(config.seed))).expanduser()


def read_extractor(config: RunConfig, device: torch.device) -> Extractor | None:
    """The extractor of the setting `extractor`; None where it is empty.

    Raises:
        UserError: no such file, a damaged one, one of other images or classes, or weights that are not the
            literature's.
    """
    if not config.measuring.extractor:
        return None
    path = extractor_path(config)
    if not path.is_file():
        raise UserError(f"extractor = {path} is missing: train one with `fedmutual extractor PRESET --out FILE`")
    if path.suffix == ".pth":
        return _inception(path, sample_shape(config.data), device)
    return _trained(path, sample_shape(config.data), class_names(config.data), device)


def _too_few(a: Features, b: Features) -> bool:
    return bool(min(len(a.features), len(b.features)) <= a.features.shape[1])


# A classifier trained here


class Training:
    """An extractor for the settings' data, to be saved at `path`.

    It learns from the balanced training part: every class counts the same, as many images as the smallest class
    has, no long tail applied. The test part only tells its accuracy, which the file records.

    Raises:
        UserError: no images, no test part, or a file that is there already; raised here, before it takes time.
    """

    def __init__(self, config: RunConfig, path: Path, device: torch.device):
        if path.exists():
            raise UserError(f"{path} is there already, and runs may be measured by it: name another file with --out")
        self.config, self.path, self.device = config, path, device
        self.shape, self.names = sample_shape(config.data), class_names(config.data)
        if len(self.shape) != 3 or len(self.names) < 2:
            raise UserError(f"an extractor needs images of two classes or more, and {config.data.source} has none")
        source = open_source(config.data, config.seed, keep=True)
        self.test = [source.test(y) for y in range(len(self.names))]
        if not all(map(len, self.test)):
            raise UserError("there is no test part to tell the extractor's accuracy by: set test, such as test=65")

    def run(self, on_percent: Callable[[int], None] = lambda done: None) -> dict[str, Any]:
        """Train and save; what the file says of itself, and its SHA-256."""
        images, labels = _balanced(self.config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self.config.seed, "extractor"))
            network = Classifier(self.shape[0], len(self.names)).to(self.device)
            steps = steps_for(len(images), self.config.measuring.extractor_steps)
            fit(network, images.to(self.device), labels.to(self.device), steps, on_percent)
        right = [int((classify(network, part.to(self.device)) == y).sum()) for y, part in enumerate(self.test)]
        meta = {
            "data": self.config.data.source,
            "seed": self.config.seed,
            "shape": list(self.shape),
            "class_names": self.names,
            "training_images": len(images),
            "steps": steps,
            "test_images": sum(map(len, self.test)),
            "accuracy": sum(right) / sum(map(len, self.test)),
        }
        save(self.path, {**network.state_dict(), "trained-on": torch.tensor(fingerprints(images))}, meta)
        return {**meta, "file": str(self.path), "sha256": _sha256(self.path)}


def _balanced(config: RunConfig) -> tuple[Tensor, Tensor]:
    """(images [n, *dims], labels [n]) with equally many training images of each class."""
    everything = config.but(imbalance="none", counts="", head_count=0)
    least = min(open_source(everything.data, config.seed).counts)
    source = open_source(everything.but(head_count=least).data, config.seed, keep=True)
    parts = [source.train(y) for y in range(len(source.names))]
    labels = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor([len(part) for part in parts]))
    return torch.cat(parts), labels


def _trained(path: Path, shape: tuple[int, ...], names: list[str], device: torch.device) -> Extractor:
    try:
        tensors, meta = load(path)
    except CheckpointError as error:
        raise UserError(str(error)) from None
    if meta.keys() < {"shape", "class_names", "accuracy"} or "trained-on" not in tensors:
        raise UserError(f"{path} is no extractor: train one with `fedmutual extractor PRESET --out FILE`")
    if tuple(meta["shape"]) != shape:
        raise UserError(f"{path} was trained on images of shape {meta['shape']}, and this run's are {list(shape)}")
    if meta["class_names"] != names:
        raise UserError(f"{path} was trained on other classes ({', '.join(meta['class_names'])}) than this run's")
    marks = frozenset(tensors.pop("trained-on").tolist())
    network = Classifier(shape[0], len(names))
    network.load_state_dict(tensors)
    facts = {"file": path.name, "sha256": _sha256(path), **{key: meta[key] for key in meta if key != "class_names"}}
    network.to(device).eval().requires_grad_(False)
    return Extractor(network, "features", facts, device, marks)


def fingerprints(images: Tensor) -> list[int]:
    """A 63-bit mark of each image, by which it is known again."""
    digests = (hashlib.blake2b(image.numpy().tobytes(), digest_size=8).digest() for image in images.cpu())
    return [int.from_bytes(digest, "big") >> 1 for digest in digests]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# The literature's


def _inception(path: Path, shape: tuple[int, ...], device: torch.device) -> Extractor:
    """torch-fidelity's port of the network that FID (Heusel et al., 2017) and the inception score are defined by.

    Features are the 2048 of its last pooling, logits those of 1008 classes without bias. Images become bytes,
    (x + 1) 127.5 rounded, and grey ones three equal channels; the network scales them to 299x299 as TensorFlow did.
    """
    sha256 = _sha256(path)
    if sha256 != INCEPTION_SHA256:  # before it is read: a .pth is a pickle, which may run code
        raise UserError(
            f"{path} is not the literature's Inception (its SHA-256 begins with {sha256[:8]}, not "
            f"{INCEPTION_SHA256[:8]}), so that no number from it may be called FID: use the published "
            f"weights-inception-2015-12-05-6726825d.pth, or an extractor of your own"
        )
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UserError(f"the Inception network takes grey and colour images, not samples of shape {list(shape)}")
    try:
        from torch_fidelity import FeatureExtractorInceptionV3
    except ImportError:
        raise UserError("the Inception network needs torch-fidelity: pip install 'fedmutual[inception]'") from None
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], str(path)).to(device)

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        features, logits = network(pixels.expand(-1, 3, -1, -1))
        return features, logits

    facts = {"file": path.name, "sha256": sha256}
    return Extractor(run, "inception", facts, device)
