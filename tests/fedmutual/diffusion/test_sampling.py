"""The samplers reverse the process when the score is exact: Gaussians arbitrate."""

import pytest
import torch
from torch import nn

from fedmutual.data.mixtures import MIXTURES, Mixture
from fedmutual.diffusion import ddpm, ornstein_uhlenbeck
from fedmutual.diffusion.sampling import SAMPLERS, _sde_dpm_solver, betas, karras, noise_predictor, sample


class Exact(nn.Module):
    """The exact score, or noise, of a mixture at every training time."""

    def __init__(self, mixture: Mixture, process, parametrisation: str):
        super().__init__()
        self.mixture, self.process, self.parametrisation = mixture, process, parametrisation

    def forward(self, x, t):
        index = int((self.process.times - t[0]).abs().argmin())
        alpha, sigma = self.process.alpha[index], self.process.sigma[index]
        score = self.mixture.diffused(alpha, sigma).score(x)
        noise = -sigma * score
        velocity = (noise - sigma * x) / alpha
        return {"score": score, "noise": noise, "velocity": velocity}[self.parametrisation]


def draw(mixture, process, sampler, count=20_000, parametrisation="noise", **options):
    rng = torch.Generator().manual_seed(1)
    network = Exact(mixture, process, parametrisation)
    shape = (mixture.dimension,)
    return sample(network, process, shape, count, rng, parametrisation=parametrisation, sampler=sampler, **options)


@pytest.mark.parametrize("process", [ddpm(1000), ornstein_uhlenbeck(4.0, 1e-3, 400)], ids=lambda p: p.name)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_recover_a_mixture_from_its_exact_score(sampler, process):
    head, _ = MIXTURES["overlap"]()
    steps = 0 if sampler in ("ddpm", "exponential") else 50
    x = draw(head, process, sampler, steps=steps)
    assert x.mean() == pytest.approx(0, abs=0.1)
    assert x.var() == pytest.approx(5, rel=0.08)
    assert (x.abs() < 0.5).double().mean() == pytest.approx(0.06060, abs=0.015)  # between the modes


@pytest.mark.parametrize("parametrisation", ["score", "velocity"])
def test_what_a_network_puts_out_is_the_same_sampler(parametrisation):
    head, _ = MIXTURES["overlap"]()
    process = ddpm(50)
    by_noise = draw(head, process, "ddpm", 50)
    by_other = draw(head, process, "ddpm", 50, parametrisation=parametrisation)
    torch.testing.assert_close(by_noise, by_other)


def test_exponential_integrator_is_the_papers_update():
    """x <- e^h x + 2 (e^h - 1) s + sqrt(e^{2h} - 1) z, from T to the early stop, for the score s = -x."""
    process = ornstein_uhlenbeck(1.0, 0.1, 3)
    network = Exact(Mixture.of((1.0, 0.0, 1.0)), process, "score")
    x = sample(
        network, process, (1,), 4, torch.Generator().manual_seed(0), parametrisation="score", sampler="exponential"
    )
    rng = torch.Generator().manual_seed(0)
    y, h = torch.randn(4, 1, dtype=torch.float64, generator=rng), torch.tensor(0.3, dtype=torch.float64)
    for _ in range(3):
        z = torch.randn(4, 1, dtype=torch.float64, generator=rng)
        y = h.exp() * y + 2 * (h.exp() - 1) * -y + (torch.exp(2 * h) - 1).sqrt() * z
    torch.testing.assert_close(x, y)


