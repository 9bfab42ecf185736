"""Measures against closed forms, hand-worked cases and the libraries that define them."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.metrics import fbeta_score
from sklearn.neighbors import NearestNeighbors
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from fedmutual.errors import UserError
from fedmutual.evaluation import (
    class_metrics,
    f_beta,
    frechet_distance,
    kernel_distance,
    memorisation,
    metrics,
    precision_recall,
    summarise,
)


def draw(count: int, dimension: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Correlated Gaussian samples, [count, dimension]."""
    random = np.random.default_rng(seed)
    return random.normal(size=(count, dimension)) @ random.normal(size=(dimension, dimension)) + shift


def moments(x: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(x.mean(0)), torch.tensor(np.atleast_2d(np.cov(x, rowvar=False)))


def with_moments(mean: np.ndarray, covariance: np.ndarray, seed: int) -> np.ndarray:
    """200 samples whose mean and unbiased covariance are exactly those given."""
    x = np.random.default_rng(seed).normal(size=(200, len(mean)))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False).reshape(len(mean), -1))).T
    return x @ np.linalg.cholesky(covariance).T + mean


# Fréchet distance


@pytest.mark.parametrize("dimension", [1, 2, 7])
def test_frechet_distance_is_that_of_torchmetrics_and_of_the_matrix_root(dimension: int) -> None:
    a, b = draw(60, dimension, 1), draw(45, dimension, 2, shift=0.5)
    (mean_a, cov_a), (mean_b, cov_b) = moments(a), moments(b)
    by_torchmetrics = float(_compute_fid(mean_a, cov_a, mean_b, cov_b))
    root = sqrtm(cov_a.numpy() @ cov_b.numpy())
    by_root = float((mean_a - mean_b).square().sum()) + np.trace((cov_a + cov_b).numpy() - 2 * root.real)
    assert frechet_distance(a, b) == pytest.approx(by_torchmetrics, rel=1e-10)
    assert frechet_distance(a, b) == pytest.approx(by_root, rel=1e-10)


def test_frechet_distance_of_commuting_gaussians_has_its_closed_form() -> None:
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    a = with_moments(np.zeros(3), rotation @ np.diag([1.0, 4.0, 9.0]) @ rotation.T, 1)
    b = with_moments(np.array([1.0, -2.0, 0.0]), rotation @ np.diag([4.0, 4.0, 1.0]) @ rotation.T, 2)
    assert frechet_distance(a, b) == pytest.approx(5 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2, rel=1e-12)


def test_frechet_distance_in_one_dimension_is_the_gap_of_means_and_deviations() -> None:
    a, b = np.array([0.0, 2.0]), np.array([5.0, 5.0, 8.0])
    expected = (1 - 6) ** 2 + (math.sqrt(2) - math.sqrt(3)) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_takes_rank_deficient_covariances() -> None:
    a, b = draw(6, 40, 3), draw(9, 40, 4)
    # The root of S_a S_b by another road: S_a^{1/2} is exact from an eigendecomposition of a symmetric matrix.
    (mean_a, cov_a), (mean_b, cov_b) = moments(a), moments(b)
    values, vectors = np.linalg.eigh(cov_a.numpy())
    half = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    overlap = np.sqrt(np.clip(np.linalg.eigvalsh(half @ cov_b.numpy() @ half), 0, None)).sum()
    expected = float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace()) - 2 * overlap
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_is_zero_to_itself_symmetric_and_blind_to_shape() -> None:
    a, b = draw(30, 12, 5), draw(20, 12, 6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)
    assert frechet_distance(a.reshape(30, 3, 2, 2), b.reshape(20, 3, 2, 2)) == frechet_distance(a, b)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_one_sample_has_no_distance(distance) -> None:
    with pytest.raises(UserError, match="2 or more"):
        distance(np.zeros((1, 3)), np.zeros((5, 3)))


def test_samples_that_diverged_or_differ_in_dimension_are_refused() -> None:
    with pytest.raises(UserError, match="finite"):
        frechet_distance(np.array([[0.0], [np.nan]]), np.zeros((2, 1)))
    with pytest.raises(UserError, match="dimension"):
        kernel_distance(np.zeros((3, 2)), np.zeros((3, 4)))


# Kernel distance


def test_kernel_distance_is_that_of_torchmetrics() -> None:
    a, b = draw(40, 5, 7), draw(40, 5, 8, shift=0.3)
    assert kernel_distance(a, b) == pytest.approx(float(poly_mmd(torch.tensor(a), torch.tensor(b))), rel=1e-10)


def test_kernel_distance_of_unequal_counts_is_the_mean_over_pairs() -> None:
    a, b = draw(4, 2, 9), draw(3, 2, 10)

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (sum(p * q for p, q in zip(x, y, strict=True)) / 2 + 1) ** 3

    within_a = sum(kernel(a[i], a[j]) for i in range(4) for j in range(4) if i != j) / 12
    within_b = sum(kernel(b[i], b[j]) for i in range(3) for j in range(3) if i != j) / 6
    between = sum(kernel(x, y) for x in a for y in b) / 12
    assert kernel_distance(a, b) == pytest.approx(within_a + within_b - 2 * between, rel=1e-12)


# Precision and recall


def naive_coverage(x: np.ndarray, manifold: np.ndarray, k: int) -> float:
    distances, _ = NearestNeighbors(n_neighbors=k).fit(manifold).kneighbors()  # without the point itself
    inside = [
        any(np.linalg.norm(p - q) <= radius for q, radius in zip(manifold, distances[:, -1], strict=True)) for p in x
    ]
    return sum(inside) / len(inside)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_recall_is_that_of_a_naive_nearest_neighbour_search(k: int) -> None:
    generated, reference = draw(50, 3, 11), draw(35, 3, 12, shift=1.0)
    precision, recall = precision_recall(generated, reference, k)
    assert precision == naive_coverage(generated, reference, k)
    assert recall == naive_coverage(reference, generated, k)
    assert 0 < precision < 1
    assert 0 < recall < 1


