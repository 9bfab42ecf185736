"""The forward process and the samplers that reverse it."""

from fedmutual.diffusion.process import WEIGHTS, Process, ddpm, make_process, ornstein_uhlenbeck

__all__ = ["WEIGHTS", "Process", "ddpm", "make_process", "ornstein_uhlenbeck"]
