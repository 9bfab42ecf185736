"""The games that `fedmutual game` knows: classes, sample counts, weights, and what was published about them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from fedmutual.data.mixtures import MIXTURES, Mixture, case_one, line
from fedmutual.diffusion.process import WEIGHTS
from fedmutual.errors import UserError
from simulations.game.controls import BETAS


@dataclass(frozen=True)
class Case:
    """One family of classes and how many samples each has; the first class is the head.

    separation: mu of classes at -mu and mu; `adam`: whether its games are also descended by Adam.
    """

    label: str
    truths: Sequence[Mixture]
    counts: list[int]
    mutual_weight: str = "one"
    separation: float | None = None
    most_seeds: int = 10**6  # a ceiling for the cases that are too large for as many seeds as the others
    adam: bool = True

    @property
    def names(self) -> list[str]:
        """head and tail, or the classes' numbers and sizes."""
        if len(self.counts) == 2:
            return ["head", "tail"]
        return [f"{y} ({count})" for y, count in enumerate(self.counts)]

    @property
    def imbalance(self) -> str:
        """The numbers of samples, "36/14"."""
        return "/".join(map(str, self.counts))


@dataclass(frozen=True)
class Preset:
    """What `fedmutual game NAME` plays. `paper`: {(case label, beta, class): published number}."""

    about: str
    cases: list[Case]
    metric: str = "kl"
    paper: dict[tuple[str, float, str], float] = field(default_factory=dict)
    default_seeds: int = 40
    betas: tuple[float, ...] = BETAS


@dataclass(frozen=True)
class Settings:
    """What `-s key=value` may change; the defaults are the paper's literal settings."""

    features: int = 16
    iterations: int = 5000
    rate: float = 1e-4
    betas: tuple[float, ...] = ()  # empty: the preset's own
    own_weight: str = "sigma"
    mutual_weight: str = ""  # empty: the case's own
    caution: float = 1.0
    folds: int = 5
    descent: int = 32_000  # iterations of gradient descent behind the Nash gap's slope
    descent_rate: float = 1.0  # its rate, in units of 1 / ||Jacobian||
    samples: int = 2000  # generated for each class in two dimensions

    @classmethod
    def parse(cls, assignments: list[str]) -> "Settings":
        """From key=value texts; UserError names what is wrong and what there is."""
        known = {entry.name.replace("_", "-"): entry for entry in fields(cls)}
        changes: dict[str, Any] = {}
        for text in assignments:
            key, equals, value = text.partition("=")
            if not equals or key not in known:
                raise UserError(f"no setting {text!r}: give KEY=VALUE with one of {', '.join(known)}")
            name, default = known[key].name, known[key].default
            try:
                changes[name] = _read(value, default)
            except ValueError:
                raise UserError(f"{key} must be {_kind(default)}, not {value!r}") from None
        settings = replace(cls(), **changes)
        settings._check()
        return settings

    def _check(self) -> None:
        for name in ("features", "iterations", "rate", "descent", "descent_rate", "samples"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name.replace('_', '-')} must be positive")
        if self.folds < 2:
            raise UserError("folds must be at least 2")
        if self.betas and (min(self.betas) < 0 or not max(self.betas) > 0):
            raise UserError("betas must not be negative, and one at least must be positive")
        if self.caution < 0:
            raise UserError("caution must not be negative")
        for name, value in (("own-weight", self.own_weight), ("mutual-weight", self.mutual_weight or "one")):
            if value not in WEIGHTS:
                raise UserError(f"{name} must be one of {', '.join(WEIGHTS)}")


def _read(value: str, default: Any) -> Any:
    if isinstance(default, tuple):
        # beta = 0 is what every arm is compared with, so it is always among them.
        return tuple(sorted({0.0, *(_finite(part) for part in value.split(","))}))
    return _finite(value) if isinstance(default, float) else type(default)(value)


def _finite(text: str) -> float:
    number = float(text)
    if not abs(number) < float("inf"):
        raise ValueError(text)
    return number


def _kind(default: object) -> str:
    if isinstance(default, tuple):
        return "numbers with commas between them"
    return "a whole number" if isinstance(default, int) else "a number"


def geometric_counts(classes: int, most: int = 200, least: int = 2) -> list[int]:
    """From `most` down to `least` by equal factors."""
    return [round(most * (least / most) ** (y / (classes - 1))) for y in range(classes)]


FIFTY = [36, 14]
"""50 samples in all, head : tail = 2.5."""

SWEEPS = [
    *(Case(f"mu = {mu:g}", case_one(mu), FIFTY, "exp", separation=mu) for mu in (0.0, 0.5, 1.0, 2.0, 5.0)),
    *(Case(f"mu = 2, s = {s:g}", case_one(2.0, s**2), FIFTY, "exp") for s in (0.5, 2.0, 3.0)),
]

REVIEW = {0.0: (2.766, 1.984), 0.001: (2.751, 1.996), 0.01: (2.720, 1.988), 0.1: (2.467, 1.965), 1.0: (1.954, 2.021)}
"""Fréchet distance of head and tail by beta, from the paper's review discussion."""

PRESETS = {
    "case-one": Preset("N(-mu, s²) and N(mu, s²): mu swept at s = 1, then s at mu = 2; omega = e^t", SWEEPS),
    "case-two": Preset(
        "1/2 N(-4, 3) + 1/2 N(4, 3) and N(0, 2); omega = e^t",
        [Case("36 and 14 samples", MIXTURES["case-two"](), FIFTY, "exp")],
    ),
    "overlap": Preset(
        "head 1/2 N(-2, 1) + 1/2 N(2, 1), tail N(0, 2²): the tail overfits and the head covers it",
        [Case(f"{h} and {t} samples", MIXTURES["overlap"](), [h, t]) for h, t in ((36, 14), (95, 5))],
    ),
    "overlap-2d": Preset(
        "head 1/2 N([-2, 0], I) + 1/2 N([2, 0], I), tail N(0, 2² I): Fréchet distance of samples",
        [Case("36 and 14 samples", MIXTURES["overlap-2d"](), FIFTY, "exp")],
        metric="frechet",
        betas=(0.0, 0.001, 0.01, 0.1, 0.3, 1.0, 3.0),
        paper={
            ("36 and 14 samples", beta, name): value
            for beta, pair in REVIEW.items()
            for name, value in zip(("head", "tail"), pair, strict=True)
        },
    ),
    "many": Preset(
        "10 and 50 unit Gaussians on the same stretch of a line, 200 samples down to 2",
        [
            Case("10 classes", line(10), geometric_counts(10), adam=False),
            Case("50 classes", line(50, 0.2), geometric_counts(50), adam=False, most_seeds=5),
        ],
        default_seeds=10,
    ),
    "phase": Preset(
        "where mutual learning helps: N(-mu, 1) and N(mu, 1) over mu, imbalance and beta",
        [
            Case(f"mu = {mu:g}, {head}/{50 - head}", case_one(mu), [head, 50 - head], separation=mu, adam=False)
            for head in (25, 36, 42, 45, 47)
            for mu in (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
        ],
        default_seeds=20,
    ),
}


def preset(name: str) -> Preset:
    """A preset by name."""
    if name not in PRESETS:
        raise UserError(f"no game preset {name!r}: there are {', '.join(PRESETS)}, and bench")
    return PRESETS[name]
