"""Distances between generated and real samples: arrays in, numbers out.

Every function takes samples as `[n, d]` or `[n, *dims]` (flattened to `[n, d]`), works in float64 and works on
whatever the arrays hold: data itself, or the features of an extractor. A measure that its samples leave
undefined is nan.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, logsumexp

from fedmutual.errors import UserError
from fedmutual.evaluation.registry import METRICS

Array = NDArray[np.float64]

_BLOCK = 2**22  # numbers held at once while distances are computed


def _flat(samples: ArrayLike) -> Array:
    """`[n, *dims]` as finite float64 `[n, d]`."""
    array = np.asarray(samples, dtype=np.float64)
    array = array.reshape(len(array), -1) if array.size else np.empty((len(array), 0))
    if not np.isfinite(array).all():
        raise UserError("samples hold values that are not finite: the network that drew them diverged")
    return array


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    first, second = _flat(a), _flat(b)
    if len(first) and len(second) and first.shape[1] != second.shape[1]:
        raise UserError(f"samples differ in dimension: {first.shape[1]} and {second.shape[1]}")
    return first, second


def _at_least_two(a: Array, b: Array) -> None:
    if min(len(a), len(b)) < 2:
        raise UserError(f"a distance between samples needs 2 or more on each side, not {len(a)} and {len(b)}")


def _root(x: Array) -> Array:
    """R: [min(n, d), d] with R^T R the unbiased covariance of `x: [n, d]`."""
    centred: Array = (x - x.mean(0)) / math.sqrt(len(x) - 1)
    if len(x) <= x.shape[1]:
        return centred
    root: Array = np.linalg.qr(centred, mode="r")  # type: ignore[assignment]
    return root


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """||mu_a - mu_b||² + tr(S_a + S_b - 2 (S_a S_b)^{1/2}), with the unbiased covariances of the samples.

    The Fréchet distance of the two Gaussians with the samples' moments (Dowson and Landau, 1982). With roots
    S_a = A^T A and S_b = B^T B the trace of (S_a S_b)^{1/2} is the sum of the singular values of A B^T, so
    rank-deficient covariances cost no accuracy and no complex part can arise. Not the FID, which is this
    distance in the features of one particular network. Tested against `torchmetrics.image.fid._compute_fid`,
    `scipy.linalg.sqrtm` and the closed form.

    Raises:
        UserError: fewer than two samples on a side, different dimensions, or values that are not finite.
    """
    a, b = _pair(a, b)
    _at_least_two(a, b)
    root_a, root_b = _root(a), _root(b)
    overlap = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    means = np.square(a.mean(0) - b.mean(0)).sum()
    distance = means + np.square(root_a).sum() + np.square(root_b).sum() - 2 * overlap
    return max(0.0, float(distance))  # rounding can leave -1e-16 between equal samples


def kernel_distance(a: ArrayLike, b: ArrayLike) -> float:
    """The kernel distance (KID): the unbiased estimate of MMD² with the kernel (x·y / d + 1)³.

    Bińkowski et al., 2018; all samples at once, no subsets. Unbiased, so it can fall below 0 and can be compared
    between classes of different size. Tested against `torchmetrics.image.kid.poly_mmd`.

    Raises:
        UserError: fewer than two samples on a side, different dimensions, or values that are not finite.
    """
    a, b = _pair(a, b)
    _at_least_two(a, b)

    def kernel(products: Array) -> Array:
        values: Array = (products / a.shape[1] + 1) ** 3
        return values

    def mean(x: Array, y: Array) -> float:
        step = max(1, _BLOCK // len(y))
        sums = (float(kernel(x[i : i + step] @ y.T).sum()) for i in range(0, len(x), step))
        return sum(sums) / (len(x) * len(y))

    def mean_of_pairs(x: Array) -> float:  # of two different samples
        return (len(x) * mean(x, x) - float(kernel(np.square(x).sum(1)).mean())) / (len(x) - 1)

    return mean_of_pairs(a) + mean_of_pairs(b) - 2 * mean(a, b)


def _squared_distances(a: Array, b: Array) -> Iterator[tuple[slice, Array]]:
    """||a_i - b_j||² a block of rows of `a` at a time: (rows, [rows, len(b)])."""
    step = max(1, _BLOCK // max(len(b), 2 * b.shape[1], 1))
    norms = np.square(b).sum(1)
    for start in range(0, len(a), step):
        rows = slice(start, start + step)
        block = np.square(a[rows]).sum(1)[:, None] + norms - 2 * a[rows] @ b.T
        yield rows, np.maximum(block, 0)


def _coverage(x: Array, manifold: Array, k: int) -> float:
    """Share of `x` inside the balls around `manifold`'s points that reach to their k-th nearest neighbour."""
    if len(manifold) <= k or not len(x):
        return math.nan
    # A point is its own nearest neighbour, so that the k-th other one stands at place k.
    radii = np.concatenate(
        [np.partition(block, k, axis=1)[:, k] for _, block in _squared_distances(manifold, manifold)]
    )
    inside = [(block <= radii).any(1) for _, block in _squared_distances(x, manifold)]
    return float(np.concatenate(inside).mean())


