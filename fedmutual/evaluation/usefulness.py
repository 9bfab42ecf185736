"""What samples are good for: a classifier learns from them and is tested on real ones that no training saw.

*Train on synthetic, test on real* (TSTR, Esteban et al., 2017; the classification accuracy score of Ravuri and Vinyals,
2019), beside classifiers that learn from what there is without samples.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmutual.evaluation.classifier import classifier_for, classify, fit, steps_for
from fedmutual.seeds import derive

STEPS = 1500
"""Gradient steps of a classifier at most: minutes on a core for images of 28x28, seconds for 8x8 digits."""

Parts = Mapping[int, Tensor]
"""{class: its samples [n, *dims]}."""


class Scores(NamedTuple):
    """How well a classifier tells classes apart; `recall: [classes]`, nan for a class without a real sample."""

    accuracy: float
    macro_f1: float
    recall: NDArray[np.float64]


def scores(predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> Scores:
    """Accuracy; the mean of 2 hits / (predicted + real) over the classes; hits / real of each class.

    Classes without a real sample are left out of the mean. Tested against `sklearn.metrics.f1_score` and
    `recall_score`.
    """
    hits, real, named = (
        np.bincount(which, minlength=classes).astype(float)
        for which in (labels[predicted == labels], labels, predicted)
    )
    with np.errstate(invalid="ignore"):
        recall = hits / real
    f1 = 2 * hits[real > 0] / (named + real)[real > 0]
    return Scores(float((predicted == labels).mean()), float(f1.mean()), recall)


def lifted(real: Parts, drawn: Parts) -> dict[int, Tensor]:
    """Real samples and, for each class, as many of its `drawn` ones as lift it to the largest class, or all it has."""
    most = max(map(len, real.values()))
    empty = next(iter(real.values()))[:0]
    return {y: torch.cat([part, drawn.get(y, empty)[: most - len(part)]]) for y, part in real.items()}


def repeated(real: Parts, sizes: Mapping[int, int]) -> dict[int, Tensor]:
    """Real samples, each class repeated to its size: what balance alone gives, without a drawn sample."""
    return {y: part[torch.arange(sizes[y]) % len(part)] if len(part) else part for y, part in real.items()}


def training_sets(real: Parts, drawn: Parts) -> dict[str, dict[int, Tensor]]:
    """What classifiers learn from, by the names under which they are reported.

    synthetic (TSTR): the drawn samples alone; real (TRTR); both: `lifted`; repeated: real ones, in the numbers of
    `both`.
    """
    both = lifted(real, drawn)
    sizes = {y: len(part) for y, part in both.items()}
    return {"synthetic": dict(drawn), "real": dict(real), "both": both, "repeated": repeated(real, sizes)}


def train_and_test(
    sets: Mapping[str, Parts],
    test: Parts,
    classes: int,
    seeds: Sequence[int],
    device: torch.device,
    on_percent: Callable[[int], None] = lambda done: None,
) -> dict[str, list[Scores]]:
    """{name: the scores on `test` of a classifier for each seed}, all of them trained for as many steps.

    The steps are those of the largest set, so that no set is ahead by its size alone. A set in which there are fewer
    than two samples trains nothing and has no scores.
    """
    steps = steps_for(max(sum(map(len, parts.values())) for parts in sets.values()), STEPS)
    usable = {name: parts for name, parts in sets.items() if sum(map(len, parts.values())) > 1}
    x, labels = _joined(test)
    found: dict[str, list[Scores]] = {name: [] for name in sets}
    runs = [(name, seed) for seed in seeds for name in usable]
    for done, (name, seed) in enumerate(runs):

        def advance(percent: int, done: int = done) -> None:
            on_percent((100 * done + percent) // len(runs))

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "usefulness"))  # the same start and order for every set of a seed
            network = classifier_for(tuple(x.shape[1:]), classes).to(device)
            samples, own = _joined(usable[name])
            fit(network, samples.to(device), own.to(device), steps, advance)
        predicted = classify(network, x.to(device)).cpu().numpy()
        found[name].append(scores(predicted, labels.numpy(), classes))
    return found


def _joined(parts: Parts) -> tuple[Tensor, Tensor]:
    """(samples [n, *dims] in float32, labels [n])."""
    labels = torch.repeat_interleave(torch.tensor(list(parts)), torch.tensor([len(part) for part in parts.values()]))
    return torch.cat([part.float() for part in parts.values()]), labels