def test_ancestral_step_is_that_of_diffusers():
    import diffusers

    scheduler = diffusers.DDPMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False, variance_type="fixed_small")
    process, x, noise = ddpm(1000), torch.randn(3, 2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    for index in (1, 500, 999):
        previous = scheduler.step(noise, index, x, generator=torch.Generator().manual_seed(0)).prev_sample
        z = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        alpha, alpha_next = process.alpha[index], process.alpha[index - 1]
        ratio, rest, rest_next = alpha / alpha_next, 1 - alpha**2, 1 - alpha_next**2
        x0 = (x - rest.sqrt() * noise) / alpha
        mean = (alpha_next * (1 - ratio**2) * x0 + ratio * rest_next * x) / rest
        torch.testing.assert_close(
            mean + ((1 - ratio**2) * rest_next / rest).sqrt() * z, previous, rtol=1e-3, atol=1e-5
        )


def test_levels_of_karras_fall_evenly_in_the_root_of_the_noise_ratio_and_differ():
    process = ddpm(1000)
    indices = karras(process, 25)
    assert (indices[0], indices[-1], len(set(indices))) == (999, 0, 25)
    root = (process.sigma / process.alpha).pow(1 / 7)[indices]
    steps = -root.diff()
    assert steps[:15].std() < 0.05 * steps[:15].mean()  # further down neighbouring times are further apart than a step
    for count in (1, 2, 20, 99, 100):
        few = karras(ddpm(100), count)
        assert (few[0], len(few), few) == (99, count, sorted(set(few), reverse=True))


def test_second_order_ancestral_steps_are_those_of_diffusers():
    """On the same levels, from the same predictions and noise."""
    import diffusers

    process, steps = ddpm(1000), 20
    head, _ = MIXTURES["overlap"]()
    predict = noise_predictor(Exact(head, process, "noise"), process, "noise", clip=False)
    indices = karras(process, steps)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        trained_betas=betas(process).numpy(), algorithm_type="sde-dpmsolver++", final_sigmas_type="zero"
    )
    scheduler.set_timesteps(timesteps=indices)
    start = torch.randn(50, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, draws = start, torch.Generator().manual_seed(2)
    for index, t in zip(indices, scheduler.timesteps, strict=True):
        z = torch.randn(x.shape, generator=draws, dtype=x.dtype)
        x = scheduler.step(predict(x, index), t, x, variance_noise=z).prev_sample
    ours = _sde_dpm_solver(predict, process, start, steps, torch.Generator().manual_seed(2))
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3)


def test_second_order_needs_fewer_steps_than_first():
    """The standard deviation of N(0, 0.25 I) drawn in ten steps from its exact score."""
    mixture, process = Mixture.of((1.0, 0.0, 0.25)), ddpm(1000)
    error = {name: abs(draw(mixture, process, name, 50_000, steps=10).std() - 0.5) for name in SAMPLERS}
    assert error["sde-dpm-solver++"] < 0.3 * error["ddpm"]


def test_clipping_keeps_the_guess_of_x0_inside_the_data_range():
    process = ddpm(100)
    predict = noise_predictor(nn.Identity(), process, "noise", clip=True)
    network = lambda x, t: 0 * x - 5  # noqa: E731 (a network whose guess of x_0 lies far outside)
    predict = noise_predictor(network, process, "noise", clip=True)
    x = torch.randn(10, 2, dtype=torch.float64)
    for index in (0, 50, 99):
        x0 = (x - process.sigma[index] * predict(x, index)) / process.alpha[index]
        assert x0.abs().max() <= 1 + 1e-9


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_steps_are_how_often_the_network_is_asked(sampler):
    process, asked = ddpm(100), []

    class Counted(nn.Module):
        def forward(self, x, t):
            asked.append(float(t[0]))
            return x

    options = {"parametrisation": "noise", "sampler": sampler, "steps": 10, "clip": True}
    sample(Counted(), process, (1, 4, 4), 5, torch.Generator().manual_seed(0), **options)
    assert len(asked) == 10
    assert asked == sorted(asked, reverse=True)
    assert asked[0] == 99


def test_samples_are_reproducible_and_large_counts_come_in_batches(monkeypatch):
    mixture, process = Mixture.of((1.0, 0.0, 1.0)), ddpm(30)
    torch.testing.assert_close(draw(mixture, process, "ddpm", 7), draw(mixture, process, "ddpm", 7), rtol=0, atol=0)
    monkeypatch.setattr("fedmutual.diffusion.sampling.ROWS", 3)
    assert draw(mixture, process, "ddpm", 8).shape == (8, 1)
    assert draw(mixture, process, "ddpm", 0).shape == (0, 1)
