"""The answer of a report, in sentences that are worked out from the numbers."""

from collections.abc import Sequence

from fedmutual.evaluation.intervals import Estimate
from fedmutual.methods import OURS
from simulations.report.comparison import Comparison
from simulations.report.words import estimated, listing, number, percent, size
from simulations.runs.arms import Arm


def answer(arms: Comparison) -> list[str]:
    """The comparison in three sentences; without what they need, which arm has the better worst class."""
    metric, compared = arms.headline, by_comparison(arms) if len(arms.arms) > 2 else None
    if metric is None:
        return ["No samples have been measured yet, so there is no answer. What is known so far is below."]
    worst = {arm.label: value for arm in arms.arms if (value := arms.value(arm, metric, "worst"))}
    if not worst:
        return ["No run has a measure of every class, so there is no answer. What is known is below."]
    sentences = compared or _plainly(arms, metric, worst)
    if max(value.seeds for value in worst.values()) == 1:
        what = "Each rests" if len(worst) > 1 else "This rests"
        sentences.append(f"{what} on one seed, and one seed proves nothing: repeat with several before believing it.")
    return sentences


def _plainly(arms: Comparison, metric: str, worst: dict[str, Estimate]) -> list[str]:
    measured = [arm for arm in arms.arms if arm.label in worst]
    best, *others = sorted(measured, key=lambda arm: worst[arm.label].mean)
    value = f"at a distance of {number(worst[best.label].mean)} from real data ({metric}; 0 is best)"
    if not others:
        overall = arms.value(best, metric, "mean")
        first = f"The worst class with {best.label} is {_worst_class(arms, best, metric)}, {value}."
        return [first, f"The mean over classes is {number(overall.mean if overall else None)}."]
    sentences = [f"The worst class fares best with {best.label}: it is {_worst_class(arms, best, metric)}, {value}."]
    for arm in others:
        gap = _gap(worst[best.label].mean, worst[arm.label].mean, arms.versus(arm, best, metric, "worst"))
        sentences.append(f"With {arm.label} it is {_worst_class(arms, arm, metric)}, {gap}.")
    return sentences


def _worst_class(arms: Comparison, arm: Arm, metric: str) -> str:
    worst = arm.worst_classes(metric)
    names = " or ".join(arms.classes[y] for y in worst)
    if len(worst) > 1 or worst[0] not in arms.counts:
        return f"class {names}"
    return f"class {names} ({arms.counts[worst[0]]} training samples)"


def _gap(base: float, value: float, paired: Estimate | None) -> str:
    """How far another's worst class is from the best's, with an interval where seeds can be paired."""
    share = f" ({percent((value - base) / base)})" if base > 0 else ""
    text = f"at {number(value)}: {number(value - base)} higher{share}"
    if paired is None or paired.half is None:
        return text
    low, high = number(paired.mean - paired.half), number(paired.mean + paired.half)
    chance = ", so it may be chance" if paired.by_chance else ""
    return f"{text}; 95 % interval {low} to {high} over {paired.seeds} seeds{chance}"


def by_comparison(arms: Comparison) -> list[str] | None:
    """Cost of keeping data apart, gain of mutual learning, leakage and bytes: a sentence each.

    None where no one arm speaks for mutual learning, or nothing was measured.
    """
    ours, metric = arms.arm(*OURS), arms.headline
    if ours is None or metric is None or not arms.by_seed(ours, metric, "worst"):
        return None
    return [_price(arms, ours, metric), _gain(arms, ours, metric), _exposure(arms, ours)]


