"""What a run yields: its networks, samples of every class, and the metrics of those samples."""

import csv
import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from client.app import pick_device
from fedmutual.baselines.memory import Memory
from fedmutual.checkpoint import CheckpointError, load, load_newest, write_atomic
from fedmutual.config import RunConfig, UserError, read_settings, write_settings
from fedmutual.data.sources import load_class, load_test, num_classes, sample_shape
from fedmutual.diffusion import Process
from fedmutual.diffusion.sampling import sample
from fedmutual.evaluation import class_metrics, summarise
from fedmutual.evaluation.features import Extractor, Features, read_extractor
from fedmutual.learning.igd import make_process
from fedmutual.networks import OfClass, build, build_conditional
from fedmutual.records import Network
from fedmutual.seeds import generator
from server.journal import SHARED, checkpoints, networks_in

OnClass = Callable[[int], None]

MEASURING = ("samples", "sampler", "sampling-steps", "clip-samples", "extractor")
"""Settings that say how a run is measured, and not what was trained."""


def run_config(folder: Path) -> RunConfig:
    """The settings of the run in `folder`.

    Raises:
        UserError: there is no run.
    """
    if not (folder / "config.toml").exists():
        raise UserError(f"{folder} holds no run: name a folder that `fedmutual simulate` wrote")
    return RunConfig.of(read_settings(folder / "config.toml"))


def read_networks(folder: Path, which: str = "last") -> tuple[int, dict[int, Network]]:
    """(round, {class: network}) of the checkpoint `which`: last, best (smallest gradient norm), or a round's number.

    Where all classes share one conditional network, every class has that one.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    round_, networks = _read(folder, which)
    if SHARED in networks:
        return round_, dict.fromkeys(range(num_classes(run_config(folder))), networks[SHARED])
    return round_, networks


def _read(folder: Path, which: str) -> tuple[int, dict[int | str, Network]]:
    """(round, networks) of a checkpoint as it is laid out."""
    files = checkpoints(folder)
    newest = load_newest(files)
    if newest is None:
        raise UserError(f"{folder} holds no whole checkpoint: let the run finish a round first")
    _, tensors, meta = newest
    if which != "last":
        wanted = str(meta["best"][0]) if which == "best" else which
        if wanted == "0":
            raise UserError("no round had a reply of every class, so none is best: use --round last")
        rounds = {str(int(file.stem.removeprefix("round-"))): file for file in files}
        if wanted not in rounds:
            raise UserError(f"no checkpoint of round {wanted}: there are {', '.join(rounds)}, last and best")
        try:
            tensors, meta = load(rounds[wanted])
        except CheckpointError as error:
            raise UserError(str(error)) from None
    return meta["round"], networks_in(tensors)


def class_networks(folder: Path, which: str, device: torch.device) -> tuple[int, dict[int, nn.Module]]:
    """(round, {class: its network}) of a run's checkpoint, as `read_networks`.

    Each is (x, t) -> output, in evaluation mode on `device`, whatever the method: the class's own network, the
    conditional one at the class's label, or the exact minimiser that `memory` stands for.
    """
    config = run_config(folder)
    shape, classes = sample_shape(config), num_classes(config)
    round_, states = _read(folder, which)
    if SHARED in states:
        shared = _ready(build_conditional(config, shape, classes), states[SHARED], device)
        return round_, {y: OfClass(shared, y).eval() for y in range(classes)}
    networks: dict[int, nn.Module] = {}
    for y, state in sorted(states.items()):
        if set(state) == {"samples"}:
            networks[y] = Memory(state["samples"].to(device), config).eval()
        else:
            networks[y] = _ready(build(config, shape, y), state, device)
    return round_, networks


def _ready(network: nn.Module, state: Network, device: torch.device) -> nn.Module:
    network.load_state_dict(state)
    return network.to(device).eval().requires_grad_(False)


def draw_samples(
    folder: Path, count: int, which: str = "last", on_class: OnClass = lambda y: None
) -> dict[int, Tensor]:
    """{class: `[count, *dims]` generated samples} of a run's checkpoint, on the CPU in float32."""
    config = run_config(folder)
    device = pick_device(config)
    shape, process = sample_shape(config), make_process(config, device)
    round_, networks = class_networks(folder, which, device)
    samples = {}
    for y, network in networks.items():
        samples[y] = draw_class(network, process, shape, count, config, y, round_).cpu().float()
        on_class(y)
    return samples


def draw_class(
    network: nn.Module,
    process: Process,
    shape: tuple[int, ...],
    count: int,
    config: RunConfig,
    y: int,
    round_: int,
) -> Tensor:
    """Class y's samples at a round, the same whoever draws them: `draw` with (seed, y, round, "samples")."""
    rng = generator(config.seed, y, round_, "samples", device=process.alpha.device)
    return draw(network, process, shape, count, config, rng)


