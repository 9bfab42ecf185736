"""A multilayer perceptron with a sinusoidal time embedding, for small images and points."""

import math

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """x: [batch, *dims], t: [batch] -> [batch, *dims]; with `classes`, labels y: [batch] come third.

    The flattened input, the embedding of t / horizon and a learnt embedding of y enter the first of `depth`
    SiLU layers of `width` units; layers after the first are residual.
    """

    ENDS = ("inner", "outer")
    """Its first and its last layer."""

    rates: Tensor  # [frequencies]

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int,
        depth: int,
        horizon: float,
        classes: int = 0,
        frequencies: int = 16,
    ):
        super().__init__()
        size = math.prod(shape)
        # t / horizon in [0, 1] is seen at wave lengths from 2 down to 1/250: as finely as 1000 steps need.
        self.register_buffer("rates", math.pi * torch.logspace(0, math.log10(500), frequencies) / horizon)
        self.inner = nn.Linear(size + 2 * frequencies, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.outer = nn.Linear(width, size)
        self.labels = nn.Embedding(classes, width) if classes else None

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        phase = t[:, None] * self.rates
        h = self.inner(torch.cat([x.flatten(1), phase.sin(), phase.cos()], dim=1))
        h = nn.functional.silu(h if self.labels is None else h + self.labels(y))
        for layer in self.hidden:
            h = h + nn.functional.silu(layer(h))
        output: Tensor = self.outer(h)
        return output.view_as(x)
