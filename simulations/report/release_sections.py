"""What a datasheet of a release says, as sentences and tables of words, for a page and for a README alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedmutual.evaluation import COUNTS, METRICS, in_order
from fedmutual.run_folder import MEAN, WORST
from simulations.report.words import NOTHING, interval, listing, number, percent, spread, whole
from simulations.runs.membership import COLUMNS

Sheet = Mapping[str, Any]

SETS = {
    "synthetic": "released samples alone (TSTR)",
    "real": "real data, long-tailed (TRTR)",
    "both": "real data and released samples",
    "repeated": "real data, rare classes repeated",
}
"""The training sets of the classifiers, as a reader knows them."""

PROXY = (
    "How far a sample lies from the closest training sample of its class, and its ratio to the second, "
    "beside the same for real samples that no training saw. This is a proxy that proves nothing: samples can be far "
    "from every training sample and give one away. Suspicious is a release that lies nearer than real samples do."
)

ATTACKED = (
    "The attacks on samples alone are what a user of the release can do: near (distance to the nearest released "
    "sample), dense (the ratio of densities of released and of real samples, for which half of the unseen ones stand), "
    "extracted (a released sample is nearer to a training sample than 99 % of unseen ones have one). PIA, loss, SimA "
    "and SecMI ask a class's network, which is not released, and is held by the peers and the server. AUC is the "
    "chance that a training sample ranks above an unseen one: .5 is a coin, 1 is certainty. In brackets: 95 % "
    "intervals over samples."
)

LIMITS = (
    "The attacks are those that are named: that they find little does not mean that there is little to find.",
    "The numbers here were worked out from the training samples, and no guarantee covers them.",
    "Samples show what the network learnt. Where the training data are not like the world, neither are the samples.",
    "Intervals over classifiers tell how much another start of the classifier would change; they say nothing about "
    "another training of the generator, or about other data.",
)


@dataclass(frozen=True)
class Section:
    """A heading, what to know before reading, and a table of words, its head first; none where nothing was measured."""

    title: str
    words: Sequence[str]
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


def answer(sheet: Sheet) -> list[str]:
    """The release in a few sentences: what there is, what it is good for, what it gives away."""
    rows = sheet["rows"]
    released, copies = (sum(row[key] for row in rows) for key in ("released", "near_copies"))
    kind = "images" if sheet["images"] else "samples"
    first = (
        f"{whole(released)} generated {kind} of {len(rows)} classes, none of them real. {sheet['guarantee']['words']}"
    )
    what = "were left out" if sheet["drop_copies"] else "are among them"
    drawn = sum(row["drawn"] for row in rows)
    second = f"Near copies of a training sample: {whole(copies)} of {whole(drawn)} that were drawn; they {what}."
    missing = f"No samples of class {listing(sheet['missing'])}: no network of it was ever accepted."
    return [first, *_use(sheet), second, *_risk(sheet), *([missing] if sheet["missing"] else [])]


def _use(sheet: Sheet) -> list[str]:
    if not sheet["usefulness"]:
        return [f"What the release is good for was not measured: {sheet['not_useful']}."]
    sets, (to_real, to_repeated) = sheet["usefulness"]["sets"], sheet["usefulness"]["differences"]
    reached = [f"{interval(*_pair(sets[name]['macro_f1']))} on {SETS[name]}" for name in SETS if name in sets]
    return [
        f"Macro-F1 of a classifier on real test samples: {listing(reached)}.",
        f"Adding the release to the real data {_verdict(to_real)} in macro-F1; against repeating rare classes it "
        f"{_verdict(to_repeated)}.",
    ]


def _verdict(difference: Mapping[str, Any]) -> str:
    of = difference["macro_f1"]
    if not of["sign"]:
        return f"makes no difference beyond chance ({spread(of['ci95'])})" if of["ci95"] else "makes no difference"
    return f"{'gains' if of['sign'] > 0 else 'loses'} {interval(abs(of['mean']), of['ci95'])}"


def _risk(sheet: Sheet) -> list[str]:
    if not sheet["attacks"]:
        return [f"No attack was tried: {sheet['not_attacked']}."]
    by_key = _by_key(sheet)
    worst = [by_key.get((WORST, *COLUMNS[name])) for name in ("near", "dense", "extracted")]
    near, dense, extracted = (None if row is None else row["value"] for row in worst)
    return [
        f"In its worst class, who holds the release alone tells training samples from unseen ones with an AUC of "
        f"{number(near)} by distance and {number(dense)} by density (.5 is a coin), and finds "
        f"{percent(extracted)} of them nearly drawn."
    ]


def sections(sheet: Sheet) -> list[Section]:
    """Every part of the datasheet, in the order of a reader's questions."""
    return [_contents(sheet), _fidelity(sheet), *_usefulness(sheet), _closest(sheet), *_attacks(sheet)]


def _contents(sheet: Sheet) -> Section:
    columns = ("training", "drawn", "near_copies", "left_out", "released")
    rows = [[row["name"], *(whole(row[key]) for key in columns), row["folder"] or NOTHING] for row in sheet["rows"]]
    near = (
        "Near copies are samples less than a third as far from a training sample as from the next one. Leaving them "
        "out takes a look at the training samples, and what is missing can tell about them too."
    )
    return Section("What is in it", [near], ["class", *(key.replace("_", " ") for key in columns), "folder"], rows)


