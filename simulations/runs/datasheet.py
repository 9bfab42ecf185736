"""The datasheet of a release: all that is known of it, as JSON holds it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedmutual.evaluation import class_metrics, two_nearest
from fedmutual.evaluation.intervals import Estimate
from fedmutual.evaluation.metrics import Nearest
from fedmutual.evaluation.usefulness import Scores, training_sets
from simulations.runs.arms import ends
from simulations.runs.release import Releasing

QUANTILES = {"5 %": 0.05, "median": 0.5}
"""Of distances to the closest record: how near the nearest come, and how near all are."""

RULE = (
    "Real data and released samples: each class of the real data is lifted to the size of the largest, as far as its "
    "released samples reach. Classifiers of all sets train for as many steps, those of the largest set."
)


def datasheet(made: Releasing, folders: Mapping[int, str]) -> dict[str, Any]:
    """All that is known of the release, as JSON holds it; `folders` names the folder of each class's images.

    `rows` has a record a class. A number that is not known is null.
    """
    missing = [name for y, name in enumerate(made.names) if y not in made.samples]
    return finite(
        {
            "data": made.facts.name,
            "method": made.facts.method,
            "round": made.round,
            "seed": made.config.seed,
            "shape": list(made.shape),
            "images": made.images,
            "missing": missing,
            "drop_copies": made.drop_copies,
            "guarantee": guarantee(made.facts, made.drop_copies, made.config.publishing.in_parts),
            "rows": [_class_row(made, y, folders.get(y)) for y in sorted(made.samples)],
            "usefulness": _usefulness(made) if made.scores else None,
            "not_useful": made.not_useful,
            "attacks": [dict(row) for row in made.attacks],
            "not_attacked": made.not_attacked,
            "extractor": made.extractor.facts if made.extractor else None,
            "versions": made.facts.versions,
        }
    )


def _class_row(made: Releasing, y: int, folder: str | None) -> dict[str, Any]:
    kept, train, test = made.samples[y], made.train[y], made.test[y]
    fidelity = class_metrics(kept.numpy(), test.numpy(), train.numpy())
    if made.extractor and len(kept) and len(test):
        fidelity |= made.extractor.metrics(made.extractor(kept), made.extractor(test))
    unseen = made.source.unseen(y)[: made.count]
    return {
        "class": y,
        "name": made.names[y],
        "folder": folder,
        "training": len(train),
        "drawn": made.count,
        "near_copies": made.copies[y],
        "left_out": made.count - len(kept),
        "released": len(kept),
        "fidelity": fidelity,
        "closest": {
            "released": _closeness(made.nearest[y]),
            "unseen": _closeness(two_nearest(unseen.numpy(), train.numpy())),
        },
    }


def _usefulness(made: Releasing) -> dict[str, Any]:
    sets = training_sets(made.train, made.samples)
    told = {
        name: {
            "samples": {y: len(part) for y, part in sets[name].items()},
            "accuracy": _estimate([one.accuracy for one in found]),
            "macro_f1": _estimate([one.macro_f1 for one in found]),
            "recall": {y: _estimate([one.recall[y] for one in found]) for y in made.train},
        }
        for name, found in made.scores.items()
        if found
    }
    rarest = ends({y: len(part) for y, part in made.train.items()})["rarest"]
    return {
        "seeds": made.seeds,
        "rule": RULE,
        "test": {y: len(part) for y, part in made.test.items()},
        "rarest": rarest,
        "sets": told,
        "differences": [_difference(made.scores, "both", other, rarest) for other in ("real", "repeated")],
    }


def _closeness(near: Nearest) -> dict[str, Any]:
    """Quantiles of the distance to the closest training sample, and of its ratio to the second."""
    first, second = near.distances.T
    if not len(first):
        return {"samples": 0, "distance": None, "ratio": None}
    ratio = np.where(np.isfinite(second), near.ratios, np.nan)
    return {
        "samples": len(first),
        "distance": {name: float(np.quantile(first, q)) for name, q in QUANTILES.items()},
        "ratio": {name: float(np.quantile(ratio, q)) for name, q in QUANTILES.items()},
    }


def _estimate(values: list[float]) -> dict[str, Any]:
    estimate = Estimate.of(values)
    return {"mean": estimate.mean, "ci95": estimate.half, "seeds": estimate.seeds}


def _difference(scores: Mapping[str, list[Scores]], one: str, other: str, rarest: list[int]) -> dict[str, Any]:
    """`one` minus `other`, paired by seed, and whether the interval excludes 0."""
    pairs = list(zip(scores[one], scores[other], strict=True))
    values = {
        "accuracy": [a.accuracy - b.accuracy for a, b in pairs],
        "macro_f1": [a.macro_f1 - b.macro_f1 for a, b in pairs],
        "recall of the rarest": [float(np.mean(a.recall[rarest] - b.recall[rarest])) for a, b in pairs],
    }
    told = {name: _estimate(of) | {"sign": Estimate.of(of).sign} for name, of in values.items()}
    return {"of": one, "to": other, **told}


def guarantee(facts: Mapping[str, Any], drop_copies: bool, in_parts: bool = False) -> dict[str, Any]:
    """Epsilon and delta of the run's facts, or none, and what may be said of the release.

    in_parts: samples are drawn from private parts as well, which were never sent, and no epsilon is of them.
    """
    epsilon, delta = facts.get("epsilon"), facts.get("delta")
    if epsilon is None:
        return {"epsilon": None, "delta": None, "words": "No formal guarantee."}
    stated = f"The run states epsilon = {epsilon:.3g} at delta = {delta:.3g} for what its clients sent"
    if in_parts:
        words = f"{stated}. These samples are drawn from the owners' private parts as well: no formal guarantee."
        return {"epsilon": None, "delta": None, "words": words}
    words = f"{stated}; these samples are drawn from that alone and are covered, but not what is measured of them here."
    if drop_copies:
        words = f"{stated}; it does not cover this release, as leaving out near copies has looked at training samples."
    return {"epsilon": epsilon, "delta": delta, "words": words}


def finite(value: Any) -> Any:
    """`value` with null for each number that is not finite, which JSON has no word for."""
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