def _price(arms: Comparison, ours: Arm, metric: str) -> str:
    value = f"{metric} {estimated(arms.value(ours, metric, 'worst'))} with {ours.label}"
    pooled = arms.arm("pooled")
    difference = arms.versus(ours, pooled, metric, "worst")
    if pooled is None or difference is None:
        why = f"{ours.label} and pooled share no seed" if pooled else "no arm was trained on pooled data"
        unknown = f"What keeping the data apart costs is not known, as {why}"
        return f"{unknown}: the worst class is at {value} (0 is perfect)."
    against = f"{value}, {estimated(arms.value(pooled, metric, 'worst'))} with one network trained on pooled data"
    kind, amount = arms.judge(difference, metric)
    over = f"95 % interval, {difference.seeds} seeds"
    seeds = f" ({over})" if difference.half is not None else ""
    best = _best(arms, [arm for arm in arms.arms if arm.data == "pooled"], metric)
    than_best = arms.versus(ours, best, metric, "worst")
    if best is not None and best is not pooled and than_best is not None:
        words = in_words(*arms.judge(than_best, metric))
        against += f"; against {best.label}, the best of the pooled arms, {words}"
    price = {
        "worse": f"Keeping the data apart costs the worst class {amount}{seeds}",
        "better": f"Keeping the data apart costs the worst class nothing, it is {amount} better{seeds}",
    }
    hidden = amount and f"{amount}; {over}"
    none = f"For the worst class, keeping the data apart makes {in_words(kind, hidden)}"
    return f"{price.get(kind, none)}: {against}."


def _best(arms: Comparison, among: Sequence[Arm], metric: str) -> Arm | None:
    values = {arm.label: value.mean for arm in among if (value := arms.value(arm, metric, "worst"))}
    return min((arm for arm in among if arm.label in values), key=lambda arm: values[arm.label], default=None)


def _gain(arms: Comparison, ours: Arm, metric: str) -> str:
    verdicts: dict[str, list[str]] = {}
    for arm in arms.arms:
        rival = arm.data == "control" or (arm.data == "stays" and arm.method not in OURS)
        difference = arms.versus(ours, arm, metric, "worst") if rival else None
        if difference is None:
            continue
        kind, amount = arms.judge(difference, metric)
        verdicts.setdefault(kind, []).append(f"{arm.label} ({amount})" if amount else arm.label)
    kinds = {
        "better": "is better than {}",
        "worse": "is worse than {}",
        "chance": "differs from {} by no more than chance",
        "same": "is the same as {}",
    }
    parts = [text.format(listing(verdicts[kind])) for kind, text in kinds.items() if kind in verdicts]
    if not parts:
        return "Whether mutual learning gains anything is not known, as there is no other arm to compare it with."
    return f"For the worst class, mutual learning ({ours.label}) {'; it '.join(parts)}."


def _exposure(arms: Comparison, ours: Arm) -> str:
    moved = arms.cost(ours, "bytes")
    cost = f"the whole training moved {size(moved)}" if moved is not None else "bytes were not recorded"
    of = "rarest" if arms.ends else "worst"
    several = "classes" if len(arms.ends.get("rarest", ())) > 1 else "class"
    classes = f"the {arms.title('rarest')} {several}" if arms.ends else "the class that leaks most"
    leak = arms.leak(ours, of)
    if leak is None:
        return f"What a peer learns about training samples has not been measured (`fedmutual audit`), and {cost}."
    others = [arms.arm("isolated"), arms.arm("fedavg"), arms.arm("pooled")]
    known = [f"{arm.label} {other.mean:.2f}" for arm in others if arm and (other := arms.leak(arm, of))]
    beside = f"; {', '.join(known)}" if known else ""
    text = f"From the networks it is sent, a peer tells training samples of {classes} from unseen ones"
    text += f" with an AUC of {estimated(leak)} (0.5 is a coin{beside})"
    extracted = arms.extracted(ours, of)
    if extracted:
        text += f" and regenerates {percent(extracted.mean)} of them"
    return f"{text}, and {cost}."


def in_words(kind: str, amount: str) -> str:
    """A verdict of `Comparison.judge`: 0.84 ± 0.39 better; no difference beyond chance (±0.39); no difference."""
    if kind in ("better", "worse"):
        return f"{amount} {kind}"
    return f"no difference beyond chance ({amount})" if amount else "no difference"
