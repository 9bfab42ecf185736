"""One plain sentence for each claim, worked out from the measured numbers, never written beforehand."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fedmutual.evaluation.intervals import Estimate
from simulations.game.cases import Case
from simulations.game.dynamics import Curve, slopes
from simulations.game.play import Measured, method

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


def signed(found: Estimate) -> str:
    """-0.110 ± 0.022; negative is better."""
    return f"{found.mean:+.3f}" + ("" if found.half is None else f" ± {found.half:.3f}")


def change(measured: Measured, arm: tuple[str, str], base: tuple[str, str], y: int | None = None) -> Estimate:
    """Arm minus base in class y, or in each game's worst class."""
    values = [measured.values[key] for key in (arm, base)]
    left, right = (table.amax(-1) if y is None else table[:, y] for table in values)
    return Estimate.of((left - right).numpy())


def verdict(signs: list[int], wanted: int) -> str:
    """How often what was claimed (`wanted`) is what happened beyond doubt."""
    if all(sign == wanted for sign in signs):
        return REPRODUCED
    if any(sign == wanted for sign in signs):
        return CONDITIONAL
    return NOT_REPRODUCED if any(sign == -wanted for sign in signs) else OPEN


def _learnings(results: Results) -> list[str]:
    return sorted({key[0] for _, measured in results.values() for key in measured.values}, reverse=True)


def _nearest(measured: Measured, beta: float) -> str:
    """The arm with a fixed positive beta nearest to `beta`."""
    return min(_fixed(measured)[1:], key=lambda name: abs(np.log(float(name[5:]) / beta)))


def _fixed(measured: Measured, learning: str = "equilibrium") -> list[str]:
    """The arms with one beta for all and uniform peers, beta 0 first."""
    names = [name[5:] for by, name in measured.values if by == learning and name.startswith("beta ")]
    return [method(beta) for beta in sorted((n for n in names if "," not in n and n != "auto"), key=float)]


def _listed(results: Results, pick: Callable[[Case, Measured], Estimate]) -> tuple[list[int], str]:
    changes = {label: pick(case, measured) for label, (case, measured) in results.items()}
    return [one.sign for one in changes.values()], "; ".join(f"{label}: {one}" for label, one in changes.items())


def lower_worst(results: Results, source: str = "the paper") -> list[Claim]:
    """Is the worst class better with the paper's beta? One claim for each way of learning."""
    claims = []
    for learning in _learnings(results):
        arm = _nearest(next(iter(results.values()))[1], PAPER_BETA)
        signs, text = _listed(results, lambda _, m, arm=arm, by=learning: change(m, (by, arm), (by, method("0"))))
        helped = [label for label, sign in zip(results, signs, strict=True) if sign < 0]
        where = f"it is so for {', '.join(helped)}" if helped else "in no case is the fall beyond doubt"
        sentence = f"With {arm} against beta 0, {BY[learning]}: {where}. Change of the worst class: {text}."
        claims.append(
            Claim("mutual learning lowers the worst class's divergence", source, verdict(signs, -1), sentence)
        )
    return claims


def head_suffers(results: Results) -> list[Claim]:
    """Does the head pay where classes are far apart (mu >= 2 at s = 1)?"""
    far = {label: one for label, one in results.items() if label in ("mu = 2", "mu = 5")}
    arm = _nearest(next(iter(far.values()))[1], PAPER_BETA)
    by = "equilibrium"
    signs, text = _listed(far, lambda _, m: change(m, (by, arm), (by, method("0")), 0))
    sentence = f"With {arm} at the equilibrium, change of the head: {text}."
    return [Claim("the head suffers when mu is large", "the paper", verdict(signs, 1), sentence)]