def precision_recall(generated: ArrayLike, reference: ArrayLike, k: int = 3) -> tuple[float, float]:
    """Precision: share of generated samples on the real manifold; recall: share of real ones on the generated.

    Kynkäänniemi et al., 2019: a manifold is the union of balls around its samples, each as wide as the distance
    to the k-th nearest other sample. nan where a manifold has no more than k samples. Tested against
    `sklearn.neighbors.NearestNeighbors`.

    Raises:
        UserError: different dimensions, or values that are not finite.
    """
    generated, reference = _pair(generated, reference)
    return _coverage(generated, reference, k), _coverage(reference, generated, k)


def f_beta(precision: float, recall: float, beta: float = 8.0) -> float:
    """F_beta = (1 + beta²) p r / (beta² p + r), Sajjadi et al., 2018; beta = 8 weighs recall, i.e. variety.

    0 when both are 0. Tested against `sklearn.metrics.fbeta_score`.
    """
    if precision == recall == 0:
        return 0.0
    return (1 + beta**2) * precision * recall / (beta**2 * precision + recall)


class Nearest(NamedTuple):
    """The two training samples that are nearest to each of n samples: `rows: [n, 2]` and `distances: [n, 2]`.

    The second distance is infinite, and its row the first's, where there is one training sample alone.
    """

    rows: NDArray[np.int64]
    distances: Array

    @property
    def ratios(self) -> Array:
        """First distance over second, [n]: 0 for an exact copy, and where there is no second."""
        first, second = self.distances.T
        ratios: Array = np.divide(first, second, out=np.zeros_like(first), where=second > 0)
        return ratios


def two_nearest(samples: ArrayLike, train: ArrayLike) -> Nearest:
    """The nearest and the second nearest of `train`, by Euclidean distance, for each of `samples`.

    A training sample that occurs twice is its own second. Tested against `sklearn.neighbors.NearestNeighbors`.

    Raises:
        UserError: no training sample, different dimensions, or values that are not finite.
    """
    samples, train = _pair(samples, train)
    if not len(train):
        raise UserError("there is no training sample to be near to")
    rows, distances = np.zeros((len(samples), 2), np.int64), np.full((len(samples), 2), np.inf)
    two = min(2, len(train))
    for block_rows, block in _squared_distances(samples, train):
        nearest = np.argpartition(block, two - 1, axis=1)[:, :two]
        # Differences first: a copy is at distance 0, which the expanded square above misses by rounding.
        exact = np.linalg.norm(samples[block_rows, None] - train[nearest], axis=2)
        order = exact.argsort(axis=1, kind="stable")
        rows[block_rows, :two] = np.take_along_axis(nearest, order, axis=1)
        distances[block_rows, :two] = np.take_along_axis(exact, order, axis=1)
    if two == 1:
        rows[:, 1] = rows[:, 0]
    return Nearest(rows, distances)


