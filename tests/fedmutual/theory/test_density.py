"""The generated density against closed forms, and against samples of the exponential integrator."""

import math

import pytest
import torch

from fedmutual.data.mixtures import MIXTURES, Mixture
from fedmutual.theory.density import (
    Grid,
    bernoulli,
    divergence,
    exponential_samples,
    gaussian,
    generated_density,
    kl_divergence,
)
from simulations.game.world import World


def exact_score(mixtures):
    """The true scores of the classes, [classes, n]."""

    def score(x, t):
        alpha, sigma = math.exp(-t), math.sqrt(-math.expm1(-2 * t))
        return torch.stack([mixture.diffused(alpha, sigma).score(x[:, None])[:, 0] for mixture in mixtures])

    return score


def linear_score(x, t):
    """s = -a (x - c), with a and c constant in time, for two networks."""
    return torch.stack([-0.8 * (x - 0.5), -2.0 * (x + 1.0)])


def gaussian_kl(mean, variance, other_mean, other_variance):
    ratio = variance / other_variance
    return 0.5 * (ratio - 1 - math.log(ratio) + (mean - other_mean) ** 2 / other_variance)


def linear_flow(slope, centre, horizon):
    """dY = [Y - 2a (Y - c)] dtau + sqrt(2) dB from N(0, 1): mean and variance after `horizon`, in closed
    form."""
    rate = 1 - 2 * slope
    mean = 2 * slope * centre * math.expm1(rate * horizon) / rate
    growth = math.exp(2 * rate * horizon)
    return mean, growth + (growth - 1) / rate


@pytest.mark.parametrize(("member", "slope", "centre"), [(0, 0.8, 0.5), (1, 2.0, -1.0)])
def test_linear_score_generates_the_gaussian_of_its_closed_form(member, slope, centre):
    grid = Grid(cells=800, steps=800)
    mean, variance = linear_flow(slope, centre, grid.horizon - grid.stop)
    density = generated_density(linear_score, grid)[member]
    truth = gaussian(grid.centres, mean, variance)
    assert grid.width * (density - truth).abs().sum() < 5e-3
    assert kl_divergence(truth, density, grid) < 1e-5


def test_divergence_of_linear_scores_is_exact_to_its_error_estimate():
    truths = [Mixture.of((1.0, 0.3, 1.5)), Mixture.of((1.0, -1.5, 0.4))]
    result = divergence(linear_score, truths, Grid())
    for member, (slope, centre) in enumerate(((0.8, 0.5), (2.0, -1.0))):
        mean, variance = linear_flow(slope, centre, 2.0 - 1e-3)
        component = truths[member]
        expected = gaussian_kl(float(component.means), float(component.variances), mean, variance)
        assert result.kl[member] == pytest.approx(expected, abs=2e-3)
        assert abs(result.kl[member] - expected) <= result.error[member]


def test_exact_gaussian_score_started_from_the_prior_leaves_only_the_prior_error():
    # e = mean - alpha mu obeys de/dtau = (1 - 2/v) e with v the diffused variance, v' = 2 - 2v in t.
    truth, grid = Mixture.of((1.0, 1.5, 0.5)), Grid(cells=800, horizon=0.5)
    start, end = math.exp(-grid.horizon), math.exp(-grid.stop)
    variance_start, variance_end = (alpha**2 * 0.5 + 1 - alpha**2 for alpha in (start, end))
    carried = start / end * variance_end / variance_start
    mean = end * 1.5 + carried * (0.0 - start * 1.5)
    variance = variance_end + carried**2 * (1.0 - variance_start)
    expected = gaussian_kl(1.5, 0.5, mean, variance)
    assert expected > 0.1
    assert divergence(exact_score([truth]), [truth], grid).kl.item() == pytest.approx(expected, abs=1e-4)


