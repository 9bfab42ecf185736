"""What a peer learns about training samples, as the audits of the arms measured it."""

from dataclasses import dataclass
from statistics import mean

from markupsafe import Markup

from simulations.report.comparison import Comparison, Of
from simulations.report.tables import Table, estimate_cell, grouped, rarest_first, small
from simulations.report.words import percent, whole
from simulations.runs.arms import Arm


@dataclass(frozen=True)
class Leakage:
    """An arm a row, the rarest class first; `shuffled` are mean, least and largest AUC of the control.

    parts: {`published` or `whole`: the arms whose networks are published in part, and of which that was attacked}.
    """

    auc: Table
    share: Table
    shuffled: tuple[float, float, float] | None
    attacks: list[str]
    parts: dict[str, list[str]]


def leakage(arms: Comparison) -> Leakage | None:
    """AUC of the strongest attack, and the share of training samples regenerated; None where nothing was audited."""
    audited = [arm for arm in arms.arms if any(run.audit for run in arm.runs)]
    if not audited:
        return None
    summaries = [*(("worst", "mean") if arms.many else ()), *arms.ends]
    shown: list[Of] = [*summaries, *rarest_first(arms)]
    head = ["arm", *map(arms.title, summaries), *_class_heads(arms, audited)]
    shuffled = [value for arm in audited for value in arms.shuffled(arm)]
    return Leakage(
        auc=Table(head, grouped(audited, lambda arm: [arm.label, *(_auc(arms, arm, of) for of in shown)])),
        share=Table(head, grouped(audited, lambda arm: [arm.label, *(_share(arms, arm, of) for of in shown)])),
        shuffled=(mean(shuffled), min(shuffled), max(shuffled)) if shuffled else None,
        attacks=sorted({key[2] for by_class in arms.attacks.values() for key in by_class.values() if key}),
        parts=_parts(audited),
    )


def _parts(audited: list[Arm]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    for arm in audited:
        for part in sorted({row.part for run in arm.runs for row in run.audit if row.part}):
            parts.setdefault(part, []).append(arm.label)
    return parts


def _class_heads(arms: Comparison, audited: list[Arm]) -> list[Markup]:
    """Names of the classes, with how many training samples stood against how many others."""
    rows = [row for arm in audited for run in arm.runs for row in run.audit if row["metric"] == "auc"]
    members = {row["class"]: (row.get("members"), row.get("non_members")) for row in rows}
    heads = []
    for y in rarest_first(arms):
        ours, others = members.get(y, (None, None))
        heads.append(small(arms.classes[y], f"{whole(ours)} against {whole(others)}" if ours is not None else ""))
    return heads


def _auc(arms: Comparison, arm: Arm, of: Of) -> Markup:
    bounds = arms.leak_bounds(arm, of) if isinstance(of, int) else None
    return estimate_cell(arms.leak(arm, of), f"{bounds[0]:.2f} to {bounds[1]:.2f}" if bounds else "")


def _share(arms: Comparison, arm: Arm, of: Of) -> str:
    value = arms.extracted(arm, of)
    return percent(value.mean if value else None)
