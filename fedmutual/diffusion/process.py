"""The forward process x_t = alpha(t) x_0 + sigma(t) xi, xi ~ N(0, I), on the times networks are trained at.

Both processes preserve variance, alpha² + sigma² = 1, so DDPM is the Ornstein-Uhlenbeck process observed at
OU times tau_j = -log alpha_j; a sampler written for one reverses the other.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedmutual.config import Diffusion


def expand(scale: Tensor, like: Tensor) -> Tensor:
    """`scale: [*lead]` with ones appended until it broadcasts against `like: [*lead, *dims]`."""
    return scale.reshape(scale.shape + (1,) * (like.ndim - scale.ndim))


@dataclass(frozen=True)
class Process:
    """A variance-preserving noising process on N training times t_1 < ... < t_N.

    times:      [N] in the process's own unit: OU time, or DDPM's timestep 0..N-1 (what diffusers calls `t`).
    alpha:      [N] scale of the signal.
    sigma:      [N] scale of the noise, sqrt(1 - alpha²).
    horizon:    the unit in which times run from 0 to 1: T for OU, N for DDPM.
    alpha_stop: alpha where reverse sampling ends: exp(-delta) for OU stopped early at delta, 1 for DDPM.
    """

    name: str
    times: Tensor
    alpha: Tensor
    sigma: Tensor
    horizon: float
    alpha_stop: float

    def __len__(self) -> int:
        return self.times.numel()

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Process":
        """The same process with its tables on `device` and in `dtype`."""
        times, alpha, sigma = (table.to(device, dtype) for table in (self.times, self.alpha, self.sigma))
        return replace(self, times=times, alpha=alpha, sigma=sigma)

    def above(self, border: float) -> "Process":
        """The process from the time `border` on, whose reversal ends there, in the network's guess of x_0."""
        kept = self.times >= border
        times, alpha, sigma = self.times[kept], self.alpha[kept], self.sigma[kept]
        return replace(self, times=times, alpha=alpha, sigma=sigma, alpha_stop=1.0)

    def below(self, border: float) -> "Process":
        """The process before the time `border`: what is left to reverse once that has been reached."""
        kept = self.times < border
        return replace(self, times=self.times[kept], alpha=self.alpha[kept], sigma=self.sigma[kept])

    def after(self, level: int) -> "Process":
        """The process from its own noised samples z = alpha_s x + sigma_s eps on, s the time of index `level`:

        x_t = a z + b xi at the times t after s, with a = alpha_t / alpha_s and b² = 1 - a², which has the distribution
        of alpha_t x + sigma_t eps. So what is made of z alone trains a denoiser, as where clean samples are not to be
        had (Daras, Dimakis and Daskalakis 2024). Its reversal ends in the network's guess of z.
        """
        log_alpha = self.alpha.double().log()
        log_a = log_alpha[level + 1 :] - log_alpha[level]
        b = torch.sqrt(-torch.expm1(2 * log_a))
        times = self.times[level + 1 :]
        return replace(self, times=times, alpha=log_a.exp().to(times), sigma=b.to(times), alpha_stop=1.0)

    def nearest(self, share: float) -> int:
        """Index of the training time nearest to `share` of the horizon, t / T."""
        return int((self.times / self.horizon - share).abs().argmin())

    def noised(self, x0: Tensor, index: Tensor, noise: Tensor) -> Tensor:
        """x_t = alpha_j x_0 + sigma_j xi; `x0, noise: [*batch, *dims]`, `index: [*batch]` in 0..N-1."""
        return expand(self.alpha[index], x0) * x0 + expand(self.sigma[index], x0) * noise

    def weight(self, name: str) -> Tensor:
        """A loss weight by name at all training times, `[N]`; see `WEIGHTS`."""
        return WEIGHTS[name](self)


WEIGHTS: dict[str, Callable[[Process], Tensor]] = {
    "one": lambda process: torch.ones_like(process.times),
    "t": lambda process: process.times / process.horizon,
    "exp": lambda process: 1 / process.alpha,
    "snr": lambda process: (process.alpha / process.sigma).square(),
    "sigma": lambda process: process.sigma,
}
"""lambda(t) and omega(t) by name: 1; t/T in [0, 1]; e^tau with tau the OU time, that is 1/alpha; the
signal-to-noise ratio alpha²/sigma²; sigma. They weigh the squared error of what the network puts out (noise,
score or velocity), so weight w on noise is weight w sigma² on the score, and w alpha² on the velocity."""


def ornstein_uhlenbeck(horizon: float = 2.0, stop: float = 1e-3, steps: int = 50) -> Process:
    """alpha(t) = exp(-t), sigma(t) = sqrt(1 - exp(-2t)) at the right ends of `steps` equal parts of (stop, horizon].

    Source: the paper, section on the forward process. The tables are float64 on the CPU, as those of `ddpm` are.
    """
    times = torch.linspace(stop, horizon, steps + 1, dtype=torch.float64)[1:]
    alpha = torch.exp(-times)
    alpha_stop = float(torch.exp(torch.tensor(-stop, dtype=torch.float64)))
    return Process("ou", times, alpha, torch.sqrt(-torch.expm1(-2 * times)), horizon, alpha_stop)


def ddpm(steps: int = 1000) -> Process:
    """alpha_j² = prod_{i<=j} (1 - b_i) with b linear from 0.1/N to 20/N.

    At N = 1000 this is the schedule 1e-4..0.02 of Ho, Jain and Abbeel (2020); other N follow the same
    continuous process (Song et al. 2021), so that a network sees the same range of noise.
    """
    step_variance = torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)
    log_alpha = torch.log1p(-step_variance).cumsum(0) / 2
    times = torch.arange(steps, dtype=torch.float64)
    sigma = torch.sqrt(-torch.expm1(2 * log_alpha))
    return Process("ddpm", times, log_alpha.exp(), sigma, float(steps), 1.0)


def make_process(
    diffusion: Diffusion, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Process:
    """The process that the settings ask for, its tables on `device` in `dtype`."""
    if diffusion.process == "ddpm":
        return ddpm(diffusion.steps).to(device, dtype)
    return ornstein_uhlenbeck(diffusion.horizon, diffusion.stop, diffusion.steps).to(device, dtype)
