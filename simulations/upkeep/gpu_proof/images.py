"""The images of the proof: a long tail cut from CIFAR-10, small enough to be carried, or made-up ones of its shape."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedmutual.config import RunConfig
from fedmutual.data import num_classes, open_source, sample_shape

MADE_UP_TEST = 100
"""Test images of each made-up class."""


def cut(config: RunConfig, target: Path, test: int) -> list[int]:
    """Write the long tail that `config` asks for, and `test` test images of each class, as one .npz; the counts.

    A run on it with imbalance = none trains on the images that a run of `config` trains on.
    """
    source = open_source(config.data, config.seed)
    classes = range(len(source.names))
    train, unseen = [source.train(y) for y in classes], [source.test(y)[:test] for y in classes]
    _write(target, [_bytes(part) for part in train], [_bytes(part) for part in unseen])
    return [len(part) for part in train]


def make_up(config: RunConfig, target: Path, most: int) -> None:
    """Images of `config`'s shape, each class a picture of its own under noise: `most` down to a hundredth of it."""
    channels, height, width = sample_shape(config.data)
    classes, rng = num_classes(config.data), np.random.default_rng(0)
    counts = [max(8, round(most * 0.01 ** (y / (classes - 1)))) for y in range(classes)]
    pictures = rng.integers(0, 256, (classes, height, width, channels))

    def drawn(y: int, count: int) -> NDArray[np.uint8]:
        noise = rng.normal(0, 40, (count, height, width, channels))
        return (pictures[y] + noise).clip(0, 255).astype(np.uint8)

    _write(target, [drawn(y, n) for y, n in enumerate(counts)], [drawn(y, MADE_UP_TEST) for y in range(classes)])


def _bytes(images: torch.Tensor) -> NDArray[np.uint8]:
    """[n, C, H, W] in [-1, 1] as bytes [n, H, W, C]."""
    pixels: NDArray[np.uint8] = ((images + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).numpy()
    return pixels


def _write(target: Path, train: list[NDArray[Any]], test: list[NDArray[Any]]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        target,
        train_images=np.concatenate(train),
        train_labels=np.repeat(np.arange(len(train)), [len(part) for part in train]),
        test_images=np.concatenate(test),
        test_labels=np.repeat(np.arange(len(test)), [len(part) for part in test]),
    )
