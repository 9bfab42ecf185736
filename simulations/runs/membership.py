"""What a run's networks tell a peer about its training samples: the attacks of `fedmutual.evaluation.membership`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from fedmutual.config import RunConfig
from fedmutual.data import open_source
from fedmutual.data.fingerprint import fingerprint, refuse_changed
from fedmutual.device import dtype_of, pick_device
from fedmutual.diffusion import make_process
from fedmutual.diffusion.sampling import noise_predictor
from fedmutual.errors import UserError
from fedmutual.evaluation.lower_bound import Guesses
from fedmutual.evaluation.membership import PIA_TIME, SECMI_TIME, SIMA_TIME, TIMES, Finding, audit, mean
from fedmutual.networks.split import border
from fedmutual.run_folder import MEAN, WORST, AuditRow, read_facts, write_audit
from fedmutual.seeds import generator
from simulations.runs.networks import class_networks, publishes_in_part, run_config, sent_networks
from simulations.runs.proved import bound_row, guesses
from simulations.runs.sampling import OnClass, draw_class
from simulations.runs.shadows import attack_with_shadows, refuse_unshadowed

LEAST = 10
"""The fewest non-members that members can be compared with."""

CHANGEABLE = ("audit-candidates", "data", "data-path", "device", "store")
"""Settings of an audit's own, and those that say where the data lie: none says what was trained."""


def audit_run(
    folder: Path,
    on_class: OnClass = lambda y: None,
    which: str = "last",
    changes: Mapping[str, Any] | None = None,
    only: int | None = None,
    drawn: Mapping[int, Tensor] | None = None,
    whole: bool = False,
    shadows: int = 0,
) -> list[AuditRow]:
    """Audit a run's checkpoint, and write `audit.json`; its rows. Arguments and errors as `attack_run`."""
    round_, rows = attack_run(folder, on_class, which, changes, only, drawn, whole, shadows)
    write_audit(folder, round_, rows)
    return rows


def attack_run(
    folder: Path,
    on_class: OnClass = lambda y: None,
    which: str = "last",
    changes: Mapping[str, Any] | None = None,
    only: int | None = None,
    drawn: Mapping[int, Tensor] | None = None,
    whole: bool = False,
    shadows: int = 0,
) -> tuple[int, list[AuditRow]]:
    """(round, rows) of every attack on a run's checkpoint; nothing is written.

    Of networks that are published in part the published one is attacked, and what is extracted are its guesses of x_0
    where it ends; with `whole` it is the owner's whole network, as if that were sent.

    `WORST` is the class where the attack finds most, so that its interval does not cover the choice. `changes` are
    settings of `CHANGEABLE`; `only` audits one class, the one whose holder has the data; `drawn` are each class's
    samples by `draw_samples`, if they are at hand; `shadows` are trained for each class, for attacks that need them.

    Raises:
        UserError: no run or checkpoint; the data are not on this machine; too few non-members.
    """
    config = _changed(run_config(folder), changes or {})
    device = pick_device(config.compute)
    process = make_process(config.diffusion, device, dtype_of(config.compute))
    part = ("whole" if whole else "published") if publishes_in_part(folder) else None
    start = 0.0
    if part == "published":
        round_, networks = sent_networks(folder, which, device)
        process, start, drawn = process.above(border(config)), config.publishing.split, None
        config = config.but(sampler="ddpm", sampling_steps=0)  # guesses are cheap, and no fewer steps were asked for
    else:
        here = {"store": config.federation.store} if config.federation.store else {}
        round_, networks = class_networks(folder, which, device, here)
    if shadows:
        refuse_unshadowed(list(networks.values()), shadows)
    sides = _candidates(config, sorted(networks), only)
    counts = {y: len(train) for y, (train, _) in sides.items()}
    facts = read_facts(folder)
    refuse_changed(folder, {y: fingerprint(train) for y, (train, _) in sides.items()}, list(facts.class_names))
    method = facts.method
    findings: dict[int, list[Finding]] = {}
    sizes: dict[int, tuple[int, int]] = {}
    rows: list[AuditRow] = []
    claimed, told = config.publishing.proved and not whole, Guesses(0, 0, 0)
    for y, parts in sides.items():
        members, non_members = (
            part[: config.measuring.audit_candidates].to(device, process.alpha.dtype) for part in parts
        )
        if drawn:
            samples = drawn[y]
        else:
            shape = tuple(members.shape[1:])
            samples = draw_class(networks[y], process, shape, config.measuring.samples, config, y, round_)
        predict = noise_predictor(networks[y], process, config.diffusion.parametrisation, clip=False)
        rng = generator(config.seed, y, round_, "audit", device=device)
        findings[y] = audit(predict, process, members, non_members, samples, rng, start)
        if claimed:
            told += guesses(predict, process, members, non_members, config, y, start)
        if shadows:
            findings[y] += attack_with_shadows(networks[y], process, members, non_members, config, y, shadows)
        sizes[y] = len(members), len(non_members)
        rows += [_row(method, config.seed, y, counts[y], finding, sizes[y]) for finding in findings[y]]
        on_class(y)
    for same in _by_attack(findings):
        rows += _summaries(method, config.seed, same, sizes)
    rows += [bound_row(method, config, told, start)] if claimed else []
    return round_, [replace(row, part=part) for row in rows]


