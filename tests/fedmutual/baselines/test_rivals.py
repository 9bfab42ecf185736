"""The losses of rivals worked out by hand, and the laws that their methods keep."""

import math

import pytest
import torch

from fedmutual.baselines.ccua import alignment_loss, ccua
from fedmutual.baselines.coral import bottleneck_width, coral, supervised_contrast, time_weight, watch_bottleneck
from fedmutual.baselines.kernel_density import GRID, KernelDensity, kernel_density, log_likelihood
from fedmutual.baselines.pooled import pooled
from fedmutual.data import ClassData
from fedmutual.diffusion import make_process
from fedmutual.diffusion.sampling import sample
from fedmutual.errors import UserError
from fedmutual.networks import build_conditional
from fedmutual.seeds import generator
from tests.support.data import load_class
from tests.support.federation import assert_same

SHAPE = (1, 8, 8)


@pytest.fixture
def data(small):
    return [load_class(small(), y) for y in range(10)]


# CCUA


def test_alignment_is_the_weighted_square_and_moves_the_prediction_with_the_label_alone():
    """d = 2: ||(1,2) - (0,2)||² / 2 = 0.5 and ||(0,0) - (4,2)||² / 2 = 10, at t / T of 0.8 and 0.1."""
    output = torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    without = torch.tensor([[0.0, 2.0], [4.0, 2.0]], requires_grad=True)
    loss = alignment_loss(output, without, torch.tensor([0.8, 0.1]))
    torch.testing.assert_close(loss, torch.tensor([0.4, 1.0]))
    loss.sum().backward()
    torch.testing.assert_close(output.grad, torch.tensor([[0.8, 0.0], [-0.4, -0.2]]))
    assert without.grad is None


def test_ccua_publishes_the_labels_of_the_classes_and_alignment_pulls_them_together(small, data):
    def spread(alignment):
        config = small(alignment=alignment, local_steps=30)
        network = build_conditional(config, SHAPE, 10)
        network.load_state_dict(ccua(config, data).networks["shared"])
        x, t = torch.randn(64, *SHAPE, generator=generator(0)), torch.full((64,), 20.0)
        with torch.no_grad():
            return float(torch.stack([network(x, t, torch.full((64,), y)) for y in range(10)]).var(0).mean())

    assert spread(2.0) < 0.8 * spread(0.0)


# CORAL


def test_contrast_is_that_worked_out_by_hand():
    """Unit vectors at 0°, 60° and 90°, temperature 0.1; the last has no other of its label and is left out.

    The first pulls the second at log(e^5 / (e^5 + e^0)), the second the first at log(e^5 / (e^5 + e^(10 cos 30°))).
    """
    features = torch.tensor([[2.0, 0.0], [0.5, math.sqrt(0.75)], [0.0, 3.0]], dtype=torch.float64)
    labels = torch.tensor([4, 4, 7])
    first = math.log(1 + math.exp(-5))
    second = math.log(1 + math.exp(10 * math.cos(math.pi / 6) - 5))
    expected = torch.tensor((first + second) / 2, dtype=torch.float64)
    torch.testing.assert_close(supervised_contrast(features, labels), expected)
    alone = features.clone().requires_grad_()
    loss = supervised_contrast(alone, torch.tensor([1, 2, 3]))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(alone.grad, torch.zeros_like(alone))


def test_contrast_weighs_most_where_there_is_little_noise():
    t = torch.tensor([0.0, 50.0])
    assert time_weight(t, 100.0).item() == pytest.approx((math.exp(1 / 0.3) + math.exp(0.5 / 0.3)) / 2)


@pytest.mark.parametrize("settings", [{"network": "mlp"}, {"network": "unet", "multipliers": "1,2", "depth": 1}])
def test_the_bottleneck_is_seen_in_each_pass(small, settings):
    network = build_conditional(small(**settings), SHAPE, 10)
    features = watch_bottleneck(network)
    for batch in (2, 3):
        network(torch.randn(batch, *SHAPE), torch.full((batch,), 3.0), torch.zeros(batch, dtype=torch.long))
        assert features().shape == (batch, bottleneck_width(network))
    with pytest.raises(UserError, match="random features are not trained"):
        watch_bottleneck(build_conditional(small(network="random-features"), SHAPE, 10))


