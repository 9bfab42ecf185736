"""Steps of DP-SGD: gradients of single samples, their clipped sum, the noise, the draws, and what an attack finds."""

import math

import numpy as np
import pytest
import torch
from opacus import GradSampleModule
from torch import nn

from fedmutual.config import RunConfig
from fedmutual.device import dtype_of
from fedmutual.diffusion import make_process
from fedmutual.evaluation.lower_bound import Guesses, epsilon_at_least
from fedmutual.learning import private_steps
from fedmutual.learning.batches import Batch, drawn
from fedmutual.learning.igd import local_steps
from fedmutual.learning.objective import denoising_loss, mutual_loss
from fedmutual.learning.peers import Peers, freeze
from fedmutual.learning.player import Player
from fedmutual.learning.private_steps import clipped, clipped_sum, gradients_of_samples, poisson
from fedmutual.networks import build
from fedmutual.privacy.dp_sgd import cost
from fedmutual.privacy.secret import KEY, SecretStream

BASE = {
    **{"publish": "dp-sgd", "keep": "last", "evaluate-every": 0, "local-steps": 4, "rounds": 1, "seed": 3},
    **{"diffusion-steps": 25, "width": 16, "depth": 2, "batch": 4, "noise-multiplicity": 3, "schedule": "constant"},
}


def config(**settings):
    return RunConfig.of(BASE, {key.replace("_", "-"): value for key, value in settings.items()})


def inputs(asked, shape=(1, 8, 8), samples=3, peers=1):
    """(network, batch of samples each with its draws, all numbers drawn)."""
    rng = torch.Generator().manual_seed(0)
    dtype = dtype_of(asked.compute)
    network, process = build(asked, shape, 0), make_process(asked.diffusion, dtype=dtype)
    with torch.no_grad():  # of an untrained U-Net many gradients are 0
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=rng, dtype=dtype))
    others = Peers(
        [freeze(build(asked, shape, y + 1), "none") for y in range(peers)], [1 / peers] * peers if peers else []
    )
    draws = asked.publishing.noise_multiplicity
    x0 = torch.randn(samples, *shape, generator=rng, dtype=dtype).repeat_interleave(draws, 0)
    flat = drawn(x0, others, process, asked, rng)
    return network, Batch._make(part if part is None else part.unflatten(0, (samples, draws)) for part in flat)


def one_by_one(network, batch, beta):
    """{parameter: [samples, *shape]} by a backward pass for each sample, its losses written out."""
    rows = []
    for i in range(len(batch.x)):
        network.zero_grad()
        output = network(batch.x[i], batch.t[i])
        loss = denoising_loss(output, batch.target[i], batch.denoising[i]).mean()
        if batch.peer_mean is not None:
            loss = loss + beta * mutual_loss(output, batch.peer_mean[i], batch.mutual[i]).mean()
        loss.backward()
        rows.append({name: parameter.grad.clone() for name, parameter in network.named_parameters()})
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def of_samples(network, batch, beta, asked):
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
    return gradients_of_samples(network, parameters, batch, beta, asked)[0]


@pytest.mark.parametrize(
    "settings", [{}, {"network": "random-features"}, {"network": "unet-small", "depth": 1, "dtype": "float64"}]
)
@pytest.mark.parametrize("peers", [0, 1])
def test_the_gradient_of_each_sample_is_that_of_its_own_backward_pass(settings, peers):
    """On diffusers' U-Net as well, with its convolutions, group norms and attention."""
    asked = config(**settings)
    network, batch = inputs(asked, peers=peers)
    found, wanted = of_samples(network, batch, 2.0, asked), one_by_one(network, batch, 2.0)
    assert found.keys() == wanted.keys() == dict(network.named_parameters()).keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-6)
    assert sum(float(gradient.abs().max()) > 1e-4 for gradient in found.values()) > 0.9 * len(found) - 1


