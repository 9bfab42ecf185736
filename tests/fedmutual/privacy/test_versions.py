"""Noised versions: what they cost, what is learnt from them, and that nothing else of the samples is."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fedmutual.config import RunConfig
from fedmutual.diffusion import make_process
from fedmutual.errors import UserError
from fedmutual.learning.batches import make_batch
from fedmutual.learning.igd import local_steps
from fedmutual.learning.peers import Peers
from fedmutual.learning.player import Player
from fedmutual.networks import build
from fedmutual.networks.split import PUBLISHED
from fedmutual.privacy import versions
from fedmutual.privacy.cost import gaussian_epsilon
from fedmutual.privacy.secret import SecretStream
from fedmutual.privacy.versions import Versions, cost, draw_versions, scaled_down, secret_normal, sent_epsilon

SHAPE = (1, 2, 2)


def config(**settings):
    base = {"publish": "noise-budget", "evaluate-every": 0, "width": 16, "depth": 2, "batch": 8}
    more = {"diffusion-steps": 25, "rounds": 3, "local-steps": 6}
    return RunConfig.of(base, more, {key.replace("_", "-"): value for key, value in settings.items()})


def test_secret_noise_is_standard_normal_and_comes_once():
    noise = secret_normal(200, 100)
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-4
    assert not torch.equal(noise, secret_normal(200, 100))


def test_no_noise_is_beyond_what_double_precision_holds(monkeypatch):
    for bits in (0, 2**64 - 1):
        monkeypatch.setattr(SecretStream, "bits", lambda self, count, bits=bits: np.full(count, bits, np.uint64))
        assert secret_normal(3).abs().tolist() == pytest.approx([8.2, 8.2, 8.2], abs=0.1)


def test_versions_are_the_samples_noised_at_the_last_time_before_the_split(monkeypatch):
    monkeypatch.setattr(versions, "secret_normal", lambda *shape: torch.ones(shape, dtype=torch.float64))
    settings, data = config(noised_versions=3), torch.rand(5, *SHAPE) * 2 - 1
    drawn, process = draw_versions(settings, data), make_process(settings.diffusion)
    assert drawn.level == 12  # the times are 0..24, and the border is 12.5
    assert drawn.samples.shape == (3, 5, *SHAPE)
    torch.testing.assert_close(drawn.samples[1], process.alpha[12] * data + process.sigma[12])


def test_long_samples_are_scaled_down_whatever_they_are():
    x = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(scaled_down(x, 1.0), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))


@pytest.mark.parametrize(
    ("settings", "norm"), [({}, 2.0), ({"noised_versions": 3}, 2.0), ({"sample_norm": 0.5, "process": "ou"}, 0.5)]
)
def test_the_cost_is_that_of_the_farthest_two_samples_over_the_noise(settings, norm, monkeypatch):
    """mu, of all versions together, is the distance of their means over the spread of the noise: here both are made."""
    asked = config(**settings)
    far = torch.stack([torch.full(SHAPE, 50.0), torch.full(SHAPE, -50.0)])
    monkeypatch.setattr(versions, "secret_normal", lambda *shape: torch.zeros(shape, dtype=torch.float64))
    one, other = draw_versions(asked, far.double()).samples.transpose(0, 1)
    monkeypatch.setattr(versions, "secret_normal", lambda *shape: torch.ones(shape, dtype=torch.float64))
    spread = float((draw_versions(asked, far.double()).samples[0, 0] - one[0]).mean())
    mu = float((one - other).norm()) / spread
    assert float(one[0].norm()) < norm
    assert math.sqrt(2 * cost(asked, 4).rho) == pytest.approx(mu)
    assert sent_epsilon(asked, SHAPE) == pytest.approx(gaussian_epsilon(mu, 1e-5))


def test_where_nothing_is_proved_there_is_no_epsilon():
    assert sent_epsilon(RunConfig(), (1, 8, 8)) is None
    assert sent_epsilon(RunConfig.of({"publish": "noise-split"}), (1, 8, 8)) is None


def test_a_split_below_all_times_is_refused():
    with pytest.raises(UserError, match=r"split = 1e-06 leaves no training time below it to noise at: raise it"):
        cost(config(process="ou", split=1e-6), 4)


@pytest.mark.parametrize("process", ["ddpm", "ou"])
@pytest.mark.parametrize("parametrisation", ["noise", "score", "velocity"])
def test_versions_teach_what_samples_teach(process, parametrisation):
    """For samples N(0, v) the best output is linear in x_t, of a slope that is known: that of the score of p_t."""
    settings = config(process=process, parametrisation=parametrisation, noised_versions=1)
    rng, v, n = torch.Generator().manual_seed(0), 0.3, 200_000
    table = make_process(settings.diffusion, dtype=torch.float64)
    level = 12
    x0 = v**0.5 * torch.randn(n, 1, dtype=torch.float64, generator=rng)
    z = table.alpha[level] * x0 + table.sigma[level] * torch.randn(n, 1, dtype=torch.float64, generator=rng)
    for index in (level + 1, 18, 24):
        noise = torch.randn(n, 1, dtype=torch.float64, generator=rng)
        where = torch.full((n,), index)
        seen = Versions(z, level)
        batch = make_batch(x0, where, noise, Peers(), table, settings.diffusion, "one", "none", seen)
        alpha, sigma = float(table.alpha[index]), float(table.sigma[index])
        variance = alpha**2 * v + sigma**2
        assert float(batch.x.var()) == pytest.approx(variance, rel=0.02)
        slope = {
            "noise": sigma / variance,
            "score": -1 / variance,
            "velocity": alpha * sigma / variance - sigma * alpha * v / variance,
        }[parametrisation]
        found = float((batch.x * batch.target).mean() / batch.x.square().mean())
        spread = float((batch.target - found * batch.x).std() / batch.x.std()) / math.sqrt(n)
        assert abs(found - slope) < 5 * spread


def test_the_loss_is_bounded_where_the_target_is_not():
    """Right after the level a network that says nothing loses ||xi||² / d, as it does at any other time."""
    settings, rng = config(diffusion_steps=1000), torch.Generator().manual_seed(0)
    table, level, n = make_process(settings.diffusion), 499, 4000
    z, xi = torch.randn(n, *SHAPE, generator=rng), torch.randn(n, *SHAPE, generator=rng)
    for index in (500, 501, 700, 999):
        where = torch.full((n,), index)
        batch = make_batch(z, where, xi, Peers(), table, settings.diffusion, "one", "none", Versions(z, level))
        loss = batch.denoising * batch.target.square().flatten(1).mean(1)
        torch.testing.assert_close(loss, xi.square().flatten(1).mean(1), rtol=1e-3, atol=1e-4)


def test_rows_of_high_noise_are_made_of_the_versions_alone_and_others_of_the_samples():
    settings, level = config(), 12
    table, index = make_process(settings.diffusion), torch.tensor([0, 12, 13, 24])
    x0, z, xi = (torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in range(3))

    def made(x0, z):
        return make_batch(x0, index, xi, Peers(), table, settings.diffusion, "t", "none", Versions(z, level))

    plain = make_batch(x0, index, xi, Peers(), table, settings.diffusion, "t", "none")
    one, of_other_samples, of_other_versions = made(x0, z), made(x0 + 1, z), made(x0, z + 1)
    for field in ("x", "target", "denoising", "mutual"):
        mine, samples, noised = (getattr(batch, field) for batch in (one, of_other_samples, of_other_versions))
        assert torch.equal(mine[2:], samples[2:]), field
        assert torch.equal(mine[:2], noised[:2]), field
        assert torch.equal(mine[:2], getattr(plain, field)[:2]), field
    assert not torch.equal(one.x[2:], of_other_versions.x[2:])


@pytest.mark.parametrize("harm", ["other", "infinite"])
@pytest.mark.parametrize("settings", [{}, {"flips": True, "optimizer": "sgd", "clip": 0.01}, {"dropout": 0.5}])
def test_the_published_part_and_its_numbers_are_a_function_of_the_versions(harm, settings):
    """Whatever the samples are: also where they make the private part diverge."""
    if "dropout" in settings:
        settings = {**settings, "network": "unet", "width": 8, "multipliers": "1,1", "attention": "99", "depth": 1}
    asked, shape = config(beta=3.0, split=0.4, **settings), (1, 8, 8)
    rng = torch.Generator().manual_seed(0)
    data, z = torch.rand(10, *shape, generator=rng) * 2 - 1, Versions(torch.randn(2, 10, *shape, generator=rng), 9)
    others = torch.rand(10, *shape, generator=rng) * 2 - 1 if harm == "other" else torch.full_like(data, torch.inf)
    peers = Peers([build(asked, shape, y).eval() for y in (1, 2)], [0.5, 0.5])
    trained = []
    for samples in (data, others):
        player = Player.start(build(asked, shape, 0), asked.optimiser)
        steps = local_steps(player, samples, peers, asked, make_process(asked.diffusion), 0, 1, z)
        published = {name: t for name, t in player.published().items() if name.startswith(PUBLISHED)}
        trained.append((published, steps, player))
    (one, steps, _), (other, same, player) = trained
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (steps.loss, steps.mutual, steps.gradient_norm) == (same.loss, same.mutual, same.gradient_norm)
    assert (steps.left_out, same.left_out > 0) == (0, harm == "infinite")
    assert steps.mutual > 0
    assert all(parameter.isfinite().all() for parameter in player.network.parameters())


def test_no_step_is_taken_on_samples_in_place_of_versions():
    asked, data = config(), torch.rand(10, *SHAPE)
    player = Player.start(build(asked, SHAPE, 0), asked.optimiser)
    with pytest.raises(ValueError, match="and only then"):
        local_steps(player, data, Peers(), asked, make_process(asked.diffusion), 0, 1)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"evaluate_every": 1}, "set evaluate-every = 0$"),
        ({"share_counts": True}, "set share-counts = false$"),
        ({"draws": "fixed"}, "set draws = fresh$"),
        ({"ask_for_peers": True}, "set ask-for-peers = false$"),
        ({"draws": "fixed", "evaluate_every": 2}, "is proved: set evaluate-every = 0 and draws = fresh$"),
        ({"beta_rule": "auto"}, "weighs whole networks, and noise-budget sends a part"),
    ],
)
def test_what_would_send_more_is_refused(settings, says):
    with pytest.raises(UserError, match=says):
        config(**settings)