def test_coral_without_its_contrast_is_pooled_and_with_it_is_not(small, data):
    expected = pooled(small(), data).networks["shared"]
    without = coral(small(contrast=0.0), data).networks["shared"]
    assert_same({0: without}, {0: expected}, rtol=1e-4, atol=1e-6)
    shaped = coral(small(), data).networks["shared"]
    assert set(shaped) == set(expected)
    assert not torch.allclose(shaped["inner.weight"], expected["inner.weight"], atol=1e-5)


# Kernel density


def test_log_likelihood_is_that_of_a_mixture():
    """d = 2, two centres at (0,0) and (2,0), variances 1 and 4, at (1, 2): (e^-1 + e^-1) / 2 over 2 pi 2."""
    value = log_likelihood(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([1.0, 4.0]))
    assert value.item() == pytest.approx(-1.0 - math.log(4 * math.pi))


def test_the_denoiser_of_one_kernel_is_that_of_its_gaussian_in_any_axes(small):
    """x_0 given x is c + alpha C (alpha² C + sigma²)^-1 (x - alpha c)."""
    config = small(dtype="float64")
    process = make_process(config.diffusion, dtype=torch.float64)
    axes = torch.linalg.qr(torch.randn(3, 3, generator=generator(0), dtype=torch.float64))[0]
    centre, variances = torch.tensor([[0.3, -0.2, 0.5]], dtype=torch.float64), torch.tensor([0.5, 0.1, 0.02]).double()
    network = KernelDensity(centre, axes, variances, process, "noise")
    x, j = torch.randn(4, 3, generator=generator(1), dtype=torch.float64), 12
    alpha, sigma = process.alpha[j], process.sigma[j]
    covariance = axes @ variances.diag() @ axes.T
    gain = alpha * covariance @ (alpha**2 * covariance + sigma**2 * torch.eye(3)).inverse()
    x0 = centre + (x - alpha * centre) @ gain.T
    torch.testing.assert_close(network(x, process.times[[j] * 4]), (x - alpha * x0) / sigma)


def test_what_is_drawn_has_the_moments_of_the_kernels_and_the_denoiser_leads_there(small):
    config = small(diffusion_steps=200)
    process, axes = make_process(config.diffusion), torch.linalg.qr(torch.randn(3, 3, generator=generator(0)))[0]
    centre, variances = torch.tensor([[0.3, -0.2, 0.5]]), torch.tensor([0.5, 0.1, 0.02])
    network = KernelDensity(centre, axes, variances, process, "noise")
    options = {"parametrisation": "noise", "sampler": "ddpm", "clip": False}
    for drawn in (network.draw(4000, generator(1)), sample(network, process, (3,), 4000, generator(2), **options)):
        torch.testing.assert_close(drawn.mean(0), centre[0], atol=0.05, rtol=0)
        torch.testing.assert_close(drawn.T.cov(), axes @ variances.diag() @ axes.T, atol=0.03, rtol=0.05)
    several = KernelDensity(torch.eye(3), axes, torch.full((3,), 1e-8), process, "noise").draw(300, generator(3))
    assert torch.bincount(torch.cdist(several, torch.eye(3)).argmin(1)).min() > 60


def test_the_bandwidth_is_the_likeliest_on_held_out_samples(small, data):
    trained = kernel_density(small(), data)
    for y, likelihoods in enumerate(trained.facts["held_out_log_likelihoods"]):
        assert trained.facts["bandwidth_chosen"][y] == GRID[likelihoods.index(max(likelihoods))]
        centres = data[y].train.flatten(1).double() @ trained.networks[y]["axes"].double()
        points = data[y].held_out.flatten(1).double() @ trained.networks[y]["axes"].double()
        again = log_likelihood(points, centres, trained.networks[y]["variances"].double()).mean()
        assert again.item() == pytest.approx(max(likelihoods), rel=1e-4)
    without = [ClassData(part.train, part.held_out[:0]) for part in data]
    with pytest.raises(UserError, match="set held-out above 0"):
        kernel_density(small(), without)
