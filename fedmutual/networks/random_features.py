"""The paper's score network: frozen random features under one trained linear map."""

import math

import torch
from torch import Tensor, nn


class RandomFeatures(nn.Module):
    """s(x, t) = (1/m) A ReLU(W x + U e(t)), e(t) = (t / horizon, 1).

    A: [d, m] is trained and starts at zero; W: [m, d] and U: [m, 2] are drawn once, uniform on [-1, 1], and
    frozen, so the regularised loss is a convex quadratic in A. With `classes`, e(t, y) ends in the unit
    vector of y, and U has as many more columns.
    x: [batch, *dims], t: [batch], with `classes` y: [batch] -> [batch, *dims].
    """

    W: Tensor
    U: Tensor

    def __init__(self, shape: tuple[int, ...], features: int, horizon: float, classes: int = 0):
        super().__init__()
        size = math.prod(shape)
        self.horizon, self.classes = horizon, classes
        self.register_buffer("W", torch.empty(features, size).uniform_(-1, 1))
        self.register_buffer("U", torch.empty(features, 2 + classes).uniform_(-1, 1))
        self.A = nn.Parameter(torch.zeros(size, features))

    def features(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """ReLU(W x + U e(t)) / m: [batch, m] for `x: [batch, *dims]`, `t: [batch]`."""
        embedding = torch.stack([t / self.horizon, torch.ones_like(t)], dim=1)
        if y is not None:
            embedding = torch.cat([embedding, nn.functional.one_hot(y, self.classes).to(embedding)], dim=1)
        hidden = torch.relu(x.flatten(1) @ self.W.T + embedding @ self.U.T)
        return hidden / self.W.shape[0]

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return (self.features(x, t, y) @ self.A.T).view_as(x)
