"""How long the tail is, and how one class's samples are cut into test, held-out and training parts.

The exponential profile is the one of CIFAR10-LT (Cao et al., 2019, *Learning imbalanced datasets with
label-distribution-aware margin loss*): n_y = head * ratio^(y / (K - 1)), rounded down.
"""

import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from fedmutual.config import Data
from fedmutual.errors import UserError

UNLIMITED = sys.maxsize
"""As many samples as anybody asks for."""


def counts(
    available: Sequence[int],
    imbalance: str,
    ratio: float = 1.0,
    head_count: int = 0,
    explicit: Sequence[int] = (),
) -> list[int]:
    """Training samples of each class, at least 1 and never more than `available`.

    The head is `head_count`, or by default as many as the smallest class has, so that the nominal count holds
    for every class.
        none: all that is available, or `head_count` of each;
        exponential: head * ratio^(y / (K - 1));
        step: the head for the first half of the classes, head * ratio for the others;
        counts: `explicit`.

    Raises:
        UserError: more samples asked for than there are, or explicit counts that do not fit the classes.
    """
    if imbalance == "counts":
        return _checked(list(explicit), available)
    smallest = min(available)
    head = head_count or smallest
    if head > smallest:
        raise UserError(
            f"head-count = {head} is more than the {smallest} training samples that class "
            f"{list(available).index(smallest)} has beside its held-out and test parts: lower head-count"
        )
    classes = len(available)
    if imbalance == "none":
        return [head] * classes if head_count else list(available)
    if imbalance == "step":
        shares = [1.0 if 2 * y < classes else ratio for y in range(classes)]
    else:
        shares = [ratio ** (y / max(classes - 1, 1)) for y in range(classes)]
    # 100 * 0.29 is 28.999...96 in floating point; the nominal count is 29.
    return [max(1, math.floor(head * share + 1e-9)) for share in shares]


def counts_of(data: Data, available: Sequence[int]) -> list[int]:
    """`counts` by the settings."""
    return counts(available, data.imbalance, data.imbalance_ratio, data.head_count, explicit_counts(data))


def explicit_counts(data: Data) -> list[int]:
    """The setting `counts` as numbers; none where it is empty."""
    return [int(count) for count in data.counts.split(",")] if data.counts else []


def _checked(explicit: list[int], available: Sequence[int]) -> list[int]:
    if len(explicit) != len(available):
        raise UserError(f"counts names {len(explicit)} classes, there are {len(available)}: give one count for each")
    for y, (count, most) in enumerate(zip(explicit, available, strict=True)):
        if count < 1:
            raise UserError(f"counts gives class {y} no sample: give each class at least 1")
        if count > most:
            raise UserError(f"counts asks for {count} training samples of class {y}, which has {most}: lower it")
    return explicit


def remaining(sizes: Sequence[int], names: Sequence[str], test: int, held_out: int) -> list[int]:
    """What each class has left to train on once its `test` and `held_out` samples are set aside.

    Raises:
        UserError: a class that would have nothing left.
    """
    for name, size in zip(names, sizes, strict=True):
        if size < test + held_out + 1:
            parts = f"test = {test} and held-out = {held_out}" if test else f"held-out = {held_out}"
            raise UserError(
                f"class {name} has {size} samples, too few for {parts} and one to train on: "
                f"lower {'test or held-out' if test else 'held-out'}"
            )
    return [size - test - held_out for size in sizes]


def split(size: int, test: int, held_out: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Indices 0..size-1 of one class in random order, as disjoint test [test], held-out [held_out] and pool.

    The first n of the pool are the training part, so that no imbalance changes what is held out, and a longer
    training part contains a shorter one.
    """
    order = torch.randperm(size, generator=generator)
    return order[:test], order[test : test + held_out], order[test + held_out :]
