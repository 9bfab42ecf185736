"""The registry of metrics: name, direction, where it is taken, the order of tables, and what it says in a sentence."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Space = Literal["pixels", "features", "inception", "density"]
"""What a metric is taken in: the data itself, the features of a classifier that was trained here, those of the
literature's Inception network, or densities that are known."""


@dataclass(frozen=True)
class Metric:
    """What is known of a metric.

    base: the name of the same metric in the data itself; larger_is_worse: its direction; distance: whether it is one
    number for how far generated samples lie from real ones, 0 being perfect; of_a_class: whether it says anything of
    the samples of one class; title, gloss: how a page heads and explains it.
    """

    name: str
    base: str
    space: Space
    title: str
    gloss: str
    larger_is_worse: bool
    distance: bool = False
    of_a_class: bool = True


_FRECHET = (
    "The same distance, measured on the outputs of a feature extractor in place of the data itself. Lower is better."
)
_KERNEL = (
    "Compares samples pair by pair; its average is right also for few samples. Lower is better, around 0 means no "
    "difference was found."
)
_SHARES = {
    "precision": (
        "Precision",
        "Share of generated samples that fall among the real ones. Higher is better: few odd samples.",
    ),
    "recall": (
        "Recall",
        "Share of real samples that fall among the generated ones. Higher is better: little variety is lost.",
    ),
    "f8": ("F8", "Precision and recall in one number that puts recall first. Higher is better."),
}
_SCORE = (
    "How surely a classifier sees a class in each sample, and how evenly classes come. From 1 to the number of "
    "classes; higher is better."
)


def _distances() -> Iterable[Metric]:
    yield Metric("fd-features", "fd", "features", "Fréchet distance in features", _FRECHET, True, distance=True)
    yield Metric(
        "fd",
        "fd",
        "pixels",
        "Fréchet distance in data space",
        "How far the mean and the spread of generated samples lie from those of real ones. Lower is better; its size "
        "depends on the data, so compare it only within a column or row of this page.",
        larger_is_worse=True,
        distance=True,
    )
    yield Metric(
        "fid",
        "fd",
        "inception",
        "Fréchet Inception distance",
        "The same distance, in the features of the Inception network of the literature. Lower is better.",
        larger_is_worse=True,
        distance=True,
    )
    yield Metric(
        "kl",
        "kl",
        "density",
        "Kullback-Leibler divergence",
        "How far the law of the generated samples is from the true one, which is known here. Lower is better, 0 is "
        "perfect.",
        larger_is_worse=True,
        distance=True,
    )
    yield Metric("kid", "kid", "pixels", "Kernel distance", _KERNEL, True, distance=True)
    yield Metric("kid-features", "kid", "features", "Kernel distance in features", _KERNEL, True, distance=True)
    yield Metric("kid-inception", "kid", "inception", "Kernel distance in features", _KERNEL, True, distance=True)


def _shares() -> Iterable[Metric]:
    spaces: tuple[tuple[Space, str, str], ...] = (
        ("pixels", "", ""),
        ("features", "-features", " in features"),
        ("inception", "-inception", " in features"),
    )
    for space, suffix, words in spaces:
        for base, (title, gloss) in _SHARES.items():
            yield Metric(base + suffix, base, space, title + words, gloss, larger_is_worse=False)


def _others() -> Iterable[Metric]:
    yield Metric(
        "memorisation",
        "memorisation",
        "pixels",
        "Memorisation",
        "Share of generated samples that nearly copy a training sample: less than a third as far from it as from the "
        "next. Lower is better; a good distance with high memorisation is a copy, not a model.",
        larger_is_worse=True,
    )
    yield Metric(
        "tstr-recall",
        "tstr-recall",
        "pixels",
        "Recall of a classifier that learnt from samples",
        "Share of a class's real test samples that a classifier recognises which has seen generated samples alone. "
        "Higher is better.",
        larger_is_worse=False,
    )
    yield Metric(
        "tstr-f1",
        "tstr-f1",
        "pixels",
        "Macro-F1 of a classifier that learnt from samples",
        "How well a classifier that has seen generated samples alone tells real test samples apart, every class "
        "counting the same. Higher is better.",
        larger_is_worse=False,
        of_a_class=False,
    )
    yield Metric("is-features", "is", "features", "Inception score in features", _SCORE, False, of_a_class=False)
    yield Metric("is", "is", "inception", "Inception score", _SCORE, False, of_a_class=False)


METRICS = {metric.name: metric for metric in (*_distances(), *_shares(), *_others())}
"""By name, in the order of tables."""

DISTANCES = tuple(name for name, metric in METRICS.items() if metric.distance)
"""The headline is the first of these that every arm has: distances in features lead wherever an extractor was set."""

COUNTS = ("n_reference", "n_generated")
"""Beside the metrics: how many real and generated samples they rest on."""

_NAMES = {(metric.base, metric.space): metric.name for metric in METRICS.values()}


def name_in(base: str, space: Space) -> str:
    """What the metric `base` is called in a space: that of fd is fid in the Inception network's features."""
    return _NAMES[base, space]


def in_order(names: Iterable[str]) -> list[str]:
    """Each name once, in the order of tables; those of metrics that are not known come last, by the alphabet."""
    known = list(METRICS)
    return sorted(set(names), key=lambda name: (known.index(name) if name in METRICS else len(known), name))
