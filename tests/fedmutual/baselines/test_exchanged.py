"""`pfdm` and `predictions`: what a client sends is all that others learn from it, and what it draws by."""

import pytest
import torch

from fedmutual.baselines import pfdm as module
from fedmutual.baselines.isolated import train_alone
from fedmutual.baselines.pfdm import Shared, build_split, pfdm, upload
from fedmutual.baselines.predictions import Composed, compose, exchanged, predictions
from fedmutual.data import ClassData
from fedmutual.diffusion import make_process
from fedmutual.errors import UserError
from fedmutual.learning.objective import denoised, denoising_loss, denoising_target, mutual_loss
from fedmutual.learning.peers import effective_beta
from fedmutual.networks.split import PRIVATE, PUBLISHED, sent
from fedmutual.privacy.versions import level_of
from fedmutual.seeds import generator
from tests.support.data import load_class
from tests.support.federation import assert_same

SHAPE = (1, 8, 8)
OUTPUTS = ["noise", "score", "velocity"]


@pytest.fixture
def data(small):
    return [load_class(small(), y) for y in range(10)]


@pytest.fixture
def split(small):
    def make(**changes):
        return small(publish="noise-split", beta=0.0, beta_rule="scarcity", **changes)

    return make


# The process from noised samples on


@pytest.mark.parametrize("process", ["ddpm", "ou"])
def test_what_is_noised_on_is_distributed_as_what_is_noised_at_once(small, process):
    """Mean a alpha_s = alpha_t and variance a² sigma_s² + b² = sigma_t², at each later time."""
    whole = make_process(small(process=process).diffusion, dtype=torch.float64)
    after = whole.after(7)
    torch.testing.assert_close(after.times, whole.times[8:])
    torch.testing.assert_close(after.alpha * whole.alpha[7], whole.alpha[8:])
    torch.testing.assert_close((after.alpha * whole.sigma[7]).square() + after.sigma.square(), whole.sigma[8:].square())
    low, high = whole.below(float(whole.times[8])), whole.above(float(whole.times[8]))
    torch.testing.assert_close(torch.cat([low.times, high.times]), whole.times)


@pytest.mark.parametrize("parametrisation", OUTPUTS)
def test_an_output_stands_for_the_sample_that_it_was_made_of(parametrisation):
    x0, noise = torch.randn(2, 5, 3, generator=generator(0), dtype=torch.float64)
    alpha, sigma = torch.tensor(0.6).double(), torch.tensor(0.8).double()
    target = denoising_target(parametrisation, x0, noise, alpha, sigma)
    torch.testing.assert_close(denoised(parametrisation, alpha * x0 + sigma * noise, target, alpha, sigma), x0)


@pytest.mark.parametrize("parametrisation", OUTPUTS)
def test_the_best_denoiser_of_noised_samples_becomes_the_best_of_the_samples(split, parametrisation):
    """x ~ N(0, v): z has the variance alpha_s² v + sigma_s², and the mean of xi given x_t = a z + b xi is b x_t /
    var(x_t). Scaled, it is the mean of the target made of x itself, in whatever the network puts out."""
    config = split(parametrisation=parametrisation, dtype="float64")
    whole, level, v = make_process(config.diffusion, dtype=torch.float64), level_of(config), 0.3
    after = whole.after(level)

    class Best(torch.nn.Module):
        def forward(self, x, t, y):
            a, b = (table[torch.searchsorted(after.times, t)][:, None] for table in (after.alpha, after.sigma))
            of_z = whole.alpha[level] ** 2 * v + whole.sigma[level] ** 2
            xi = b * x / (a**2 * of_z + b**2)
            return denoising_target(parametrisation, (x - b * xi) / a, xi, a, b)

    x, index = torch.tensor([[0.7], [-0.4]]).double(), torch.tensor([level + 1, len(whole) - 1])
    alpha, sigma = whole.alpha[index][:, None], whole.sigma[index][:, None]
    noise = sigma * x / (alpha**2 * v + sigma**2)
    expected = denoising_target(parametrisation, (x - sigma * noise) / alpha, noise, alpha, sigma)
    torch.testing.assert_close(Shared(Best(), 0, config)(x, whole.times[index]), expected)


# PFDM


def test_what_is_sent_is_noised_once_at_the_last_time_below_the_split_and_of_bounded_norm(split):
    config = split(split=0.4)
    process, level = make_process(config.diffusion), level_of(config)
    assert process.times[level] < 0.4 * 25 <= process.times[level + 1]
    samples = torch.cat([torch.full((1, *SHAPE), 0.5), torch.full((1, *SHAPE), 40.0)])
    z, other = (upload(config, samples, y, process) for y in (3, 4))
    noise = (z - upload(config, 0 * samples, 3, process)) / process.alpha[level]
    torch.testing.assert_close(noise, torch.cat([samples[:1], torch.ones(1, *SHAPE)]))  # 40 is scaled to norm 8
    assert not torch.allclose(z, other)