def test_precision_recall_of_points_on_a_line() -> None:
    # k = 1: real radii 1, 1, 2 cover [-1, 2] and [1, 5]; generated radii 1, 1, 91 cover [0, 3] and [-82, 100].
    reference, generated = np.array([0.0, 1.0, 3.0]), np.array([1.0, 2.0, 9.0])
    assert precision_recall(generated, reference, k=1) == (2 / 3, 1.0)
    # The edge of a ball belongs to it.
    assert precision_recall(np.array([-1.0, 5.0, 5.5]), reference, k=1)[0] == 2 / 3


def test_precision_sees_infidelity_and_recall_sees_lost_variety() -> None:
    real = draw(60, 2, 13)
    assert precision_recall(real + 1000, real) == (0.0, 0.0)
    assert precision_recall(real, real) == (1.0, 1.0)
    one_mode = real[:1] + 1e-6 * draw(60, 2, 14)
    precision, recall = precision_recall(one_mode, real)
    assert precision == 1.0
    assert recall < 0.1


def test_a_manifold_of_no_more_than_k_samples_is_undefined() -> None:
    precision, recall = precision_recall(draw(3, 2, 15), draw(10, 2, 16), k=3)
    assert not math.isnan(precision)
    assert math.isnan(recall)
    assert math.isnan(f_beta(precision, recall))


def test_distances_in_blocks_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    generated, reference = draw(50, 3, 11), draw(35, 3, 12)
    whole = class_metrics(generated, reference, reference)
    monkeypatch.setattr(metrics, "_BLOCK", 100)
    assert class_metrics(generated, reference, reference) == pytest.approx(whole, rel=1e-12)


def test_f8_is_the_f_beta_of_its_precision_and_recall() -> None:
    truth, predicted = [1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 1, 1]  # precision 3/5, recall 3/4
    assert f_beta(3 / 5, 3 / 4) == pytest.approx(fbeta_score(truth, predicted, beta=8), rel=1e-12)
    assert f_beta(0.5, 0.5) == pytest.approx(0.5)
    assert f_beta(0.0, 0.0) == 0.0


# Memorisation


def test_memorisation_by_hand() -> None:
    train = np.array([0.0, 4.0, 100.0])
    # Distances to nearest and second nearest: 0.9 | 3.1, 1 | 3 (a third exactly: not below it), 2 | 2, 0 | 4.
    assert memorisation(np.array([0.9, 1.0, 2.0, 4.0]), train) == 2 / 4
    assert memorisation(np.array([0.9, 1.0, 2.0, 4.0]), train, ratio=0.5) == 3 / 4


def test_memorisation_is_that_of_a_nearest_neighbour_search() -> None:
    train, generated = draw(40, 2, 17), draw(300, 2, 18)
    distances, _ = NearestNeighbors(n_neighbors=2).fit(train).kneighbors(generated)
    expected = (distances[:, 0] < distances[:, 1] / 3).mean()
    assert 0 < expected < 1
    assert memorisation(generated, train) == expected


def test_a_planted_memoriser_is_found() -> None:
    train, fresh = draw(50, 64, 19), np.random.default_rng(20).normal(size=(80, 64))
    copies = train[:20] + 1e-3 * np.random.default_rng(21).normal(size=(20, 64))
    assert memorisation(np.concatenate([copies, fresh]), train) == 20 / 100


def test_a_copy_counts_even_of_a_sample_that_occurs_twice() -> None:
    train = np.repeat(draw(5, 6, 22), 2, axis=0)
    assert memorisation(train[:3], train) == 1.0


def test_memorisation_needs_two_training_samples() -> None:
    assert math.isnan(memorisation(draw(5, 2, 23), draw(1, 2, 24)))


# All of a class, and the worst of the classes


def test_class_metrics_are_the_single_ones_and_say_how_many_samples() -> None:
    generated, reference, train = draw(30, 4, 25), draw(20, 4, 26), draw(10, 4, 27)
    measured = class_metrics(generated.reshape(30, 1, 2, 2), reference.reshape(20, 1, 2, 2), train)
    precision, recall = precision_recall(generated, reference)
    assert measured == {
        "fd": frechet_distance(generated, reference),
        "kid": kernel_distance(generated, reference),
        "precision": precision,
        "recall": recall,
        "f8": f_beta(precision, recall),
        "memorisation": memorisation(generated, train),
        "n_reference": 20,
        "n_generated": 30,
    }


def test_class_metrics_without_real_samples_are_nan() -> None:
    measured = class_metrics(draw(30, 4, 28), np.empty((0, 4)), draw(1, 4, 29))
    undefined = {key for key, value in measured.items() if math.isnan(value)}
    assert undefined == {"fd", "kid", "precision", "recall", "f8", "memorisation"}


@pytest.mark.parametrize(("metric", "worst"), [("fd", 2), ("kid", 2), ("memorisation", 2), ("recall", 0)])
def test_the_worst_class_follows_the_direction_of_the_metric(metric: str, worst: int) -> None:
    values = {0: 0.1, 1: 0.2, 2: 0.6, 3: math.nan}
    assert summarise(metric, values) == (worst, values[worst], pytest.approx(0.3))


def test_no_value_has_no_worst_class_and_an_unknown_metric_no_direction() -> None:
    assert summarise("fd", {0: math.nan})[0] is None
    with pytest.raises(UserError, match="unknown metric"):
        summarise("beauty", {0: 1.0})