def test_the_clipped_sum_is_that_of_opacus():
    """Of its GradSampleModule with functorch, one draw a sample, clipped as its DPOptimizer does."""
    asked = config(noise_multiplicity=1, clip=0.05)
    network, batch = inputs(asked, samples=5, peers=0)
    total, (own, pull) = clipped_sum(network, batch, 0.0, asked)
    theirs = GradSampleModule(network, batch_first=True, loss_reduction="sum", force_functorch=True)
    x, t, target, weight = (part.squeeze(1) for part in (batch.x, batch.t, batch.target, batch.denoising))
    losses = denoising_loss(theirs(x, t), target, weight)
    losses.sum().backward()
    samples = {name.removeprefix("_module."): p.grad_sample for name, p in theirs.named_parameters()}
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in samples.values()]).norm(dim=0)
    assert (norms > 0.05).any()
    factor = (0.05 / (norms + 1e-6)).clamp(max=1)
    for name, gradient in samples.items():
        torch.testing.assert_close(total[name], torch.tensordot(factor, gradient, dims=1), rtol=1e-4, atol=1e-7)
    assert float(own) == pytest.approx(float(losses.mean()), rel=1e-5)
    assert float(pull) == 0


def test_samples_taken_in_turn_give_the_same_sum(monkeypatch):
    asked = config()
    network, batch = inputs(asked, samples=5)
    whole = clipped_sum(network, batch, 1.0, asked)
    monkeypatch.setattr(private_steps, "AT_ONCE", 2 * sum(p.numel() for p in network.parameters()))
    torch.testing.assert_close(clipped_sum(network, batch, 1.0, asked), whole)


def test_no_sample_moves_the_sum_by_more_than_the_clip_not_even_one_that_is_not_finite():
    gradients = {"a": torch.randn(6, 4, 3) * 100, "b": torch.randn(6, 2)}
    gradients["a"][1] = torch.inf
    gradients["b"][2] = torch.nan
    gradients["a"][3] = 1e-3
    gradients["b"][3] = 1e-3
    whole = clipped(gradients, 0.5)
    for i in range(6):
        rest = clipped({name: torch.cat([g[:i], g[i + 1 :]]) for name, g in gradients.items()}, 0.5)
        moved = torch.cat([(whole[name] - rest[name]).flatten() for name in whole]).norm()
        if i in (1, 2):
            assert float(moved) == 0
        elif i == 3:
            assert float(moved) == pytest.approx(1e-3 * math.sqrt(14), rel=1e-3)
        else:
            assert float(moved) == pytest.approx(0.5, rel=1e-4)


def taken(asked, count, key=bytes(KEY)):
    data = torch.arange(count, dtype=torch.float32)[:, None] * 1000
    return list(
        poisson(
            data, Peers(), torch.zeros(asked.local_steps, 0), make_process(asked.diffusion), asked, SecretStream(key)
        )
    )


def test_each_sample_is_taken_with_its_probability_and_drawn_as_often_as_asked():
    asked = config(local_steps=400, batch=4, noise_multiplicity=3)
    steps = taken(asked, 20)
    sizes = [0 if step.batch is None else len(step.batch.x) for step in steps]
    assert np.mean(sizes) == pytest.approx(4, abs=0.4)
    assert np.var(sizes) == pytest.approx(20 * 0.2 * 0.8, rel=0.3)
    assert all(step.expected == 4 for step in steps)
    assert 0 < sizes.count(0) < 20  # (4/5)^20 = 1 % are empty
    for step in steps:
        if step.batch is not None:
            assert step.batch.x.shape[1:] == (3, 1)
            assert all(len(set(times.tolist())) <= 3 for times in step.batch.t)


def test_a_class_no_larger_than_a_batch_is_taken_whole():
    steps = taken(config(batch=32), 5)
    assert all(len(step.batch.x) == 5 and step.expected == 5 for step in steps)


def trained(asked, data, secret, steps=None):
    player = Player.start(build(asked, tuple(data.shape[1:]), 0), asked.optimiser)
    local_steps(player, data, Peers(), asked, make_process(asked.diffusion), 0, 1, secret=secret)
    return player


def test_without_samples_a_step_is_noise_of_the_deviation_that_was_asked():
    """Where one sample of 10000 is taken in the mean, a third of the batches is empty: SGD moves by noise alone."""
    asked = config(optimizer="sgd", learning_rate=1.0, noise_multiplier=2.0, clip=0.5, ema=0.0, batch=1, local_steps=1)
    data, process = torch.zeros(10000, 1, 8, 8), make_process(asked.diffusion)

    def is_empty(key):
        (step,) = poisson(data, Peers(), torch.zeros(1, 0), process, asked, SecretStream(key))
        return step.batch is None

    key = next(key for key in (bytes([i] * KEY) for i in range(50)) if is_empty(key))
    player, before = trained(asked, data, SecretStream(key)), build(asked, (1, 8, 8), 0)
    moved = torch.cat(
        [(a - b).detach().flatten() for a, b in zip(player.network.parameters(), before.parameters(), strict=True)]
    )
    assert float(moved.std()) == pytest.approx(2.0 * 0.5 / 1, rel=0.05)
    assert abs(float(moved.mean())) < 0.1


