"""Score networks, all of one call shape: (x: [batch, *dims], t: [batch]) -> [batch, *dims].

`t` is in the process's own unit. Whether the output is the score or the noise is the run's setting
`parametrisation`; a network does not know.
"""

import torch
from torch import nn

from fedmutual.config import RunConfig
from fedmutual.networks.mlp import MLP
from fedmutual.networks.random_features import RandomFeatures
from fedmutual.seeds import derive

__all__ = ["build"]


def build(config: RunConfig, shape: tuple[int, ...], y: int) -> nn.Module:
    """Class y's network as it is before training, for samples of `shape`.

    Drawn from (seed, y, 0, "network"); with `shared-init` all classes draw the same.

    Raises:
        UserError: a U-Net for samples that are not images.
    """
    horizon = float(config.diffusion_steps) if config.process == "ddpm" else config.horizon
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "all" if config.shared_init else y, 0, "network"))
        if config.network == "mlp":
            network = MLP(shape, config.width, config.depth, horizon)
        elif config.network == "random-features":
            network = RandomFeatures(shape, config.width, horizon)
        else:
            from fedmutual.networks.unet import UNet  # diffusers takes seconds to import

            # DDPM's time is diffusers' timestep already; OU time is stretched over the same range.
            network = UNet(shape, config, time_scale=1.0 if config.process == "ddpm" else 1000 / horizon)
    return network.to(getattr(torch, config.dtype))