def _by_attack(findings: Mapping[int, Sequence[Finding]]) -> list[dict[int, Finding]]:
    """For each number of an audit {class: finding}; a class of which nothing was drawn lacks those on samples."""
    groups: dict[tuple[str, float | None, str], dict[int, Finding]] = {}
    for y, of_class in findings.items():
        for one in of_class:
            groups.setdefault((one.attack, one.t, one.metric), {})[y] = one
    return list(groups.values())


def _changed(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    other = sorted(changes.keys() - set(CHANGEABLE))
    if other:
        raise UserError(
            f"an audit takes a run as it was trained: {', '.join(other)} cannot change, only {', '.join(CHANGEABLE)}"
        )
    return RunConfig.of(config.settings(), dict(changes))


def _candidates(config: RunConfig, networks: list[int], only: int | None) -> dict[int, tuple[Tensor, Tensor]]:
    """{class: (what it was trained on, what training did not see)}, of every class before the first is attacked."""
    if only is not None and only not in networks:
        raise UserError(f"class {only} has no network in this run: there are {', '.join(map(str, networks))}")
    try:
        source = open_source(config.data, config.seed, keep=only is None)
        if only is None:
            source.counts  # noqa: B018  (also refuses the data of a single class, which are not those of the others)
        classes = networks if only is None else [only]
        sides = {y: (source.train(y), source.unseen(y)) for y in classes}
    except UserError as error:
        raise UserError(
            f"an audit needs the members' data ({error}): run it where they are, a holder of one class "
            "with --class N -s data-path=..."
        ) from None
    for y, (_, unseen) in sides.items():
        if len(unseen) < LEAST:
            raise UserError(
                f"class {source.names[y] if len(source.names) > 1 else y} has {len(unseen)} samples that training did "
                f"not see, and an audit compares with {LEAST} or more: train with a larger held-out or test part"
            )
    return sides


def _summaries(
    method: str, seed: int, by_class: dict[int, Finding], sizes: dict[int, tuple[int, int]]
) -> list[AuditRow]:
    """Rows of the worst class, where the attack finds most, and of the mean; the control has no worst class."""
    finding = next(iter(by_class.values()))
    known = {y: one for y, one in by_class.items() if not math.isnan(one.estimate.value)}
    average = finding._replace(estimate=mean([one.estimate for one in known.values()]), others=None)
    members = sum(sizes[y][0] for y in known)
    others = sum(sizes[y][1] if one.others is None else one.others for y, one in known.items())
    rows = [_row(method, seed, MEAN, None, average, (members, others))]
    if known and finding.attack != "control-shuffled":
        worst = max(known, key=lambda y: known[y].estimate[:2])  # of equals the surest
        rows.append(_row(method, seed, WORST, None, known[worst], sizes[worst]))
    return rows


def _row(
    method: str, seed: int, class_: int | str, n_train: int | None, finding: Finding, sizes: tuple[int, int]
) -> AuditRow:
    estimate = {key: None if math.isnan(value) else value for key, value in finding.estimate._asdict().items()}
    return AuditRow(
        method=method,
        seed=seed,
        class_=class_,
        n_train=n_train,
        attack=finding.attack,
        t=finding.t,
        metric=finding.metric,
        value=estimate["value"],
        low=estimate["low"],
        high=estimate["high"],
        queries=finding.queries,
        members=sizes[0],
        non_members=sizes[1] if finding.others is None else finding.others,
    )


Key = tuple[str, float | None, str]
"""(attack, t, metric) of a row."""

COLUMNS: Mapping[str, Key] = {
    "AUC: PIA": ("pia", PIA_TIME, "auc"),
    "loss": ("loss", None, "auc"),
    "SimA": ("sima", SIMA_TIME, "auc"),
    "SecMI": ("secmi", SECMI_TIME, "auc"),
    "near": ("distance", None, "auc"),
    "dense": ("density-ratio", None, "auc"),
    "GSA": ("gsa", None, "auc"),
    "LiRA": ("lira", None, "auc"),
    "PIA at 1% FPR": ("pia", PIA_TIME, "tpr-at-1-fpr"),
    "extracted": ("extraction", None, "extracted"),
}
"""{column of the table: its key, at the times of a network that knows all}; *near* and *dense* are the attacks on
samples alone; GSA and LiRA need shadows, and have no column without."""

SHOWN = 30
"""Classes in a table of a terminal: audit.json and the report have all."""

WITH_INTERVAL = ("AUC: PIA", "extracted")


def _as_asked(rows: Sequence[AuditRow], key: Key) -> Key:
    """The key of what was asked in place of `key`, where a network knows high noise alone."""
    attack, t, metric = key
    asked = sorted({row.t for row in rows if row.attack == "pia" and row.t is not None})
    return attack, None if t is None else asked[TIMES.index(t)], metric


def table(rows: Sequence[AuditRow]) -> Table:
    """A line for the worst class, one for the mean, one for each class, or the `SHOWN` that leak most of many; 95 %
    intervals, – where undefined."""
    by_key = {(row.class_, row.attack, row.t, row.metric): row for row in rows}
    classes = list(dict.fromkeys(row.class_ for row in rows))
    lines = Table("class", "members", "others", box=None, padding=(0, 2, 0, 0))
    tried = {(row.attack, row.t, row.metric) for row in rows}
    asked = {name: _as_asked(rows, key) for name, key in COLUMNS.items()}
    columns = {name: key for name, key in asked.items() if key in tried or name not in ("GSA", "LiRA")}
    for heading in columns:
        lines.add_column(heading, justify="right")
    summaries = [place for place in (WORST, MEAN) if place in classes]
    for y in summaries + _leaking_most(by_key, columns["AUC: PIA"], classes):
        headline = by_key[y, *columns["AUC: PIA"]]
        sizes = [str(headline.members), str(headline.non_members)] if isinstance(y, int) else ["", ""]
        lines.add_row(
            str(y),
            *sizes,
            *(shown(by_key.get((y, *key)), interval=name in WITH_INTERVAL) for name, key in columns.items()),
        )
    return lines


def _leaking_most(by_key: Mapping[Any, AuditRow], key: Key, classes: Sequence[int | str]) -> list[int]:
    """The classes in order; of more than `SHOWN` those whose PIA sees most, that first."""
    numbers = sorted(y for y in classes if isinstance(y, int))
    if len(numbers) <= SHOWN:
        return numbers
    return sorted(numbers, key=lambda y: -(by_key[y, *key].value or 0.0))[:SHOWN]


def part_in_words(rows: Sequence[AuditRow]) -> str:
    """What was attacked, where networks are published in part."""
    words = {"published": ", the part of each network that is sent", "whole": ", whole networks, which are not sent"}
    return words.get(rows[0].part or "", "")


def shown(row: AuditRow | None, interval: bool = True) -> str:
    """The value of a row with its limits; – where there is none."""
    if row is None or row.value is None:
        return "–"
    return f"{row.value:.2f}" + (f" {row.low:.2f}-{row.high:.2f}" if interval else "")


def control(rows: Sequence[AuditRow]) -> str:
    """What the control measured, as a sentence of its own."""
    (row,) = (row for row in rows if (row.class_, row.attack) == (MEAN, "control-shuffled"))
    return (
        f"Control: with members and others shuffled the mean AUC is {row.value:.2f}, "
        f"by chance from {row.low:.2f} to {row.high:.2f}."
    )
