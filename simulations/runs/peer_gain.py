"""`fedmutual peers`: at which levels of noise the peers of a class know something that it does not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from fedmutual.config import Parametrisation
from fedmutual.device import dtype_of, pick_device
from fedmutual.diffusion import make_process
from fedmutual.diffusion.process import Process
from fedmutual.diffusion.sampling import noise_predictor
from fedmutual.evaluation.membership import TIMES
from fedmutual.evaluation.peer_gain import Pull, pull
from fedmutual.learning.stacking import products, weigh
from fedmutual.networks.split import border
from fedmutual.seeds import generator
from simulations.runs.arms import counted, ends
from simulations.runs.networks import NOTHING_ELSE, class_networks, run_config
from simulations.runs.sampling import OnClass
from simulations.runs.stacking import parts_to_weigh

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

    A row is {class, n_train, t, own, peers, disagreement, share, gain, best_peer, best_share, best_gain, own_weight,
    stack_gain, weights}: `Pull` towards the mean of the peers, and towards the peer that helps most; then the weights
    that `weigh` gives the networks of all classes, in their order, that of the own among them, and what is gained on
    the same samples by mixing with these. class is an index, `rarest` (the mean of the rarest, as a comparison counts
    them) or `mean`, t a share of T. `here` as `run_config`.

    Raises:
        UserError: no run or checkpoint, data that are not here, no held-out samples, or no peers.
    """
    config = run_config(folder, here)
    device = pick_device(config.compute)
    process = make_process(config.diffusion, device, dtype_of(config.compute))
    round_, networks = class_networks(folder, which, device, here)
    known = border(config) / process.horizon  # the share of T below which peers are sent nothing
    parts = parts_to_weigh(folder, config, networks)
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
            stacked = _stacked(y, own, peers, noise, config.mutual.caution)
            rows.append({"class": y, "n_train": len(part.train), "t": t, **to_mean._asdict(), **helped, **stacked})
        on_class(y)
    rare = ends({y: len(part.train) for y, part in parts.items()})["rarest"]
    return rows + _means(rows, "rarest", rare) + _means(rows, "mean", list(parts))


def _stacked(y: int, own: Tensor, peers: dict[int, Tensor], noise: Tensor, caution: float) -> Row:
    """What `weigh` makes of the estimates of one class at one time, `[DRAWS n, *dims]` each."""
    errors = torch.stack([own, *peers.values()]) - noise
    table = products(errors).unflatten(0, (DRAWS, -1)).mean(0).cpu()
    weights, gram = weigh(table, caution), table.mean(0)
    by_class = dict(zip([y, *peers], weights.tolist(), strict=True))
    return {
        "own_weight": by_class[y],
        "stack_gain": float(gram[0, 0] - weights @ gram @ weights),
        "weights": [by_class[z] for z in sorted(by_class)],
    }


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
    fields = [*Pull._fields, "best_share", "best_gain", "own_weight", "stack_gain"]
    lines = []
    for t in dict.fromkeys(row["t"] for row in rows):
        same = [row for row in rows if row["t"] == t and row["class"] in classes]
        means = {field: sum(row[field] for row in same) / len(same) for field in fields}
        lines.append({"class": name, "n_train": None, "t": t, **means, "best_peer": None, "weights": None})
    return lines


def tables(rows: list[Row]) -> list[Table]:
    """A line for each time: of all classes, and of the rarest. Gains are shares of the own error.

    Then the stacked weights: a line for each class.
    """
    counts = {row["class"]: row["n_train"] for row in rows if isinstance(row["class"], int)}
    rarest = counted(ends(counts)["rarest"], "rarest")
    return [_table(rows, "mean", "all classes"), _table(rows, "rarest", rarest), _weights(rows, list(counts))]


def _weights(rows: list[Row], classes: list[int]) -> Table:
    lines = Table("class", title="own weight, and the peer that counts most, by t / T", title_justify="left", box=None)
    for t in dict.fromkeys(row["t"] for row in rows):
        lines.add_column(f"{t:g}", justify="right")
    for y in classes:
        lines.add_row(str(y), *(_heaviest(row, sorted(classes)) for row in rows if row["class"] == y))
    return lines


def _heaviest(row: Row, classes: list[int]) -> str:
    """0.62 (3); 1.00 where no peer counts."""
    weight, peer = max((weight, z) for z, weight in zip(classes, row["weights"], strict=True) if z != row["class"])
    return f"{row['own_weight']:.2f}" + (f" ({peer})" if weight else "")


def _table(rows: list[Row], name: str, title: str) -> Table:
    lines = Table("t / T", title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in (
        "own error",
        "the peers'",
        "apart",
        "best share",
        "gains",
        "by the best peer",
        "own weight",
        "stacked",
    ):
        lines.add_column(heading, justify="right")
    for row in (row for row in rows if row["class"] == name):
        errors = [f"{row[key]:.3g}" for key in ("own", "peers", "disagreement")]
        gain, best, stacked = (f"{row[key] / row['own']:.1%}" for key in ("gain", "best_gain", "stack_gain"))
        lines.add_row(f"{row['t']:g}", *errors, f"{row['share']:.2f}", gain, best, f"{row['own_weight']:.2f}", stacked)
    return lines
