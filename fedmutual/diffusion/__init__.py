"""The forward process and the samplers that reverse it."""

from fedmutual.diffusion.process import WEIGHTS, Process, ddpm, ornstein_uhlenbeck

__all__ = ["WEIGHTS", "Process", "ddpm", "ornstein_uhlenbeck"]