def both_better(results: Results) -> list[Claim]:
    """Case two: do both classes gain at the same beta?"""
    claims = []
    _, measured = next(iter(results.values()))
    for learning in _learnings(results):
        zero = (learning, method("0"))
        pairs = {
            name: [change(measured, (learning, name), zero, y) for y in (0, 1)]
            for name in _fixed(measured, learning)[1:]
        }
        both = [name for name, pair in pairs.items() if all(one.sign < 0 for one in pair)]
        arm = _nearest(measured, PAPER_BETA)
        head, tail = pairs[arm]
        found = (
            f"both are better beyond doubt with {', '.join(both)}"
            if both
            else "both are better beyond doubt at no beta"
        )
        sentence = f"Learned {BY[learning]}, {found}; with {arm} the head changes by {head}, the tail by {tail}."
        outcome = REPRODUCED if arm in both else CONDITIONAL if both else NOT_REPRODUCED
        claims.append(Claim("both classes are better", "the paper", outcome, sentence))
    return claims


def v_shape(results: Results) -> list[Claim]:
    """Does the worst class fall and rise again over beta?"""
    claims = []
    for label, (_, measured) in results.items():
        fixed = _fixed(measured)
        means = [float(measured.values["equilibrium", name].amax(-1).mean()) for name in fixed]
        best = fixed[int(np.argmin(means))]
        falls, rises = (change(measured, ("equilibrium", best), ("equilibrium", end)) for end in (fixed[0], fixed[-1]))
        outcome = verdict([falls.sign, rises.sign], -1)
        outcome = REPRODUCED if outcome == REPRODUCED else NOT_REPRODUCED
        curve = ", ".join(f"{mean:.3f} ({name[5:]})" for mean, name in zip(means, fixed, strict=True))
        sentence = (
            f"{label}: worst class over beta {curve}; at {best}, {falls} against beta 0, {rises} against {fixed[-1]}."
        )
        claims.append(Claim("the worst class over beta is V-shaped", "this project's prototype", outcome, sentence))
    return claims


def beats_controls(results: Results) -> list[Claim]:
    """Does mutual learning beat what a class could do without it?"""
    claims = []
    fixed = _nearest(next(iter(results.values()))[1], 1.0)
    for control in ("tuned ridge, caution 0", "copy head", "pooled"):
        for arm in (fixed, "beta auto", "beta auto, caution 0"):
            pair = ("equilibrium", arm), ("equilibrium", control)
            signs, text = _listed(results, lambda _, measured, pair=pair: change(measured, *pair))
            sentence = f"{arm} minus {control}, worst class at the equilibrium: {text}."
            claims.append(Claim(f"{arm} beats the control '{control}'", "a control", verdict(signs, -1), sentence))
    return claims


def auto_is_safe(results: Results, arm: str = "beta auto") -> Claim:
    """Auto beta must never be beyond doubt worse than beta 0."""
    rows = {}
    for label, (_, measured) in results.items():
        for learning in _learnings({label: results[label]}):
            rows[f"{label}, {learning}"] = change(measured, (learning, arm), (learning, method("0")))
    worse = [f"{label}: {one}" for label, one in rows.items() if one.sign > 0]
    better = [f"{label}: {one}" for label, one in rows.items() if one.sign < 0]
    found = f"Worse beyond doubt in {len(worse)} of {len(rows)} ({'; '.join(worse)})" if worse else "Nowhere worse"
    gain = f"better beyond doubt in {len(better)} of {len(rows)} ({'; '.join(better)})" if better else "nowhere better"
    largest = max(rows.items(), key=lambda item: item[1].mean)
    name = arm.removeprefix("beta auto").strip(", ") or "one standard error"
    sentence = f"{found}, {gain}; the largest mean rise is {largest[1]} ({largest[0]})."
    outcome = NOT_REPRODUCED if worse else REPRODUCED
    return Claim(
        f"choosing beta on held-out samples ({name}) is never worse than beta 0", "this project", outcome, sentence
    )


def where_it_helps(results: Results) -> list[Claim]:
    """Over separation and imbalance: the cells where a fixed beta helps or harms beyond doubt."""
    claims = []
    for name in _fixed(next(iter(results.values()))[1])[1:]:
        arm, base = ("equilibrium", name), ("equilibrium", method("0"))
        cells = {label: change(measured, arm, base) for label, (_, measured) in results.items()}
        helped, harmed = ([label for label, one in cells.items() if one.sign == sign] for sign in (-1, 1))
        reach = max((float(label.split(",")[0][5:]) for label in helped), default=None)
        least = min((float(label.split(",")[0][5:]) for label in harmed), default=None)
        sentence = (
            f"{name}: better beyond doubt in {len(helped)} of {len(cells)} cells"
            + (f", none beyond mu = {reach:g}" if helped else "")
            + f"; worse beyond doubt in {len(harmed)}"
            + (f", none below mu = {least:g}." if harmed else ".")
        )
        outcome = CONDITIONAL if helped and harmed else REPRODUCED if helped else NOT_REPRODUCED
        claims.append(Claim("mutual learning lowers the worst class's divergence", "the paper", outcome, sentence))
    return claims


