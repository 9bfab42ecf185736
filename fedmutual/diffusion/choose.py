"""Which forward process the settings ask for."""

import torch

from fedmutual.config import RunConfig
from fedmutual.diffusion import Process, ddpm, ornstein_uhlenbeck


def make_process(config: RunConfig, device: torch.device | str = "cpu") -> Process:
    """The process of the settings, its tables on `device` in the run's dtype."""
    if config.diffusion.process == "ddpm":
        process = ddpm(config.diffusion.steps)
    else:
        process = ornstein_uhlenbeck(config.diffusion.horizon, config.diffusion.stop, config.diffusion.steps)
    return process.to(device, getattr(torch, config.compute.dtype))
