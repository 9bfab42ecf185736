"""Score networks, all of one call shape: (x: [batch, *dims], t: [batch]) -> [batch, *dims].

`t` is in the process's own unit. What the output is, noise, score or velocity, is the run's setting
`parametrisation`; a network does not know.
"""

import torch
from torch import Tensor, nn

from fedmutual.config import Network, RunConfig
from fedmutual.device import dtype_of
from fedmutual.networks.mlp import MLP
from fedmutual.networks.random_features import RandomFeatures
from fedmutual.networks.split import Split, border
from fedmutual.seeds import derive

__all__ = ["OfClass", "build", "build_conditional"]


def build(config: RunConfig, shape: tuple[int, ...], y: int) -> nn.Module:
    """Class y's network as it is before training, for samples of `shape`.

    Drawn from (seed, y, 0, "network"); with `shared-init` all classes draw the same. One that is published in part is a
    `Split`, whose private part is drawn from (seed, y, 0, "private network").

    Raises:
        UserError: a U-Net for samples that are not images.
    """
    whose = "all" if config.network.shared_init else y
    if not config.publishing.in_parts:
        return _build(config, config.network, shape, whose)
    sent = config.network.model_copy(update={"width": config.publishing.width or config.network.width})
    published = _build(config, sent, shape, whose)
    return Split(published, _build(config, config.network, shape, whose, purpose="private network"), border(config))


def build_conditional(config: RunConfig, shape: tuple[int, ...], classes: int) -> nn.Module:
    """One network for all classes before training, (x, t, y: [batch]) -> [batch, *dims].

    Of the size of one class's network, plus what the label needs. Drawn from (seed, "all", 0, "network").

    Raises:
        UserError: as `build`.
    """
    return _build(config, config.network, shape, "all", classes)


def _build(
    config: RunConfig,
    settings: Network,
    shape: tuple[int, ...],
    whose: int | str,
    classes: int = 0,
    purpose: str = "network",
) -> nn.Module:
    diffusion, horizon = config.diffusion, config.diffusion.end
    network: nn.Module
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, whose, 0, purpose))
        if settings.kind == "mlp":
            network = MLP(shape, settings.width, settings.depth, horizon, classes)
        elif settings.kind == "random-features":
            network = RandomFeatures(shape, settings.width, horizon, classes)
        else:
            from fedmutual.networks.unet import UNet  # diffusers takes seconds to import

            # DDPM's time is diffusers' timestep already; OU time is stretched over the same range.
            time_scale = 1.0 if diffusion.process == "ddpm" else 1000 / horizon
            network = UNet(shape, settings, time_scale, classes)
    return network.to(dtype_of(config.compute))


class OfClass(nn.Module):
    """A conditional network at one label, in the call shape of a class's own: (x, t) -> network(x, t, y)."""

    def __init__(self, network: nn.Module, y: int):
        super().__init__()
        self.network, self.y = network, y

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        output: Tensor = self.network(x, t, torch.full((len(x),), self.y, device=x.device))
        return output
