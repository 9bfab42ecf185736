"""CIFAR10-LT by the paper's recipe, as far as the time goes: seconds an iteration, samples, and measures in features.

What 60,000 iterations would take is an extrapolation, and the row says so by its name.
"""

import shutil
import time
from functools import partial
from pathlib import Path

from fedmutual.config import RunConfig
from fedmutual.data import num_classes, open_source, sample_shape
from fedmutual.data.fingerprint import write_fingerprints
from fedmutual.device import pick_device
from fedmutual.evaluation.features import Training
from fedmutual.run_folder import ALL, MEAN, WORST, RunWriter, read_history
from fedmutual.saved_networks import NetworkOfRound
from simulations.runs.measuring import evaluate
from simulations.upkeep.gpu_proof.findings import Piece, Row
from simulations.upkeep.gpu_proof.plain import PlainFederation
from simulations.upkeep.gpu_proof.sizes import Size

PRESETS = ("cifar10", "cifar10-paper")

ITERATIONS = 60_000
"""Of the paper, for each class."""


def pieces(size: Size, data: Path, what: str, extractor: Path, folder: Path) -> list[Piece]:
    """The extractor, unless there is one, and each preset; `what` says which data these are."""

    def config(preset: str) -> RunConfig:
        changes = {**size.plain_settings, "samples": size.samples, "extractor": str(extractor)}
        return size.preset(preset, data_path=str(data), imbalance="none", rounds=ITERATIONS, **changes)

    made = []
    if not extractor.exists():
        made.append(Piece("CIFAR10-LT", "extractor", partial(train_extractor, config(PRESETS[0]), extractor)))
    for preset in PRESETS:
        measure = partial(train, preset, config(preset), what, folder / preset, size)
        made.append(Piece("CIFAR10-LT", preset, measure))
    return made


def train_extractor(config: RunConfig, path: Path) -> list[Row]:
    """A classifier on the training images, as many of each class."""
    facts = Training(config.but(extractor=""), path, pick_device(config.compute)).run()
    return [{"extractor": path.name, "training_images": facts["training_images"], "accuracy": facts["accuracy"]}]


def train(preset: str, config: RunConfig, what: str, folder: Path, size: Size) -> list[Row]:
    """Rounds until the time is up, into an ordinary run folder; then samples and measures.

    A training that was cut short goes on from its clients' states.
    """
    config = config.but(local_steps=size.steps_a_round, out=str(folder))
    writer, work = RunWriter(folder), folder / "work"
    if not (work / "clients").exists():
        shutil.rmtree(folder, ignore_errors=True)
        source = open_source(config.data, config.seed)
        writer.create(config, "mutual", sample_shape(config.data), 0, training_counts=source.counts, preset=preset)
        write_fingerprints(folder, source.fingerprints())
        writer.write_settings(config)
    number, began = max((line.round for line in read_history(folder)), default=0), time.monotonic()
    writer.keep_history_until(number)
    at_once = max(size.at_once)
    with PlainFederation(config, work, at_once) as federation:
        while not number or time.monotonic() - began < size.training_seconds:
            number += 1
            writer.append(federation.round(number, size.steps_a_round))
        networks = federation.networks(number)
    writer.write_checkpoint({y: NetworkOfRound(network, number) for y, network in networks.items()}, number)
    writer.write_run(status="done", clients_at_once=at_once)
    measured = evaluate(folder)
    shutil.rmtree(work)
    history = read_history(folder)
    rounds = {line.round: line.round_seconds or 0.0 for line in history if line.round > 1 or number == 1}
    an_iteration = sum(rounds.values()) / (len(rounds) * size.steps_a_round)
    losses = {n: [line.loss or 0.0 for line in history if line.round == n] for n in (1, number)}
    return [
        {
            "preset": preset,
            "data": what,
            "classes": num_classes(config.data),
            "at_once": at_once,
            "iterations": number * size.steps_a_round,
            "seconds_an_iteration": an_iteration,
            "extrapolated_hours_of_60000": an_iteration * ITERATIONS / 3600,
            "first_loss": sum(losses[1]) / len(losses[1]),
            "last_loss": sum(losses[number]) / len(losses[number]),
        },
        *(
            {"preset": preset, "measure": row.metric, "of": row.class_, "value": row.value}
            for row in measured
            if row.class_ in (WORST, MEAN, ALL) and row.metric in ("fd", "fd-features", "kid-features", "n_generated")
        ),
    ]
