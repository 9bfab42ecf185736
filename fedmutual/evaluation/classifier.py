"""Classifiers that are trained here: for measures in their features, and to tell what samples are good for."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

PASSES, BATCH, LEARNING_RATE = 30, 128, 3e-3
"""Of a training: passes over the samples, where the steps that it may take do not end it before."""


class Classifier(nn.Module):
    """A small residual network (He et al., 2016): images [n, channels, height, width] to features [n, 64], logits.

    Three blocks of 16, 32 and 64 channels, each at half the resolution of the one before, and their mean over
    places.
    """

    def __init__(self, channels: int, classes: int):
        super().__init__()
        widths = (16, 32, 64)
        self.stem = _convolution(channels, widths[0], 3, 1)
        self.blocks = nn.Sequential(*(_Block(a, b) for a, b in zip(widths[:1] + widths[:2], widths, strict=True)))
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.blocks(self.stem(x).relu()).mean((2, 3))
        return features, self.head(features)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.inner = _convolution(inputs, outputs, 3, 2)
        self.outer = _convolution(outputs, outputs, 3, 1)
        self.shortcut = _convolution(inputs, outputs, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.outer(self.inner(x).relu()) + self.shortcut(x)).relu()
        return out


def _convolution(inputs: int, outputs: int, size: int, stride: int) -> nn.Sequential:
    """Convolution and batch normalisation, so that images of any scale will do."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs))


class Perceptron(nn.Module):
    """Two hidden layers of 64, for samples that are no images: [n, *dims] to features [n, 64], logits."""

    def __init__(self, numbers: int, classes: int):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(numbers, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return features, self.head(features)


def classifier_for(shape: tuple[int, ...], classes: int) -> nn.Module:
    """The classifier for samples of a shape: images are [channels, height, width]."""
    return Classifier(shape[0], classes) if len(shape) == 3 else Perceptron(math.prod(shape), classes)


def steps_for(samples: int, most: int) -> int:
    """Gradient steps of a training on so many samples: `PASSES` over them, and no more than `most`."""
    return min(most, PASSES * math.ceil(samples / BATCH))


def fit(
    network: nn.Module,
    samples: Tensor,
    labels: Tensor,
    steps: int,
    on_percent: Callable[[int], None] = lambda done: None,
) -> None:
    """Cross-entropy by AdamW under a one-cycle learning rate; every pass over the samples in a new order.

    A last part of a pass that is one sample alone is left out: batch normalisation needs two.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    network.train()
    left: list[Tensor] = []
    for step in range(steps):
        if not left:
            left = [rows for rows in torch.split(torch.randperm(len(samples)), BATCH) if len(rows) > 1]
        rows = left.pop(0).to(samples.device)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(samples[rows])[1], labels[rows])
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        on_percent(100 * (step + 1) // steps)
    network.eval().requires_grad_(False)


@torch.no_grad()
def classify(network: nn.Module, samples: Tensor) -> Tensor:
    """The class that the network sees in each sample, [n]."""
    return torch.cat([network(part)[1].argmax(1) for part in torch.split(samples, 256)])
