"""Which forward process the settings ask for."""

import torch

from fedmutual.config import RunConfig
from fedmutual.diffusion import Process, ddpm, ornstein_uhlenbeck


def make_process(config: RunConfig, device: torch.device | str = "cpu") -> Process:
    """The process of the settings, its tables on `device` in the run's dtype."""
    if config.process == "ddpm":
        process = ddpm(config.diffusion_steps)
    else:
        process = ornstein_uhlenbeck(config.horizon, config.stop, config.diffusion_steps)
    return process.to(device, getattr(torch, config.dtype))
