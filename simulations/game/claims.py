"""One plain sentence for each claim, worked out from the measured numbers, never written beforehand."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fedmutual.evaluation.intervals import Estimate
from simulations.game.cases import Case
from simulations.game.dynamics import Curve, slopes
from simulations.game.play import (
    ALONE,
    BOLD,
    COPY_HEAD,
    POOLED,
    SIMILAR,
    TUNED_RIDGE_BOLD,
    Arm,
    Key,
    Measured,
    at,
    auto,
)

REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
CONDITIONAL, OPEN = "only under conditions", "undecided"
PAPER_BETA = 0.01
BY = {"equilibrium": "at the exact equilibrium", "adam": "with Adam"}

Results = dict[str, tuple[Case, Measured]]
"""{case label: (case, what was measured)}."""


@dataclass(frozen=True)
class Claim:
    """What was claimed, by whom, the verdict, and the sentence with the numbers."""

    claim: str
    source: str
    verdict: str
    sentence: str


def signed(difference: Estimate) -> str:
    """-0.110 ± 0.022; negative is better. One seed has no interval."""
    return f"{difference.mean:+.3f}" + ("" if difference.half is None else f" ± {difference.half:.3f}")


def change(measured: Measured, arm: Key, base: Key, y: int | None = None) -> Estimate:
    """Arm minus base in class y, or in each game's worst class."""
    values = [measured.values[key] for key in (arm, base)]
    left, right = (table.amax(-1) if y is None else table[:, y] for table in values)
    return Estimate.of((left - right).numpy())


def verdict(signs: list[int], wanted: int) -> str:
    """How often what was claimed (`wanted`: -1 or 1) is what happened beyond doubt."""
    if all(sign == wanted for sign in signs):
        return REPRODUCED
    if any(sign == wanted for sign in signs):
        return CONDITIONAL
    return NOT_REPRODUCED if any(sign == -wanted for sign in signs) else OPEN


def _learnings(results: Results) -> list[str]:
    return sorted({key[0] for _, measured in results.values() for key in measured.values}, reverse=True)


def _nearest(measured: Measured, beta: float) -> tuple[float, Arm]:
    """The fixed positive beta nearest to `beta`, on a logarithmic axis, and its arm."""
    return min(_fixed(measured)[1:], key=lambda fixed: abs(np.log(fixed[0] / beta)))


def _fixed(measured: Measured, learning: str = "equilibrium") -> list[tuple[float, Arm]]:
    """(beta, arm) of the arms with one beta for all and uniform peers, beta 0 first."""
    arms = [arm for by, arm in measured.values if by == learning and not arm.peers]
    return sorted(((arm.beta, arm) for arm in arms if isinstance(arm.beta, float)), key=lambda fixed: fixed[0])


def _listed(results: Results, pick: Callable[[Case, Measured], Estimate]) -> tuple[list[int], str]:
    changes = {label: pick(case, measured) for label, (case, measured) in results.items()}
    return [one.sign for one in changes.values()], _joined(changes)


def _joined(changes: dict[str, Estimate]) -> str:
    return "; ".join(f"{label}: {signed(one)}" for label, one in changes.items())


def lower_worst(results: Results, source: str = "the paper") -> list[Claim]:
    """Is the worst class better with the paper's beta? One claim for each way of learning."""
    claims = []
    for learning in _learnings(results):
        _, arm = _nearest(next(iter(results.values()))[1], PAPER_BETA)
        signs, text = _listed(results, _against_alone(learning, arm))
        helped = [label for label, sign in zip(results, signs, strict=True) if sign < 0]
        where = f"it is so for {', '.join(helped)}" if helped else "in no case is the fall beyond doubt"
        sentence = f"With {arm.name} against beta 0, {BY[learning]}: {where}. Change of the worst class: {text}."
        claims.append(
            Claim("mutual learning lowers the worst class's divergence", source, verdict(signs, -1), sentence)
        )
    return claims


def head_suffers(results: Results) -> list[Claim]:
    """Does the head pay where classes are far apart (mu >= 2 at s = 1)?"""
    far = {label: one for label, one in results.items() if (one[0].separation or 0) >= 2}
    _, arm = _nearest(next(iter(far.values()))[1], PAPER_BETA)
    signs, text = _listed(far, _against_alone("equilibrium", arm, 0))
    sentence = f"With {arm.name} at the equilibrium, change of the head: {text}."
    return [Claim("the head suffers when mu is large", "the paper", verdict(signs, 1), sentence)]


