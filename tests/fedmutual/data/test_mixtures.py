"""Mixtures against scipy, autograd and quadrature."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from fedmutual.data.mixtures import MIXTURES, Disc, Mixture, case_one, line
from fedmutual.seeds import generator

CLASSES = [
    pytest.param(mixture, id=f"{name}-{y}")
    for name in ("case-one", "case-two", "overlap", "overlap-2d", "line-10")
    for y, mixture in enumerate(MIXTURES[name]()[:2])
]
UNEVEN = Mixture.of((0.7, (-1.0, 0.5, 2.0), 0.3), (0.2, (1.5, -2.0, 0.0), 2.0), (0.1, (0.0, 0.0, 4.0), 1.0))
ALL = [*CLASSES, pytest.param(UNEVEN, id="uneven-3d")]


def points(mixture: Mixture, count: int = 50) -> torch.Tensor:
    draw = torch.randn(count, mixture.dimension, dtype=torch.float64, generator=generator(0, "points"))
    return 4 * draw


@pytest.mark.parametrize("mixture", ALL)
def test_log_density_is_scipys(mixture):
    x = points(mixture)
    density = sum(
        weight * stats.multivariate_normal(mean.numpy(), variance.item()).pdf(x.numpy())
        for weight, mean, variance in zip(mixture.weights.tolist(), mixture.means, mixture.variances, strict=True)
    )
    np.testing.assert_allclose(mixture.log_density(x), np.log(density), rtol=1e-10)


@pytest.mark.parametrize("mixture", ALL)
def test_score_is_the_gradient_of_the_log_density(mixture):
    x = points(mixture).requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_density(x).sum(), x)
    torch.testing.assert_close(mixture.score(x.detach()), gradient, rtol=1e-10, atol=1e-12)


def test_score_and_log_density_stay_finite_far_out():
    x = torch.full((1, 3), 1e4, dtype=torch.float64)
    assert UNEVEN.log_density(x).isfinite().all()
    assert UNEVEN.score(x).isfinite().all()


def test_leading_batch_dimensions_are_kept():
    x = points(UNEVEN, 12)
    torch.testing.assert_close(UNEVEN.score(x.view(3, 4, 3)), UNEVEN.score(x).view(3, 4, 3))
    torch.testing.assert_close(UNEVEN.log_density(x.view(3, 4, 3)), UNEVEN.log_density(x).view(3, 4))


@pytest.mark.parametrize("mixture", ALL)
def test_samples_have_the_moments_of_the_mixture(mixture):
    count = 200_000
    x = mixture.sample(count, generator(0, "moments"))
    assert x.shape == (count, mixture.dimension)
    weights, means = mixture.weights[:, None], mixture.means
    mean = (weights * means).sum(0)
    second = (weights[..., None] * means[:, :, None] * means[:, None, :]).sum(0)
    covariance = second + (mixture.weights * mixture.variances).sum() * torch.eye(len(mean)) - mean.outer(mean)
    # Six standard errors of a mean; those of a covariance are below, fourth moments being at most thrice.
    error = 6 * covariance.diagonal().max().sqrt() / math.sqrt(count)
    assert (x.mean(0) - mean).abs().max() < error
    assert (x.T.cov() - covariance).abs().max() < 2 * error * covariance.diagonal().max().sqrt()


def test_samples_pass_a_kolmogorov_smirnov_test():
    (mixture, _) = MIXTURES["case-two"]()
    x = mixture.sample(20_000, generator(0, "ks")).flatten().numpy()

    def distribution(at):
        return (stats.norm.cdf(at, -4, math.sqrt(3)) + stats.norm.cdf(at, 4, math.sqrt(3))) / 2

    assert stats.kstest(x, distribution).pvalue > 1e-3


def test_samples_follow_the_generator():
    assert torch.equal(UNEVEN.sample(9, generator(1, "a")), UNEVEN.sample(9, generator(1, "a")))
    assert not torch.equal(UNEVEN.sample(9, generator(1, "a")), UNEVEN.sample(9, generator(2, "a")))


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.5), (0.6, 0.8), (0.1, 1.0)])
@pytest.mark.parametrize("name", ["case-two", "overlap"])
def test_diffused_density_is_the_convolution(name, alpha, sigma):
    for mixture in MIXTURES[name]():
        diffused = mixture.diffused(alpha, sigma)
        for x in (-5.0, -0.3, 0.0, 2.0):

            def integrand(x_0, x=x, mixture=mixture):
                density = mixture.log_density(torch.tensor([x_0], dtype=torch.float64)).exp().item()
                return density * stats.norm.pdf(x, alpha * x_0, sigma)

            expected, _ = integrate.quad(integrand, -20, 20, points=[-4, 0, 4], epsabs=1e-10, limit=200)
            density = diffused.log_density(torch.tensor([x], dtype=torch.float64)).exp().item()
            assert density == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_diffusing_twice_is_diffusing_once():
    twice = UNEVEN.diffused(0.8, 0.6).diffused(0.5, 0.9)
    once = UNEVEN.diffused(0.4, math.sqrt(0.25 * 0.36 + 0.81))
    torch.testing.assert_close(twice.means, once.means)
    torch.testing.assert_close(twice.variances, once.variances)


@pytest.mark.parametrize("name", MIXTURES)
def test_named_families_are_proper(name):
    family = MIXTURES[name]()
    assert len({mixture.dimension for mixture in family}) == 1
    for mixture in family:
        assert mixture.weights.sum().item() == pytest.approx(1)
        assert (mixture.variances > 0).all()
        assert len(mixture.weights) == len(mixture.means) == len(mixture.variances)


def test_named_families_are_the_papers():
    left, right = case_one(3.0, 0.5)
    assert (left.means.item(), right.means.item(), left.variances.item()) == (-3.0, 3.0, 0.5)
    two_bumps, one = MIXTURES["case-two"]()
    assert (two_bumps.means.flatten().tolist(), two_bumps.variances.tolist()) == ([-4.0, 4.0], [3.0, 3.0])
    assert (one.means.item(), one.variances.item()) == (0.0, 2.0)
    assert [mixture.means.item() for mixture in line(4, 2.0)] == [-3.0, -1.0, 1.0, 3.0]


def test_a_disc_is_filled_evenly_and_its_classes_are_made_one_by_one():
    disc = Disc(400, radius=2.0)
    distances = torch.stack([mixture.means[0].norm() for mixture in disc])
    for share in (0.25, 0.5, 0.75):  # of the area
        assert (distances <= 2.0 * share**0.5).double().mean() == pytest.approx(share, abs=0.01)
    means = torch.cat([mixture.means for mixture in disc])
    nearest = torch.cdist(means, means).fill_diagonal_(math.inf).amin(1)
    assert nearest.max() < 2.5 * nearest.min()
    assert len(disc) == len(disc[:]) == 400
    assert torch.equal(disc[3:5][1].means, disc[4].means)
    assert disc[0] is not disc[0]
    with pytest.raises(IndexError):
        disc[400]