def nash_rate(curves: list[Curve], label: str) -> list[Claim]:
    """Proposition 1: the gap falls as 1 / sqrt(T), down to a floor of order beta."""
    fits = {curve.name: Estimate.maybe(slopes(curve)[np.isfinite(slopes(curve))]) for curve in curves}
    known = [fit for fit in fits.values() if fit and fit.half is not None]
    text = "; ".join(
        f"{name}: {fit.mean:.2f}" + (f" ± {fit.half:.2f}" if fit.half is not None else "")
        for name, fit in fits.items()
        if fit
    )
    last = {curve.name: float(torch.exp(curve.values[-1].clamp(min=1e-300).log().mean())) for curve in curves}
    ends = "; ".join(f"{name}: {gap:.1e}" for name, gap in last.items())
    fast = all(fit.mean - fit.half <= -0.5 for fit in known)
    rate = Claim(
        "the Nash gap falls at least as fast as T^(-1/2)",
        "the paper, Proposition 1",
        REPRODUCED if fast else NOT_REPRODUCED,
        f"{label}, gradient descent from iteration 1000 to {curves[0].rounds[-1]}, slope of log gap on log T: {text}.",
    )
    gaps = list(last.values())
    floor = len(known) == len(fits) and all(fit.mean + fit.half > -0.1 for fit in known) and gaps == sorted(gaps)
    level = Claim(
        "the gap stops at a floor that grows with beta",
        "the paper's bound, O(beta)",
        REPRODUCED if floor else NOT_REPRODUCED,
        f"Gap after {curves[0].rounds[-1]} iterations: {ends}; it is {'flat' if floor else 'still falling'}.",
    )
    return [rate, level]


def review_table(results: Results, paper: dict[tuple[str, float, str], float]) -> list[Claim]:
    """Does a class move with beta as the published table says? One claim a class, at the largest published beta."""
    claims = []
    for label, (case, measured) in results.items():
        for y, name in enumerate(case.names):
            published = {beta: value for (where, beta, who), value in paper.items() if (where, who) == (label, name)}
            top = max(published)
            if ("equilibrium", method(f"{top:g}")) not in measured.values:
                continue
            theirs = published[top] - published[0.0]
            ours = change(measured, ("equilibrium", method(f"{top:g}")), ("equilibrium", method("0")), y)
            sentence = f"From beta 0 to {top:g} the {name} changes by {theirs:+.3f} in print and by {ours} here."
            verb = "falls" if theirs < 0 else "rises"
            outcome = verdict([ours.sign], int(np.sign(theirs)))
            claims.append(
                Claim(f"the {name}'s distance {verb} with beta", "the paper's review discussion", outcome, sentence)
            )
    return claims


def peers_matter(results: Results) -> list[Claim]:
    """Many classes: uniform Q against Q by similarity, at beta 0.1."""
    claims = []
    arm = _nearest(next(iter(results.values()))[1], 0.1)
    zero = ("equilibrium", method("0"))
    signs, text = _listed(results, lambda _, m: change(m, ("equilibrium", arm), zero))
    claims.append(
        Claim(
            "uniform peers are harmful with many classes",
            "this project's prototype",
            verdict(signs, 1),
            f"{arm}: {text}.",
        )
    )
    name = f"{arm}, similar peers"
    signs, text = _listed(results, lambda _, m: change(m, ("equilibrium", name), zero))
    claims.append(
        Claim(
            "peers by similarity help with many classes",
            "this project's prototype",
            verdict(signs, -1),
            f"{name}: {text}.",
        )
    )
    return claims