def test_exact_score_started_from_the_diffused_truth_returns_the_truth():
    truths = MIXTURES["overlap"]()
    alpha, sigma = math.exp(-2.0), math.sqrt(-math.expm1(-4.0))

    def start(x):
        return torch.stack([mixture.diffused(alpha, sigma).log_density(x[:, None]).exp() for mixture in truths])

    assert (divergence(exact_score(truths), truths, Grid(), start).kl.abs() < 1e-3).all()


def test_mass_is_kept_and_density_positive_whatever_the_score():
    def wild(x, t):
        return torch.stack([40 * torch.sin(9 * x + t), 3 * x, -300 * x])

    grid = Grid(cells=100, steps=40)
    density = generated_density(wild, grid)
    assert (density >= 0).all()
    ones = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(density.sum(-1) * grid.width, ones, rtol=1e-9, atol=0)


def test_mass_that_meets_the_walls_is_reported():
    truths = [Mixture.of((1.0, 0.0, 1.0))] * 2
    result = divergence(lambda x, t: torch.stack([-x, 2 * x]), truths, Grid())
    assert result.edge[0] < 1e-12
    assert result.edge[1] > 0.5


def test_bernoulli_function_is_smooth_at_zero_and_symmetric():
    z = torch.tensor([-800.0, -3.0, -1e-6, 0.0, 1e-9, 2e-8, 5.0, 800.0], dtype=torch.float64)
    torch.testing.assert_close(bernoulli(-z), bernoulli(z) + z)
    assert bernoulli(z)[3] == 1
    assert bernoulli(z)[-1] == 0


@pytest.fixture(scope="module")
def trained():
    world = World.draw([1, 2], MIXTURES["overlap"](), [36, 14])
    betas = torch.tensor([0.0, 1.0], dtype=torch.float64)
    profiles = world.game(betas[:, None, None].expand(2, 1, 2)).equilibrium()
    return world, profiles


def test_density_is_that_of_many_samples(trained):
    world, profiles = trained
    tail, A = world.players.only(1), profiles[1, 0, 1]
    W, U = tail.W[0, 0], tail.U[0, 0]

    def score(x, t):
        return torch.relu(x @ W.mT + U[:, 0] * (t / 2.0) + U[:, 1]) @ A.mT / len(W)

    random = torch.Generator().manual_seed(0)
    times = torch.linspace(2.0, 1e-3, 201, dtype=torch.float64)
    x = torch.randn(20, 5000, 1, dtype=torch.float64, generator=random)

    def noise():
        return torch.randn(5000, 1, dtype=torch.float64, generator=random)

    samples = torch.cat([exponential_samples(score, part, times, noise) for part in x])[:, 0]
    grid = Grid(cells=1200, steps=600)
    density = generated_density(lambda x, t: score(x[:, None], t)[:, 0], grid)
    mass = density.unflatten(-1, (48, 25)).sum(-1) * grid.width
    share = torch.histogram(samples, torch.linspace(-12, 12, 49, dtype=torch.float64)).hist / len(samples)
    # 100,000 draws of the law itself are half a summed distance of about .005 away from it on these bins.
    assert (share - mass).abs().sum() / 2 < 0.01
    noise = (mass * (1 - mass) / len(samples)).sqrt()
    assert ((share - mass).abs() < 5 * noise + 1e-3).all()


def test_error_estimate_covers_the_distance_to_a_much_finer_grid(trained):
    world, profiles = trained
    usual, fine = (world.divergence(profiles, grid) for grid in (Grid(), Grid(cells=500, steps=300)))
    assert ((usual.kl - fine.kl).abs() <= usual.error + 1e-4).all()
    assert (usual.kl - fine.kl).abs().max() < 2e-3


def test_divergence_does_not_depend_on_the_batch(trained):
    world, profiles = trained
    alone = World.draw([2], world.truths, [36, 14])
    torch.testing.assert_close(
        world.divergence(profiles).kl[:, 1:], alone.divergence(profiles[:, 1:]).kl, rtol=1e-10, atol=0
    )
