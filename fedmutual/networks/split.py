"""A class's network in two: a part for high noise, which is sent, and one for low noise, which never leaves its owner.

What is published of a network is all of it, or where it is split all but the names that begin with `PRIVATE`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedmutual.config import RunConfig

PUBLISHED, PRIVATE = "published.", "private."
"""What the names of the part that is sent begin with, and those of the part that never is."""


class Split(nn.Module):
    """s(x, t) = published(x, t) from the time `border` on, private(x, t) before it.

    x: [batch, *dims], t: [batch] -> [batch, *dims]. Peers and the server hold it without the private part: rows before
    the border are zero then, and no loss counts them.
    """

    def __init__(self, published: nn.Module, private: nn.Module | None, border: float):
        super().__init__()
        self.published, self.private, self.border = published, private, border

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        high = t >= self.border
        output = torch.zeros_like(x)
        for network, rows in ((self.published, high), (self.private, ~high)):
            if network is not None and rows.any():
                output[rows] = network(x[rows], t[rows]).to(x.dtype)
        return output


def border(config: RunConfig) -> float:
    """The time from which on a network is published, in the process's own unit; 0 where all of it is."""
    if not config.publishing.in_parts:
        return 0.0
    return config.publishing.split * config.diffusion.end


def sent(network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of a network's state is sent."""
    return {name: tensor for name, tensor in network.items() if not name.startswith(PRIVATE)}


def is_split(network: Mapping[str, Tensor]) -> bool:
    """Whether a network's state is that of a network in two parts, both or the published one alone."""
    return any(name.startswith(PUBLISHED) for name in network)


def lacks_private(network: Mapping[str, Tensor]) -> bool:
    """Whether a network's state is the published part alone, of which no sample can be drawn."""
    return is_split(network) and not any(name.startswith(PRIVATE) for name in network)


def sent_part(network: nn.Module) -> nn.Module:
    """The network as those hold it to whom it is sent; its state is what `sent` leaves of the state of `network`."""
    return Split(network.published, None, network.border) if isinstance(network, Split) else network


def parts(network: nn.Module) -> list[tuple[nn.Parameter, ...]]:
    """The parameters of each part, the published one first, in the order of `network.parameters()`.

    Parts share no step: were their gradients clipped together, what is sent would depend on what is not.
    """
    modules = [network.published, network.private] if isinstance(network, Split) else [network]
    return [tuple(module.parameters()) for module in modules if module is not None]