def near_copies(distances: Array, ratio: float = 1 / 3) -> NDArray[np.bool_]:
    """Which samples nearly copy a training sample, [n], from `Nearest.distances`.

    The l2-ratio criterion of Yoon et al., 2023, and Gu et al., 2023: the nearest is less than `ratio` times as far as
    the second. An exact copy always counts, also of a training sample that occurs twice; where there is no second,
    nothing else does.
    """
    first, second = distances.T
    copies: NDArray[np.bool_] = (np.isfinite(second) & (first < ratio * second)) | (first == 0)
    return copies


def memorisation(generated: ArrayLike, train: ArrayLike, ratio: float = 1 / 3) -> float:
    """Share of generated samples that are `near_copies` of a training sample.

    nan without a generated or with fewer than two training samples. Tested against
    `sklearn.neighbors.NearestNeighbors`.

    Raises:
        UserError: different dimensions, or values that are not finite.
    """
    generated, train = _pair(generated, train)
    if len(train) < 2 or not len(generated):
        return math.nan
    return float(near_copies(two_nearest(generated, train).distances, ratio).mean())


def inception_score(logits: ArrayLike, splits: int = 10) -> float:
    """exp E_x KL(p(y | x) || E_x p(y | x)), from a classifier's `logits: [n, classes]` of generated samples.

    Salimans et al., 2016: the mean over `splits` parts of the set. Every `splits`-th sample goes to the same
    part, so that samples that come sorted by class spread evenly. From 1, where all samples look like one class
    or like none, to the number of classes. nan with fewer samples than parts. Tested against
    `torchmetrics.image.inception.InceptionScore`.

    Raises:
        UserError: values that are not finite.
    """
    logits = _flat(logits)
    if len(logits) < splits:
        return math.nan
    log_p = log_softmax(logits, axis=1)
    scores = []
    for part in (log_p[first::splits] for first in range(splits)):
        marginal = logsumexp(part, axis=0) - math.log(len(part))
        scores.append(math.exp((np.exp(part) * (part - marginal)).sum(1).mean()))
    return sum(scores) / splits


def set_metrics(generated: ArrayLike, reference: ArrayLike) -> dict[str, float]:
    """fd, kid, precision, recall and f8 of two sets; nan for what too few samples leave undefined.

    Raises:
        UserError: different dimensions, or values that are not finite.
    """
    generated, reference = _pair(generated, reference)
    enough = min(len(generated), len(reference)) >= 2
    precision, recall = precision_recall(generated, reference)
    return {
        "fd": frechet_distance(generated, reference) if enough else math.nan,
        "kid": kernel_distance(generated, reference) if enough else math.nan,
        "precision": precision,
        "recall": recall,
        "f8": f_beta(precision, recall),
    }


def class_metrics(generated: ArrayLike, reference: ArrayLike, train: ArrayLike) -> dict[str, float]:
    """Every measure of one class in data space: `set_metrics`, memorisation, n_reference, n_generated.

    `generated`, `reference` (real samples that no training saw) and `train` are `[n, *dims]` of one shape.

    Raises:
        UserError: different dimensions, or values that are not finite.
    """
    return {
        **set_metrics(generated, reference),
        "memorisation": memorisation(generated, train),
        "n_reference": float(len(_flat(reference))),
        "n_generated": float(len(_flat(generated))),
    }


class ClassSummary(NamedTuple):
    """The worst class with its value, and the mean over classes."""

    worst_class: int | None
    worst: float
    mean: float


def summarise(metric: str, by_class: Mapping[int, float]) -> ClassSummary:
    """The worst class and the mean of `metric`; a class where it is undefined (nan) is left out of both.

    The first of equally bad classes; (None, nan, nan) when no class has a value.

    Raises:
        UserError: a metric for which better and worse are not known.
    """
    if metric not in METRICS or not METRICS[metric].of_a_class:
        raise UserError(f"unknown metric {metric!r}: no saying which class is worst")
    known = {y: value for y, value in by_class.items() if not math.isnan(value)}
    if not known:
        return ClassSummary(None, math.nan, math.nan)
    worst = (max if METRICS[metric].larger_is_worse else min)(known, key=lambda y: known[y])
    return ClassSummary(worst, known[worst], sum(known.values()) / len(known))
