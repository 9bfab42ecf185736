"""One *arm* of a comparison: a method, trained on one seed into an ordinary run folder, measured and audited."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fedmutual.baselines import Rows
from fedmutual.config import RunConfig
from fedmutual.data import ClassData, Source, open_source
from fedmutual.data.fingerprint import fingerprint, write_fingerprints
from fedmutual.device import dtype_of, pick_device
from fedmutual.methods import METHODS
from fedmutual.run_folder import (
    AUDIT,
    FACTS,
    METRICS,
    HistoryLine,
    RunWriter,
    change_facts,
    holds_run,
    read_facts,
    read_history,
)
from fedmutual.saved_networks import NetworkOfRound
from server.roster import RunFailed
from simulations.engine.simulation import App, Simulation
from simulations.experiments.methods import RECIPES, Baseline
from simulations.runs.measuring import evaluate
from simulations.runs.membership import audit_run
from simulations.runs.networks import without_network
from simulations.runs.sampling import draw_samples

Progress = Callable[[int], None]
"""Takes the last round done."""


def run_arm(
    method: str,
    config: RunConfig,
    folder: Path,
    cpus: int = 0,
    gpus: int = -1,
    on_round: Progress = lambda round_: None,
    ray: str = "",
) -> None:
    """Train `method` under `config` into `folder`, draw samples, measure and audit; what is done is not done again.

    A federated run that was cut short goes on where it was; any other starts anew. `cpus`, `gpus` and `ray` are those
    of `Simulation`.

    Raises:
        UserError: settings or data that cannot work, or a folder that holds another run.
        RunFailed, Diverged: the training failed.
    """
    recipe = RECIPES[method]
    config = RunConfig.of(config.settings(), dict(recipe.settings), {"out": str(folder), "resume": False})
    if not is_trained(folder):
        if isinstance(recipe.how, App):
            _federate(method, recipe.how, config, folder, cpus, gpus, on_round, ray)
        else:
            _train_here(method, recipe.how, config, folder, on_round)
    if is_finished(folder, config):
        return
    drawn = draw_samples(folder, config.measuring.samples)
    if not (folder / METRICS).exists():
        evaluate(folder, drawn=drawn)
    audit_run(folder, drawn=drawn)


def is_trained(folder: Path) -> bool:
    """Whether an arm's training is over: its costs are the last thing that is written."""
    return (folder / FACTS).exists() and read_facts(folder).seconds_training is not None


def is_finished(folder: Path, config: RunConfig) -> bool:
    """Whether nothing of an arm is left to do."""
    measured = (METRICS, AUDIT) if config.measuring.samples else ()
    return is_trained(folder) and all((folder / name).exists() for name in measured)


def _federate(
    method: str, app: App[Any], config: RunConfig, folder: Path, cpus: int, gpus: int, on_round: Progress, ray: str
) -> None:
    if holds_run(folder) and read_facts(folder).status == "done" and without_network(folder):
        shutil.rmtree(folder)  # an earlier attempt that ended without a network of every class
    config = config.but(resume=holds_run(folder))
    simulation = Simulation(config, cpus, gpus, app, ray=ray)
    change_facts(folder, method=method)
    simulation.run(lambda rows: on_round(rows[0]["round"]))
    if missing := without_network(folder):
        raise RunFailed(f"no reply of class {', '.join(missing)} was accepted: history.jsonl in {folder} says why")
    history = read_history(folder)
    seconds = sum(line.seconds or 0.0 for line in history)
    budget = _budget(config, method, config.rounds * config.local_steps)
    change_facts(folder, **budget, **_moved(history), seconds_training=seconds)
    _drop_states(folder / "clients")


def _moved(history: Sequence[HistoryLine]) -> dict[str, int]:
    """Bytes that all clients received and sent."""
    return {key: sum(line[key] for line in history) for key in ("bytes_down", "bytes_up")}


def _drop_states(store: Path) -> None:
    """Clients' states are for resuming, and many times the size of networks; whole networks that nobody sent stay."""
    for path in store.rglob("round-*.safetensors"):
        path.unlink()
    if store.exists() and not any(store.rglob("network-*.safetensors")):
        shutil.rmtree(store)


def _train_here(method: str, train: Baseline, config: RunConfig, folder: Path, on_round: Progress) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    device = pick_device(config.compute)
    source = open_source(config.data, config.seed, keep=True)
    data = _load(source, config, device)
    writer = RunWriter(folder)
    writer.create(config, method, source.shape, 0, training_counts=source.counts)
    write_fingerprints(folder, {y: fingerprint(part.train) for y, part in enumerate(data)})
    writer.write_settings(config)
    writer.write_run(status="running")
    began = last = time.monotonic()

    def record(round_: int, rows: Rows) -> None:
        nonlocal last
        now = time.monotonic()
        writer.append(_line(round_, row, now - last) for row in rows)
        last = now
        on_round(round_)

    try:
        trained = train(config, data, record)
    except BaseException:
        writer.write_run(status="stopped")
        raise
    seconds = time.monotonic() - began
    networks = {name: NetworkOfRound(network, config.rounds) for name, network in trained.networks.items()}
    writer.write_checkpoint(networks, config.rounds)
    parameters = sum(tensor.numel() for network in trained.networks.values() for tensor in network.values())
    costs = {**_moved(read_history(folder)), "wall_seconds": seconds, "seconds_training": seconds}
    budget = _budget(config, method, trained.gradient_steps)
    writer.write_run(**{"parameters": parameters, **budget, **costs, **trained.facts}, status="done")


def _load(source: Source, config: RunConfig, device: torch.device) -> list[ClassData]:
    """Every class's samples on the device, in the run's dtype."""
    dtype = dtype_of(config.compute)
    parts = [source.load(y) for y in range(len(source.names))]
    return [ClassData(part.train.to(device, dtype), part.held_out.to(device, dtype)) for part in parts]


def _line(round_: int, row: Mapping[str, Any], round_seconds: float) -> HistoryLine:
    return HistoryLine.of({"round": round_, **row, "round_seconds": round_seconds})


def _budget(config: RunConfig, method: str, steps: float) -> dict[str, Any]:
    return {
        "data": METHODS[method].data,
        "gradient_steps_per_class": steps,
        "samples_seen_per_class": steps * config.optimiser.batch,
    }
