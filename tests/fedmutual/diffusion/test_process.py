import diffusers
import numpy as np
import pytest
import torch

from fedmutual.diffusion import WEIGHTS, ddpm, ornstein_uhlenbeck
from fedmutual.diffusion.process import expand

PROCESSES = [ornstein_uhlenbeck(2.0, 1e-3, 50), ddpm(100), ddpm(1000)]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: f"{p.name}-{len(p)}")
def test_variance_is_preserved_and_noise_grows(process):
    torch.testing.assert_close(process.alpha**2 + process.sigma**2, torch.ones(len(process), dtype=torch.float64))
    assert (process.times.diff() > 0).all()
    assert (process.sigma.diff() > 0).all()
    assert 0 < process.alpha[0] < process.alpha_stop <= 1


def test_ornstein_uhlenbeck_is_exp_minus_t_at_the_right_ends_of_equal_intervals():
    process = ornstein_uhlenbeck(horizon=2.0, stop=0.001, steps=4)
    times = 0.001 + torch.arange(1, 5, dtype=torch.float64) * 1.999 / 4
    torch.testing.assert_close(process.times, times)
    torch.testing.assert_close(process.alpha, torch.exp(-times))
    torch.testing.assert_close(process.sigma, torch.sqrt(1 - torch.exp(-2 * times)))
    assert process.alpha_stop == pytest.approx(np.exp(-0.001), rel=1e-15)


def test_a_thousand_ddpm_steps_are_those_of_diffusers():
    reference = diffusers.DDPMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02)
    ours = ddpm(1000)
    torch.testing.assert_close(ours.alpha**2, reference.alphas_cumprod.double(), rtol=1e-4, atol=1e-7)
    assert ours.times.tolist() == list(range(1000))


def test_fewer_ddpm_steps_span_the_same_noise():
    assert ddpm(100).sigma[-1] == pytest.approx(float(ddpm(1000).sigma[-1]), abs=1e-4)
    assert ddpm(100).alpha[49] == pytest.approx(float(ddpm(1000).alpha[499]), rel=0.04)


def test_noised_samples_have_the_moments_of_the_process():
    process, rng = ddpm(100), torch.Generator().manual_seed(0)
    x0 = 3 + 2 * torch.randn(200_000, 1, dtype=torch.float64, generator=rng)
    noise = torch.randn(x0.shape, dtype=torch.float64, generator=rng)
    for index in (0, 50, 99):
        x = process.noised(x0, torch.full((len(x0),), index), noise)
        alpha, sigma = process.alpha[index], process.sigma[index]
        assert x.mean() == pytest.approx(float(3 * alpha), abs=0.02)
        assert x.var() == pytest.approx(float(4 * alpha**2 + sigma**2), rel=0.02)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: f"{p.name}-{len(p)}")
def test_weights_are_what_their_names_say(process):
    alpha, sigma = process.alpha, process.sigma
    ou_time = -alpha.log()
    expected = {
        "one": torch.ones_like(alpha),
        "t": process.times / process.horizon,
        "exp": ou_time.exp(),
        "snr": alpha**2 / sigma**2,
        "sigma": sigma,
    }
    assert expected.keys() == WEIGHTS.keys()
    for name, values in expected.items():
        torch.testing.assert_close(process.weight(name), values)
    for name in ("t", "exp"):  # omega grows with the noise, so that classes agree there
        assert (process.weight(name).diff() > 0).all()


def test_noise_and_signal_recover_the_sample():
    process = ornstein_uhlenbeck()
    x0, noise = torch.randn(2, 50, 3, 4, dtype=torch.float64)
    index = torch.arange(50)
    x = process.noised(x0, index, noise)
    alpha, sigma = expand(process.alpha, x), expand(process.sigma, x)
    torch.testing.assert_close((x - sigma * noise) / alpha, x0)


def test_tables_move_to_a_dtype():
    process = ddpm(50).to(dtype=torch.float32)
    assert {process.times.dtype, process.alpha.dtype, process.sigma.dtype} == {torch.float32}
    assert process.horizon == 50