def both_better(results: Results) -> list[Claim]:
    """Case two: do both classes gain at the same beta?"""
    claims = []
    _, measured = next(iter(results.values()))
    for learning in _learnings(results):
        pairs = {
            arm: [change(measured, (learning, arm), (learning, ALONE), y) for y in (0, 1)]
            for _, arm in _fixed(measured, learning)[1:]
        }
        both = [arm for arm, pair in pairs.items() if all(one.sign < 0 for one in pair)]
        _, arm = _nearest(measured, PAPER_BETA)
        head, tail = map(signed, pairs[arm])
        where = f"with {', '.join(one.name for one in both)}" if both else "at no beta"
        sentence = (
            f"Learned {BY[learning]}, both are better beyond doubt {where}; "
            f"with {arm.name} the head changes by {head}, the tail by {tail}."
        )
        outcome = REPRODUCED if arm in both else CONDITIONAL if both else NOT_REPRODUCED
        claims.append(Claim("both classes are better", "the paper", outcome, sentence))
    return claims


def v_shape(results: Results) -> list[Claim]:
    """Does the worst class fall and rise again over beta?"""
    claims = []
    for label, (_, measured) in results.items():
        betas, arms = zip(*_fixed(measured), strict=True)
        means = [float(measured.values["equilibrium", arm].amax(-1).mean()) for arm in arms]
        best = arms[int(np.argmin(means))]
        falls, rises = (change(measured, ("equilibrium", best), ("equilibrium", end)) for end in (arms[0], arms[-1]))
        outcome = verdict([falls.sign, rises.sign], -1)
        outcome = REPRODUCED if outcome == REPRODUCED else NOT_REPRODUCED
        curve = ", ".join(f"{mean:.3f} ({beta:g})" for mean, beta in zip(means, betas, strict=True))
        sentence = (
            f"{label}: worst class over beta {curve}; at {best.name}, {signed(falls)} against beta 0, {signed(rises)} "
            f"against {arms[-1].name}."
        )
        claims.append(Claim("the worst class over beta is V-shaped", "this project's prototype", outcome, sentence))
    return claims


def beats_controls(results: Results) -> list[Claim]:
    """Does mutual learning beat what a class could do without it?"""
    claims = []
    _, fixed = _nearest(next(iter(results.values()))[1], 1.0)
    for control in (TUNED_RIDGE_BOLD, COPY_HEAD, POOLED):
        for arm in (fixed, auto(), auto(BOLD)):
            signs, text = _listed(results, _against(("equilibrium", arm), ("equilibrium", control)))
            sentence = f"{arm.name} minus {control.name}, worst class at the equilibrium: {text}."
            claim = f"{arm.name} beats the control '{control.name}'"
            claims.append(Claim(claim, "a control", verdict(signs, -1), sentence))
    return claims


def _against(arm: Key, base: Key, y: int | None = None) -> Callable[[Case, Measured], Estimate]:
    return lambda _, measured: change(measured, arm, base, y)


def _against_alone(learning: str, arm: Arm, y: int | None = None) -> Callable[[Case, Measured], Estimate]:
    return _against((learning, arm), (learning, ALONE), y)


def auto_is_safe(results: Results, arm: Arm, rule: str) -> Claim:
    """The betas that classes choose must never be beyond doubt worse than beta 0; `rule` says how they choose."""
    rows = {}
    for label, (_, measured) in results.items():
        for learning in _learnings({label: results[label]}):
            rows[f"{label}, {learning}"] = change(measured, (learning, arm), (learning, ALONE))
    worse, better = ({label: one for label, one in rows.items() if one.sign == sign} for sign in (1, -1))
    harm = f"Worse beyond doubt in {len(worse)} of {len(rows)} ({_joined(worse)})" if worse else "Nowhere worse"
    gain = f"better beyond doubt in {len(better)} of {len(rows)} ({_joined(better)})" if better else "nowhere better"
    where, largest = max(rows.items(), key=lambda item: item[1].mean)
    sentence = f"{harm}, {gain}; the largest mean rise is {signed(largest)} ({where})."
    outcome = NOT_REPRODUCED if worse else REPRODUCED
    return Claim(
        f"choosing beta on held-out samples ({rule}) is never worse than beta 0", "this project", outcome, sentence
    )


