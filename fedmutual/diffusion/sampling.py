"""Samplers that reverse a process with a trained network: x_T ~ N(0, I) down to x_stop.

All act on the same tables alpha, sigma; `clip` keeps the implied guess of x_0 inside [-1, 1], as DDPM does
for images.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fedmutual.config import Parametrisation
from fedmutual.diffusion.process import Process

Predict = Callable[[Tensor, int], Tensor]
"""(x: [batch, *dims], index of the training time) -> the network's estimate of the noise in x."""

ROWS = 2**20
"""Numbers in one batch of x: a large batch for small samples, and 341 for 32x32 RGB images."""


def noise_predictor(
    network: torch.nn.Module, process: Process, parametrisation: Parametrisation, clip: bool
) -> Predict:
    """The network's output as noise: eps = -sigma s for a score network, sigma x + alpha v for one of velocities.

    With `clip` made consistent with the clipped x_0.
    """

    def predict(x: Tensor, index: int) -> Tensor:
        alpha, sigma = process.alpha[index], process.sigma[index]
        output: Tensor = network(x, process.times[index].expand(len(x)))
        if parametrisation == "velocity":
            noise = sigma * x + alpha * output
        else:
            noise = output if parametrisation == "noise" else -sigma * output
        if not clip:
            return noise
        return (x - alpha * ((x - sigma * noise) / alpha).clamp(-1, 1)) / sigma

    return predict


def even(process: Process, steps: int) -> list[int]:
    """`steps` indices spread evenly from N - 1 down to 0."""
    indices: list[int] = torch.linspace(len(process) - 1, 0, steps).round().long().tolist()
    return indices


def karras(process: Process, steps: int, rho: float = 7.0) -> list[int]:
    """`steps` indices from N - 1 down to 0 between which (sigma / alpha)^{1 / rho} falls evenly, all of them different.

    The spacing of Karras et al. (2022): most steps where little noise is left, to which an image owes its details.
    """
    noise = (process.sigma.double() / process.alpha.double()).cpu().pow(1 / rho)
    wanted = torch.linspace(float(noise[-1]), float(noise[0]), steps, dtype=torch.float64)
    indices: list[int] = []
    for left, index in zip(range(steps - 1, -1, -1), (noise - wanted[:, None]).abs().argmin(1).tolist(), strict=True):
        indices.append(max(left, min(index, indices[-1] - 1)) if indices else index)
    return indices


def _levels(process: Process, indices: Sequence[int]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(index, alpha there, alpha after the step) of steps at these indices."""
    stop = process.alpha.new_tensor(process.alpha_stop)
    alphas = [*(process.alpha[index] for index in indices), stop]
    yield from zip(indices, alphas[:-1], alphas[1:], strict=True)


def _ddpm(predict: Predict, process: Process, x: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Ancestral sampling: x_s ~ q(x_s | x_t, x_0) at the predicted x_0 (Ho, Jain and Abbeel 2020, eq. 7)."""
    for index, alpha, alpha_next in _levels(process, even(process, steps)):
        x0 = (x - process.sigma[index] * predict(x, index)) / alpha
        x = _ancestral(x, x0, alpha, alpha_next, generator)
    return x


def _ancestral(x: Tensor, x0: Tensor, alpha: Tensor, alpha_next: Tensor, generator: torch.Generator) -> Tensor:
    """A draw of q(x_s | x_t, x_0)."""
    ratio = alpha / alpha_next
    variance, variance_next = 1 - alpha**2, 1 - alpha_next**2
    mean = (alpha_next * (1 - ratio**2) * x0 + ratio * variance_next * x) / variance
    spread = ((1 - ratio**2) * variance_next / variance).sqrt()
    return mean + spread * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def _sde_dpm_solver(predict: Predict, process: Process, x: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """SDE-DPM-Solver++(2M) of Lu et al. (2022): ancestral sampling of second order, on the levels of `karras`.

    A step uses x_0 + (h / 2 h') (x_0 - x_0') in place of the predicted x_0, where x_0' is the prediction of the step
    before, and h, h' are this step and that one in lambda = log(alpha / sigma). The first step and the last have none.
    """
    log_ratio = (process.alpha / process.sigma).log()
    levels = list(_levels(process, karras(process, steps)))
    before: Tensor | None = None
    for place, (index, alpha, alpha_next) in enumerate(levels):
        x0 = guess = (x - process.sigma[index] * predict(x, index)) / alpha
        if before is not None and place + 1 < steps:
            now, previous, following = log_ratio[[index, levels[place - 1][0], levels[place + 1][0]]]
            guess = x0 + (following - now) / (2 * (now - previous)) * (x0 - before)
        x, before = _ancestral(x, guess, alpha, alpha_next, generator), x0
    return x


def _exponential(predict: Predict, process: Process, x: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Exponential integrator of the reverse Ornstein-Uhlenbeck process with the score frozen over a step:
    x <- e^h x + 2 (e^h - 1) s(x, t) + sqrt(e^{2h} - 1) z, h the step in OU time (the paper, sampling)."""
    for index, alpha, alpha_next in _levels(process, even(process, steps)):
        growth = alpha_next / alpha
        score = -predict(x, index) / process.sigma[index]
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        x = growth * x + 2 * (growth - 1) * score + (growth**2 - 1).sqrt() * noise
    return x


def betas(process: Process) -> Tensor:
    """The variances of single steps, 1 - (alpha_j / alpha_{j-1})², [N], in float64 on the CPU."""
    alpha = process.alpha.double().cpu()
    return 1 - (alpha / torch.cat([alpha.new_ones(1), alpha[:-1]])).square()


def _diffusers(name: str) -> Callable[..., Tensor]:
    """A scheduler of diffusers over the process's own betas."""

    def run(predict: Predict, process: Process, x: Tensor, steps: int, generator: torch.Generator) -> Tensor:
        import diffusers  # seconds to import, and only few-step sampling needs it

        options = {"clip_sample": False} if name == "DDIMScheduler" else {}
        scheduler = getattr(diffusers, name)(
            trained_betas=betas(process).numpy(),
            num_train_timesteps=len(process),
            timestep_spacing="trailing",
            **options,
        )
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            x = scheduler.step(predict(x, int(t)), t, x).prev_sample
        return x

    return run


SAMPLERS = {
    "ddpm": _ddpm,
    "exponential": _exponential,
    "ddim": _diffusers("DDIMScheduler"),
    "dpm-solver++": _diffusers("DPMSolverMultistepScheduler"),
    "sde-dpm-solver++": _sde_dpm_solver,
}


@torch.no_grad()
def sample(
    network: torch.nn.Module,
    process: Process,
    shape: tuple[int, ...],
    count: int,
    generator: torch.Generator,
    *,
    parametrisation: Parametrisation,
    sampler: str = "ddpm",
    steps: int = 0,
    clip: bool = False,
) -> Tensor:
    """`count` samples of one class, [count, *shape], in batches of at most `ROWS` numbers.

    `steps` 0 takes one step for each training time. The process's tables and the generator must be on the
    network's device and in its dtype. The network is left in evaluation mode.
    """
    network.eval()
    predict = noise_predictor(network, process, parametrisation, clip)
    device, dtype = process.alpha.device, process.alpha.dtype
    size = max(1, ROWS // torch.Size(shape).numel())
    batches = []
    for start in range(0, count, size):
        x = torch.randn(min(size, count - start), *shape, generator=generator, device=device, dtype=dtype)
        batches.append(SAMPLERS[sampler](predict, process, x, steps or len(process), generator))
    return torch.cat(batches) if batches else torch.empty(0, *shape, dtype=dtype)