def test_the_server_learns_from_what_was_sent_alone(split, data, monkeypatch):
    """Other samples behind the same noised ones leave the shared denoiser as it was, bit for bit."""
    config = split()
    process = make_process(config.diffusion)
    sent_by = [upload(config, part.train, y, process) for y, part in enumerate(data)]
    first = pfdm(config, data).networks
    others = [ClassData(part.train.flip(0) * 0.5, part.held_out) for part in data]
    monkeypatch.setattr(module, "upload", lambda config, samples, y, process: sent_by[y])
    second = pfdm(config, others).networks
    assert_same({0: sent(first[3])}, {0: sent(second[3])})
    private = [{name: tensor for name, tensor in of[3].items() if name.startswith(PRIVATE)} for of in (first, second)]
    assert not torch.allclose(private[0]["private.inner.weight"], private[1]["private.inner.weight"], atol=1e-5)


def test_pfdm_has_one_network_for_high_noise_and_counts_what_is_sent(split, data):
    config = split(published_width=8)
    lines = []
    trained = pfdm(config, data, lambda round_, rows: lines.extend((round_, row) for row in rows))
    public = [sent(network) for network in trained.networks.values()]
    assert_same({y: network for y, network in enumerate(public)}, dict.fromkeys(range(10), public[0]))
    up = {(round_, row["class"]): row["bytes_up"] for round_, row in lines if "bytes_up" in row}
    assert up == {(1, y): 4 * 64 * len(part.train) for y, part in enumerate(data)}
    shared = sum(tensor.numel() for tensor in public[0].values())
    down = {(round_, row["class"]): row["bytes_down"] for round_, row in lines if "bytes_down" in row}
    assert down == {(2, y): 4 * shared for y in range(10)}
    own = sum(tensor.numel() for name, tensor in trained.networks[0].items() if name.startswith(PRIVATE))
    assert trained.facts["parameters"] == shared + 10 * own
    whole = build_split(config, SHAPE, 10, 2)
    whole.load_state_dict(trained.networks[2])
    x = torch.randn(6, *SHAPE, generator=generator(0))
    low, high = torch.full((6,), 2.0), torch.full((6,), 20.0)
    with torch.no_grad():
        torch.testing.assert_close(whole(x, low), whole.private(x, low))
        torch.testing.assert_close(whole(x, high), whole.published(x, high))
    assert all(name.startswith((PUBLISHED, PRIVATE)) for name in trained.networks[2])


def test_a_named_unet_may_be_shared_at_another_width(split):
    whole = build_split(split(network="unet-small", depth=1, published_width=8), SHAPE, 10, 0)
    sizes = [sum(parameter.numel() for parameter in part.parameters()) for part in (whole.published, whole.private)]
    assert sizes[0] < sizes[1] / 2


def test_a_split_below_all_training_times_is_refused(split):
    with pytest.raises(UserError, match=r"split = 1e-05 leaves no training time below it"):
        level_of(split(split=1e-5, process="ou"))


# Predictions


def test_what_is_drawn_by_minimises_the_mutual_objective_at_each_point(small):
    """lambda = 1, beta omega = 3 / 4 at t = 5 of 20: w = 3 / 7, between an own output of 2 and a peers' mean of 9."""
    config = small(beta=3.0, beta_rule="constant", diffusion_steps=25, dtype="float64")

    def constant(value):
        network = torch.nn.Module()
        network.forward = lambda x, t: torch.full_like(x, value)
        return network

    networks = {0: constant(2.0), 1: constant(8.0), 2: constant(10.0)}
    composed = compose(networks, [50, 4, 4], config, torch.device("cpu"))
    x, t = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([5.0], dtype=torch.float64)
    w = 0.6 / 1.6  # beta omega with omega = 5 / 25
    output = composed[0](x, t)
    torch.testing.assert_close(output, torch.full_like(x, 2 + w * 7))
    output.requires_grad_()
    pull = torch.tensor([3 * 5 / 25], dtype=torch.float64)
    own, mean, one = torch.full_like(x, 2.0), torch.full_like(x, 9.0), torch.ones(1, dtype=torch.float64)
    (denoising_loss(output, own, one) + mutual_loss(output, mean, pull)).sum().backward()
    torch.testing.assert_close(output.grad, torch.zeros_like(x), atol=1e-12, rtol=0)


def test_predictions_trains_as_isolated_and_a_class_of_many_samples_asks_less(small, data):
    config = small(beta=3.0, beta_rule="scarcity")
    trained = predictions(config, data)
    alone = {y: train_alone(config, data[y], y)[0].published() for y in (0, 9)}
    assert_same({y: trained.networks[y] for y in (0, 9)}, alone)
    networks = {y: torch.nn.Identity() for y in range(10)}
    counts = [len(part.train) for part in data]
    composed = compose(networks, counts, config, torch.device("cpu"))
    assert composed[0].share[-1] < composed[9].share[-1]
    beta = effective_beta(config.mutual, counts[9])
    torch.testing.assert_close(composed[9].share[-1], torch.tensor(beta * 24 / 25 / (1 + beta * 24 / 25)))
    none = compose(networks, counts, config.but(beta=0.0), torch.device("cpu"))
    assert isinstance(none[0], Composed)
    assert not none[0].share.any()


def test_bytes_of_predictions_are_those_of_each_step_of_each_sample(small):
    """3 classes draw 5 samples each in 25 steps: a client sends its own x_t and predictions at those of 2 others."""
    config = small(samples=5)
    assert exchanged(config, 3, torch.zeros(SHAPE)) == (1 + 2) * 5 * 25 * 64 * 4
    assert exchanged(config.but(sampling_steps=4), 3, torch.zeros(SHAPE)) == (1 + 2) * 5 * 4 * 64 * 4
