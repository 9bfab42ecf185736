"""How a run is measured: samples of every class against the test part, in data space and in features."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedmutual.config import RunConfig
from fedmutual.course import OnPhase
from fedmutual.data import Source, open_source
from fedmutual.data.fingerprint import refuse_changed
from fedmutual.device import pick_device
from fedmutual.errors import UserError
from fedmutual.evaluation import COUNTS, class_metrics, summarise
from fedmutual.evaluation.features import Extractor, Features, read_extractor
from fedmutual.evaluation.usefulness import train_and_test
from fedmutual.run_folder import (
    ALL,
    CONFIG,
    MEAN,
    SAMPLES,
    WORST,
    MetricRow,
    change_facts,
    change_settings,
    read_facts,
    write_metrics,
)
from fedmutual.settings import read_stored
from simulations.runs.networks import HERE, NOTHING_ELSE, run_config
from simulations.runs.sampling import OnClass, draw_samples, write_samples

MEASURING = ("samples", "sampler", "sampling-steps", "clip-samples", "extractor", "extractor-steps", "tstr-seeds")
"""Settings that say how a run is measured, and not what was trained."""


def change_measuring(folder: Path, changes: dict[str, Any], here: Mapping[str, Any] = NOTHING_ELSE) -> None:
    """Change settings of `MEASURING` in a run's config.toml, with whole paths; `here` as `run_config`.

    Raises:
        UserError: other settings, values that their checks refuse, or an extractor that does not fit.
    """
    trained = [key for key in changes if key not in MEASURING]
    if trained:
        raise UserError(f"{trained[0]} is no setting of measuring: what may change is {', '.join((*MEASURING, *HERE))}")
    if changes.get("extractor"):
        changes = {**changes, "extractor": str(Path(str(changes["extractor"])).expanduser().absolute())}
    config = RunConfig.of(run_config(folder, here).settings(), changes)
    run_extractor(config)
    change_settings(folder, RunConfig.of(read_stored(folder / CONFIG), changes))


def run_extractor(config: RunConfig, source: Source | None = None) -> Extractor | None:
    """The extractor of the settings, which has seen none of the test part; None where they name none.

    Raises:
        UserError: as `read_extractor`, or it was trained on images of the test part.
    """
    extractor = read_extractor(config, pick_device(config.compute))
    if extractor:
        source = source or open_source(config.data, config.seed, keep=True)
        extractor.check_unseen(torch.cat([source.test(y) for y in range(len(source.names))]))
    return extractor


def evaluate(
    folder: Path,
    which: str = "last",
    on_class: OnClass = lambda y: None,
    drawn: dict[int, Tensor] | None = None,
    here: Mapping[str, Any] = NOTHING_ELSE,
    on_phase: OnPhase = lambda *phase: None,
) -> list[MetricRow]:
    """Draw samples, measure them against the test part, and write `samples/` and `metrics.csv`; the rows of the latter.

    With an extractor there are rows for `ALL`: the measures in features of all classes together. `on_class` is called
    when a class is drawn and again when it is measured, `on_phase` before the first of them; `drawn` are the samples by
    `draw_samples`, if they are at hand; `here` as `run_config`.
    """
    config = run_config(folder, here)
    if config.measuring.samples < 2:
        raise UserError("samples must be at least 2 to measure anything: set -s samples=500")
    on_phase("reading the data")
    source = open_source(config.data, config.seed, keep=True)
    refuse_changed(folder, source.fingerprints(), source.names)
    extractor = run_extractor(config, source)
    refuse_useless(config, source)
    if not drawn:
        on_phase("drawing samples", len(source.names), "classes")
    generated = drawn or draw_samples(folder, config.measuring.samples, which, on_class, here)
    real = {y: source.test(y) for y in generated}
    write_samples((folder / SAMPLES).parent, generated, real)
    on_phase("measuring", len(generated), "classes")
    method = read_facts(folder).method
    rows: list[MetricRow] = []
    by_metric: dict[str, dict[int, float]] = {}
    features: list[tuple[Features, Features]] = []
    for y in sorted(generated):
        train = source.train(y)
        measured = class_metrics(generated[y].numpy(), real[y].numpy(), train.numpy())
        if extractor:
            features.append((extractor(generated[y]), extractor(real[y])))
            measured |= extractor.metrics(*features[-1])
        for metric, value in measured.items():
            rows.append(MetricRow(method, config.seed, y, len(train), metric, value))
            by_metric.setdefault(metric, {})[y] = value
        on_class(y)
    if useful := _usefulness(config, source, generated, real, method):
        rows += useful
        by_metric["tstr-recall"] = {row.class_: row.value for row in useful if isinstance(row.class_, int)}
    for metric, values in by_metric.items():
        if metric not in COUNTS:
            summary = summarise(metric, values)
            rows.append(MetricRow(method, config.seed, WORST, None, metric, summary.worst))
            rows.append(MetricRow(method, config.seed, MEAN, None, metric, summary.mean))
    if extractor:
        together = extractor.set_metrics(*(Features.joined(side) for side in zip(*features, strict=True)))
        together |= {count: sum(by_metric[count].values()) for count in COUNTS}
        rows += [MetricRow(method, config.seed, ALL, None, metric, value) for metric, value in together.items()]
    write_metrics(folder, rows)
    change_facts(folder, extractor=extractor.facts if extractor else None)
    return rows


def refuse_unmeasurable(config: RunConfig, with_extractor: bool) -> None:
    """Raises `UserError` where a run that is to begin could not be measured in the end, as `evaluate` does.

    with_extractor: the file of the settings is there by now, and is read too.
    """
    if not config.measuring.samples:
        return
    if with_extractor:
        run_extractor(config)
    if config.measuring.tstr_seeds:
        refuse_useless(config, open_source(config.data, config.seed))


def refuse_useless(config: RunConfig, source: Source) -> None:
    """Raises `UserError` where `tstr-seeds` asks for classifiers that nothing could test."""
    if not config.measuring.tstr_seeds:
        return
    if len(source.names) < 2:
        raise UserError("the data are of one class, and a classifier needs two: set tstr-seeds=0")
    if not any(len(source.test(y)) for y in range(len(source.names))):
        raise UserError("the data have no test part, on which to test classifiers: set test, or tstr-seeds=0")


def _usefulness(
    config: RunConfig, source: Source, generated: dict[int, Tensor], real: dict[int, Tensor], method: str
) -> list[MetricRow]:
    """Recall of each class and macro-F1, means over `tstr-seeds` classifiers that have learnt from the samples."""
    if not config.measuring.tstr_seeds:
        return []
    sets, seeds = {"synthetic": generated}, range(config.measuring.tstr_seeds)
    found = train_and_test(sets, real, len(source.names), seeds, pick_device(config.compute))["synthetic"]
    recalls = np.mean([one.recall for one in found], axis=0)
    rows = [
        MetricRow(method, config.seed, y, len(source.train(y)), "tstr-recall", float(recalls[y])) for y in generated
    ]
    f1 = float(np.mean([one.macro_f1 for one in found]))
    return [*rows, MetricRow(method, config.seed, ALL, None, "tstr-f1", f1)]