def draw(
    network: nn.Module,
    process: Process,
    shape: tuple[int, ...],
    count: int,
    config: RunConfig,
    rng: torch.Generator,
) -> Tensor:
    """`count` samples of one network by the run's sampler, `[count, *shape]` on the process's device."""
    return sample(
        network,
        process,
        shape,
        count,
        rng,
        parametrisation=config.parametrisation,
        sampler=config.sampler,
        steps=config.sampling_steps,
        clip=config.clip_samples,
    )


def change_measuring(folder: Path, changes: dict[str, Any]) -> None:
    """Change settings of `MEASURING` in a run's config.toml.

    Raises:
        UserError: other settings, values that their checks refuse, or an extractor that does not fit.
    """
    trained = [key for key in changes if key not in MEASURING]
    if trained:
        raise UserError(f"{trained[0]} is no setting of measuring: what may change is {', '.join(MEASURING)}")
    config = RunConfig.of(run_config(folder).settings(), changes)
    run_extractor(config)
    write_atomic(folder / "config.toml", write_settings(config.settings()).encode())


def run_extractor(config: RunConfig) -> Extractor | None:
    """The extractor of the settings, which has seen none of the test part; None where they name none.

    Raises:
        UserError: as `read_extractor`, or it was trained on images of the test part.
    """
    extractor = read_extractor(config, pick_device(config))
    if extractor:
        extractor.check_unseen(torch.cat([load_test(config, y) for y in range(num_classes(config))]))
    return extractor


def evaluate(
    folder: Path,
    which: str = "last",
    on_class: OnClass = lambda y: None,
    drawn: dict[int, Tensor] | None = None,
) -> list[dict[str, Any]]:
    """Draw samples, measure them against the test part, and write `samples/` and `metrics.csv`; the rows of the latter.

    A row is {method, seed, class, n_train, metric, value}; class is an index, `worst` or `mean`, and, with an
    extractor, `all`: the measures in features of all classes together. `on_class` is called when a class is drawn
    and again when it is measured; `drawn` are the samples by `draw_samples`, if they are at hand.
    """
    config = run_config(folder)
    if config.samples < 2:
        raise UserError("samples must be at least 2 to measure anything: set -s samples=500")
    extractor = run_extractor(config)
    generated = drawn or draw_samples(folder, config.samples, which, on_class)
    real = {y: load_test(config, y) for y in generated}
    write_samples(folder / "samples", generated, real)
    facts = json.loads((folder / "run.json").read_text())
    rows, by_metric, features = [], {}, []
    for y in sorted(generated):
        train = load_class(config, y).train
        measured = class_metrics(generated[y].numpy(), real[y].numpy(), train.numpy())
        if extractor:
            features.append((extractor(generated[y]), extractor(real[y])))
            measured |= extractor.metrics(*features[-1])
        for metric, value in measured.items():
            rows.append(_row(facts["method"], config.seed, y, len(train), metric, value))
            by_metric.setdefault(metric, {})[y] = value
        on_class(y)
    for metric, values in by_metric.items():
        if not metric.startswith("n_"):
            summary = summarise(metric, values)
            rows.append(_row(facts["method"], config.seed, "worst", None, metric, summary.worst))
            rows.append(_row(facts["method"], config.seed, "mean", None, metric, summary.mean))
    if extractor:
        measured = extractor.set_metrics(*(Features.joined(side) for side in zip(*features, strict=True)))
        measured |= {count: sum(by_metric[count].values()) for count in ("n_reference", "n_generated")}
        rows += [_row(facts["method"], config.seed, "all", None, metric, value) for metric, value in measured.items()]
    text = StringIO()
    writer = csv.DictWriter(text, fieldnames=list(_row("", 0, "", 0, "", 0.0)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(folder / "metrics.csv", text.getvalue().encode())
    facts["extractor"] = extractor.facts if extractor else None
    write_atomic(folder / "run.json", json.dumps(facts, indent=1).encode())
    return rows


def _row(method: str, seed: int, class_: int | str, n_train: int | None, metric: str, value: float) -> dict[str, Any]:
    return {"method": method, "seed": seed, "class": class_, "n_train": n_train, "metric": metric, "value": value}


def write_samples(folder: Path, generated: dict[int, Tensor], real: dict[int, Tensor], grid: int = 64) -> None:
    """`samples.npz`, and for images a PNG grid of each class, 8 in a row."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {f"generated_{y}": tensor.numpy() for y, tensor in generated.items()}
    arrays |= {f"real_{y}": tensor.float().numpy() for y, tensor in real.items() if len(tensor)}
    np.savez_compressed(folder / "samples.npz", **arrays)
    for y, images in generated.items():
        if images.ndim == 4:
            pixels = images[:grid].clamp(-1, 1)
            torchvision.utils.save_image(
                pixels, folder / f"class-{y:03d}.png", nrow=8, padding=1, normalize=True, value_range=(-1, 1)
            )