def where_it_helps(results: Results) -> list[Claim]:
    """Over separation and imbalance: the cells where a fixed beta helps or harms beyond doubt."""
    claims = []
    for _, arm in _fixed(next(iter(results.values()))[1])[1:]:
        compared = _against_alone("equilibrium", arm)
        signs = [(case.separation or 0.0, compared(case, measured).sign) for case, measured in results.values()]
        helped, harmed = ([mu for mu, sign in signs if sign == wanted] for wanted in (-1, 1))
        sentence = (
            f"{arm.name}: better beyond doubt in {len(helped)} of {len(signs)} cells"
            + (f", none beyond mu = {max(helped):g}" if helped else "")
            + f"; worse beyond doubt in {len(harmed)}"
            + (f", none below mu = {min(harmed):g}." if harmed else ".")
        )
        outcome = CONDITIONAL if helped and harmed else REPRODUCED if helped else NOT_REPRODUCED
        claims.append(Claim("mutual learning lowers the worst class's divergence", "the paper", outcome, sentence))
    return claims


def nash_rate(curves: list[Curve], label: str) -> list[Claim]:
    """Proposition 1: the gap falls as 1 / sqrt(T), down to a floor of order beta. One seed leaves both undecided."""
    fits = {curve.name: Estimate.maybe(slopes(curve)[np.isfinite(slopes(curve))]) for curve in curves}
    text = "; ".join(f"{name}: {_slope(fit)}" for name, fit in fits.items() if fit)
    limits = [(fit.mean - fit.half, fit.mean + fit.half) for fit in fits.values() if fit and fit.half is not None]
    last = {curve.name: float(torch.exp(curve.values[-1].clamp(min=1e-300).log().mean())) for curve in curves}
    ends = "; ".join(f"{name}: {gap:.1e}" for name, gap in last.items())
    fast = all(low <= -0.5 for low, _ in limits)
    rate = Claim(
        "the Nash gap falls at least as fast as T^(-1/2)",
        "the paper, Proposition 1",
        (REPRODUCED if fast else NOT_REPRODUCED) if limits else OPEN,
        f"{label}, gradient descent from iteration 1000 to {curves[0].rounds[-1]}, slope of log gap on log T: {text}.",
    )
    gaps = list(last.values())
    floor = len(limits) == len(fits) and all(high > -0.1 for _, high in limits) and gaps == sorted(gaps)
    level = Claim(
        "the gap stops at a floor that grows with beta",
        "the paper's bound, O(beta)",
        (REPRODUCED if floor else NOT_REPRODUCED) if limits else OPEN,
        f"Gap after {curves[0].rounds[-1]} iterations: {ends}; it is {'flat' if floor else 'still falling'}.",
    )
    return [rate, level]


def _slope(fit: Estimate) -> str:
    return f"{fit.mean:.2f}" + ("" if fit.half is None else f" ± {fit.half:.2f}")


def review_table(results: Results, paper: dict[tuple[str, float, str], float]) -> list[Claim]:
    """Does a class move with beta as the published table says? One claim a class, at the largest published beta."""
    claims = []
    for label, (case, measured) in results.items():
        for y, name in enumerate(case.names):
            published = {beta: value for (where, beta, who), value in paper.items() if (where, who) == (label, name)}
            top = max(published)
            if ("equilibrium", at(top)) not in measured.values:
                continue
            theirs = published[top] - published[0.0]
            ours = change(measured, ("equilibrium", at(top)), ("equilibrium", ALONE), y)
            sentence = (
                f"From beta 0 to {top:g} the {name} changes by {theirs:+.3f} in print and by {signed(ours)} here."
            )
            verb = "falls" if theirs < 0 else "rises"
            outcome = verdict([ours.sign], int(np.sign(theirs)))
            claims.append(
                Claim(f"the {name}'s distance {verb} with beta", "the paper's review discussion", outcome, sentence)
            )
    return claims


def peers_matter(results: Results) -> list[Claim]:
    """Many classes: uniform Q against Q by similarity, at beta 0.1."""
    claims = []
    beta, arm = _nearest(next(iter(results.values()))[1], 0.1)
    signs, text = _listed(results, _against_alone("equilibrium", arm))
    claims.append(
        Claim(
            "uniform peers are harmful with many classes",
            "this project's prototype",
            verdict(signs, 1),
            f"{arm.name}: {text}.",
        )
    )
    similar = at(beta, SIMILAR)
    signs, text = _listed(results, _against_alone("equilibrium", similar))
    claims.append(
        Claim(
            "peers by similarity help with many classes",
            "this project's prototype",
            verdict(signs, -1),
            f"{similar.name}: {text}.",
        )
    )
    return claims
