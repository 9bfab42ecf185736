"""`fedmutual peers`: at which levels of noise the peers of a class know something that it does not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from fedmutual.config import Parametrisation
from fedmutual.data import open_source
from fedmutual.data.fingerprint import fingerprint, refuse_changed
from fedmutual.device import dtype_of, pick_device
from fedmutual.diffusion import make_process
from fedmutual.diffusion.process import Process
from fedmutual.diffusion.sampling import noise_predictor
from fedmutual.errors import UserError
from fedmutual.evaluation.membership import TIMES
from fedmutual.evaluation.peer_gain import Pull, pull
from fedmutual.networks.split import border
from fedmutual.seeds import generator
from simulations.runs.arms import counted, ends
from simulations.runs.networks import NOTHING_ELSE, class_networks, run_config
from simulations.runs.sampling import OnClass

DRAWS = 4
"""Of noise, for each held-out sample and time."""

Row = dict[str, Any]


def weigh_peers(
    folder: Path,
    which: str = "last",
    on_class: OnClass = lambda y: None,
    here: Mapping[str, Any] = NOTHING_ELSE,
) -> list[Row]:
    """Held-out samples of every class, seen by its own network, by its peers' mean and by each peer alone.

    A row is {class, n_train, t, own, peers, disagreement, share, gain, best_peer, best_share, best_gain}: `Pull`
    towards the mean of the peers, and towards the peer that helps most. class is an index, `rarest` (the mean of
    the rarest, as a comparison counts them) or `mean`, t a share of T. `here` as `run_config`.

    Raises:
        UserError: no run or checkpoint, data that are not here, no held-out samples, or no peers.
    """
    config = run_config(folder, here)
    device = pick_device(config.compute)
    process = make_process(config.diffusion, device, dtype_of(config.compute))
    round_, networks = class_networks(folder, which, device, here)
    known = border(config) / process.horizon  # the share of T below which peers are sent nothing
    source = open_source(config.data, config.seed, keep=True)
    parts = {y: source.load(y) for y in networks}
    refuse_changed(folder, {y: fingerprint(part.train) for y, part in parts.items()}, source.names)
    if not all(len(part.held_out) for part in parts.values()):
        raise UserError("peers are weighed on held-out samples, and this run kept none: train with held-out above 0")
    if len(networks) < 2:
        raise UserError("this run has one class, and so no peers")
    rows = []
    for y, part in parts.items():
        x0 = part.held_out.to(device, process.alpha.dtype)
        rng = generator(config.seed, y, round_, "peers", device=device)
        for t in (t for t in TIMES if t >= known):
            index = process.nearest(t)
            noise = torch.randn(DRAWS, *x0.shape, dtype=x0.dtype, device=device, generator=rng).flatten(0, 1)
            own, peers = _estimates(networks, process, config.diffusion.parametrisation, y, x0, noise, index)
            towards = {z: pull(own, peer, noise) for z, peer in peers.items()}
            best = max(towards, key=lambda z: towards[z].gain)
            helped = {"best_peer": best, "best_share": towards[best].share, "best_gain": towards[best].gain}
            to_mean = pull(own, torch.stack(list(peers.values())).mean(0), noise)
            rows.append({"class": y, "n_train": len(part.train), "t": t, **to_mean._asdict(), **helped})
        on_class(y)
    rare = ends({y: len(part.train) for y, part in parts.items()})["rarest"]
    return rows + _means(rows, "rarest", rare) + _means(rows, "mean", list(parts))


@torch.no_grad()
def _estimates(
    networks: dict[int, nn.Module],
    process: Process,
    parametrisation: Parametrisation,
    y: int,
    x0: Tensor,
    noise: Tensor,
    index: int,
) -> tuple[Tensor, dict[int, Tensor]]:
    """The noise as class y's network sees it, and as each other's does: [DRAWS n, *dims]."""
    repeated = x0.repeat(DRAWS, *(1 for _ in x0.shape[1:]))
    at = torch.full((len(repeated),), index, device=x0.device)
    x = process.noised(repeated, at, noise)
    predict = {z: noise_predictor(network, process, parametrisation, clip=False) for z, network in networks.items()}
    seen = {z: of(x, index) for z, of in predict.items()}
    return seen.pop(y), seen


def _means(rows: list[Row], name: str, classes: list[int]) -> list[Row]:
    fields = [*Pull._fields, "best_share", "best_gain"]
    lines = []
    for t in dict.fromkeys(row["t"] for row in rows):
        same = [row for row in rows if row["t"] == t and row["class"] in classes]
        means = {field: sum(row[field] for row in same) / len(same) for field in fields}
        lines.append({"class": name, "n_train": None, "t": t, **means, "best_peer": None})
    return lines


def tables(rows: list[Row]) -> list[Table]:
    """A line for each time: of all classes, and of the rarest. Gains are shares of the own error."""
    counts = {row["class"]: row["n_train"] for row in rows if isinstance(row["class"], int)}
    return [_table(rows, "mean", "all classes"), _table(rows, "rarest", counted(ends(counts)["rarest"], "rarest"))]


def _table(rows: list[Row], name: str, title: str) -> Table:
    lines = Table("t / T", title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("own error", "the peers'", "apart", "best share", "gains", "by the best peer"):
        lines.add_column(heading, justify="right")
    for row in (row for row in rows if row["class"] == name):
        errors = [f"{row[key]:.3g}" for key in ("own", "peers", "disagreement")]
        gains = [f"{row[key] / row['own']:.1%}" for key in ("gain", "best_gain")]
        lines.add_row(f"{row['t']:g}", *errors, f"{row['share']:.2f}", *gains)
    return lines