def test_the_same_stream_gives_the_same_network_and_another_another():
    asked, data = config(dtype="float32"), torch.randn(9, 1, 8, 8)
    one, same, other = (
        trained(asked, data, secret) for secret in (SecretStream(bytes(KEY)), SecretStream(bytes(KEY)), None)
    )
    for a, b, c in zip(one.average, same.average, other.average, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_noise_and_clip_of_none_are_mean_gradients():
    """With next to no noise and a clip that none reaches, one SGD step on a whole class is that of the mean loss."""
    asked = config(
        optimizer="sgd", learning_rate=0.1, noise_multiplier=1e-9, clip=1e6, batch=32, local_steps=1, ema=0.0
    )
    data = torch.randn(5, 1, 8, 8)
    process = make_process(asked.diffusion)
    (step,) = poisson(data, Peers(), torch.zeros(1, 0), process, asked, Replayed())
    network = build(asked, (1, 8, 8), 0)
    wanted = one_by_one(network, step.batch, 0.0)
    player = trained(asked, data, Replayed())
    for name, parameter in player.network.named_parameters():
        before = dict(network.named_parameters())[name]
        torch.testing.assert_close(parameter, before - 0.1 * wanted[name].mean(0), rtol=1e-3, atol=2e-4)


class Replayed(SecretStream):
    """A stream whose seeds are all the same, so that two passes draw the same times and noise."""

    def __init__(self):
        super().__init__(bytes(KEY))

    def seed(self):
        return 7


# An attack on the whole of it, which the claim must survive and a broken mechanism must not


class Counters(nn.Module):
    """One parameter for each sample that may be there: the i-th, a spike at place i, moves it alone, and downwards."""

    def __init__(self, size):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(size))

    def forward(self, x, t):
        spike = (x > 0.5 * x.max(1, keepdim=True).values).to(x)
        return (spike @ self.values)[:, None].expand_as(x)


def audited(settings, size=1000):
    """(lower bound, claim): which of `size` samples were there, each by a fair coin, is guessed from what is sent."""
    rng = np.random.default_rng(0)
    there = rng.integers(0, 2, size)
    data = 1e4 * torch.eye(size)[torch.from_numpy(there.nonzero()[0])]
    flat = {"parametrisation": "velocity", "optimizer": "sgd", "learning_rate": 1.0, "ema": 0.0, "clip": 0.01}
    asked = config(noise_multiplicity=1, **flat, **settings)
    player = Player.start(Counters(size), asked.optimiser)
    local_steps(player, data, Peers(), asked, make_process(asked.diffusion), 0, 1)
    scores = -player.network.values.detach().numpy()
    scores -= np.median(scores)
    sure = np.argsort(-abs(scores))[: size // 5]
    right = int(((scores[sure] > 0) == (there[sure] == 1)).sum())
    return epsilon_at_least(Guesses(size, len(sure), right), 1e-5), cost(asked, len(data), asked.local_steps).epsilon(
        1e-5
    )


ALL = {"batch": 1000, "local_steps": 8, "noise_multiplier": 4.0}
SOME = {"batch": 250, "local_steps": 16, "noise_multiplier": 3.0}


@pytest.mark.parametrize("settings", [ALL, SOME], ids=["all samples", "half of them"])
def test_an_attack_does_not_exceed_the_claim(settings):
    found, claimed = audited(settings)
    assert 0.3 < found < claimed < 4


@pytest.mark.parametrize("settings", [ALL, SOME], ids=["all samples", "half of them"])
def test_it_exceeds_the_claim_where_the_noise_is_off(settings, monkeypatch):
    monkeypatch.setattr(SecretStream, "normal", lambda self, *shape: torch.zeros(shape, dtype=torch.float64))
    found, claimed = audited(settings)
    assert found > claimed


def test_it_exceeds_the_claim_where_nothing_is_clipped(monkeypatch):
    def summed(gradients, limit):
        return {name: gradient.sum(0) for name, gradient in gradients.items()}

    monkeypatch.setattr(private_steps, "clipped", summed)
    found, claimed = audited(ALL)
    assert found > claimed