def _fidelity(sheet: Sheet) -> Section:
    metrics = in_order({name for row in sheet["rows"] for name in row["fidelity"]} - set(COUNTS))
    rows = [
        [
            row["name"],
            *(whole(row["fidelity"][key]) for key in ("n_generated", "n_reference")),
            *(number(row["fidelity"].get(name)) for name in metrics),
        ]
        for row in sheet["rows"]
    ]
    words = [f"{METRICS[name].title} ({name}): {METRICS[name].gloss}" for name in metrics if "-" not in name]
    intro = "Released samples against the real test samples of the class, which no training saw; counts first."
    return Section("How like the real ones they are", [intro, *words], ["class", "released", "real", *metrics], rows)


def _usefulness(sheet: Sheet) -> list[Section]:
    useful, title = sheet["usefulness"], "What they are good for"
    if not useful:
        return [Section(title, [f"Not measured: {sheet['not_useful']}."])]
    rows = [
        [
            SETS[name],
            whole(sum(one["samples"].values())),
            *(interval(*_pair(one[key])) for key in ("accuracy", "macro_f1")),
        ]
        for name, one in useful["sets"].items()
    ]
    rows += [
        [
            f"difference: {SETS[one['of']]}, minus {SETS[one['to']]}",
            "",
            *(interval(*_pair(one[key])) for key in ("accuracy", "macro_f1")),
        ]
        for one in useful["differences"]
    ]
    words = [
        f"A small classifier learns from each set and is tested on {whole(sum(useful['test'].values()))} real samples "
        f"that no training saw; means over {useful['seeds']} classifiers ± half the 95 % interval, differences paired "
        f"by classifier.",
        useful["rule"],
        "Repeating rare classes gives the balance of real and released samples without a released one: what lies "
        "above it is due to the samples.",
    ]
    return [Section(title, words, ["trained on", "samples", "accuracy", "macro-F1"], rows), _recalls(sheet)]


def _recalls(sheet: Sheet) -> Section:
    sets = sheet["usefulness"]["sets"]
    names = {row["class"]: row["name"] for row in sheet["rows"]}
    training = sets["real"]["samples"]
    rows = []
    for y in sorted(names, key=lambda y: (training[y], y)):
        added = sets["both"]["samples"][y] - training[y]
        counts = [whole(training[y]), whole(added), whole(sheet["usefulness"]["test"][y])]
        rows.append([names[y], *counts, *(interval(*_pair(one["recall"][y])) for one in sets.values())])
    intro = "Share of the real test samples of a class that are recognised, the rarest class first."
    head = ["class", "real", "added in both", "tested on", *(SETS[name] for name in sets)]
    return Section("Recall of each class", [intro], head, rows)


def _closest(sheet: Sheet) -> Section:
    rows = []
    for row in sheet["rows"]:
        cells = [row["name"]]
        for side in ("released", "unseen"):
            one = row["closest"][side]
            cells.append(whole(one["samples"]))
            for key in ("distance", "ratio"):
                known = one[key] or {}
                cells.append(" / ".join(number(value) for value in known.values()) or NOTHING)
        rows.append(cells)
    head = ["class", "released", "distance", "ratio", "unseen real", "distance", "ratio"]
    words = [PROXY, "Each cell: the value that 5 % of the samples fall below / the median."]
    return Section("Distance to the closest training sample", words, head, rows)


def _attacks(sheet: Sheet) -> list[Section]:
    title = "What attacks find"
    if not sheet["attacks"]:
        return [Section(title, [f"Not attacked: {sheet['not_attacked']}."])]
    known = {(row["attack"], row["t"], row["metric"]) for row in sheet["attacks"]}
    tried = {name.removeprefix("AUC: "): key for name, key in COLUMNS.items() if key in known and key[2] == "auc"}
    tables = {
        "AUC": tried,
        "Found at 1 % false alarms": {name: (*key[:2], "tpr-at-1-fpr") for name, key in tried.items()}
        | {"extracted": COLUMNS["extracted"]},
    }
    notes = {
        "AUC": [ATTACKED],
        "Found at 1 % false alarms": [
            "Share of training samples that are found while at most 1 % of unseen ones are taken for one, which needs "
            "100 unseen ones; and the share that is extracted."
        ],
    }
    return [
        Section(f"{title}: {name}", notes[name], *_attack_table(sheet, columns)) for name, columns in tables.items()
    ]


def _attack_table(sheet: Sheet, columns: Mapping[str, tuple[Any, ...]]) -> tuple[list[str], list[list[str]]]:
    by_key, names = _by_key(sheet), {row["class"]: row["name"] for row in sheet["rows"]}
    rows = []
    for y, name in {WORST: "worst class", MEAN: "mean", **names}.items():
        known = [by_key.get((y, *key)) for key in columns.values()]
        sizes = next((row for row in known if row), None) if isinstance(y, int) else None
        counts = [whole(sizes["members"]), whole(sizes["non_members"])] if sizes else ["", ""]
        rows.append([name, *counts, *map(_bounded, known)])
    return ["class", "training", "unseen", *columns], rows


def _bounded(row: Mapping[str, Any] | None) -> str:
    if row is None or row["value"] is None:
        return NOTHING
    return f"{row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


def _by_key(sheet: Sheet) -> dict[tuple[Any, ...], Mapping[str, Any]]:
    return {(row["class"], row["attack"], row["t"], row["metric"]): row for row in sheet["attacks"]}


def _pair(estimate: Mapping[str, Any]) -> tuple[float, float | None]:
    mean = estimate["mean"]
    return float("nan") if mean is None else mean, estimate["ci95"]
