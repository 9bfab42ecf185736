"""`fedmutual bench`: what a local step, a federated round, more classes and the wire cost, each beside what it must.

A local step stands beside a plain PyTorch loop with the same arithmetic, a round beside the gradient steps in it.
"""

import os
import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from fedmutual.config import RunConfig
from fedmutual.data import num_classes, sample_shape
from fedmutual.errors import UserError
from fedmutual.networks import build
from fedmutual.records import pack_network, rounded_names
from fedmutual.run_folder import read_history
from server.orders import Run
from simulations.deployment.loopback import MARK, living
from simulations.engine.simulation import Simulation, overhead
from simulations.upkeep.local_step import OnShare, Row, step
from simulations.upkeep.soak import resident

CLASSES = (10, 100, 1000)
"""Numbers of classes over which the cost of a client's round is followed."""

SCALING_PEERS, SCALING_STEPS, SCALING_CLIENTS = 4, 20, 1000
"""Peers and, at most, local steps of a client's round there; and how many clients' rounds are measured, in one round of
a thousand classes and in 20 of ten."""


def bench(configs: Sequence[RunConfig], parts: Sequence[str], on_share: OnShare = lambda share: None) -> list[Row]:
    """The rows of `parts`, for every one of `configs`; `on_share` takes the share that is done.

    Every row has {name, network, batch, peers, seconds, bare_seconds, ratio}; those of a part have more.

    Raises:
        UserError: a part that does not exist, or settings under which it cannot be timed.
    """
    for part in parts:
        if part not in PARTS:
            raise UserError(f"bench has no part {part!r}: choose among {', '.join(PARTS)}")
    work, rows = [(PARTS[part], config) for part in parts for config in configs], []
    for turn, (run, config) in enumerate(work):
        rows += run(config, _part(on_share, turn, len(work)))
        on_share((turn + 1) / len(work))
    return rows


def _part(on_share: OnShare, index: int, count: int) -> OnShare:
    """Takes the share that is done of one of `count` equal parts."""
    return lambda share: on_share((index + share) / count)


# A federated round


def federated_round(config: RunConfig, on_share: OnShare) -> list[Row]:
    """Wall seconds of a round of the real simulation beside its clients' gradient steps, as many at once as train.

    The first round, in which processes start, is left out.
    """
    return [_rounds("round", config, on_share)]


def scaling(config: RunConfig, on_share: OnShare) -> list[Row]:
    """Rounds of more and more classes with `SCALING_PEERS` peers each, on made-up data of the same shape.

    A row has what one client's round takes: `client_seconds` of a core by the clock, `client_core` seconds that all
    processes together spend on a core, which hold on a busy machine too, and `server_mb`, the server's memory after the
    last round. Neither of the first two should grow. Steps are few, so that what does grow would show.
    """
    rows = []
    for index, classes in enumerate(CLASSES):
        with TemporaryDirectory() as folder:
            path = Path(folder) / "data.npz"
            rng = np.random.default_rng(0)
            images = rng.random((classes * 20, *sample_shape(config.data)), dtype=np.float32) * 2 - 1
            np.savez(path, images=np.moveaxis(images, 1, -1), labels=np.repeat(np.arange(classes), 20))
            made_up = {"data": "npz", "data_path": str(path), "classes": classes, "imbalance": "none", "counts": ""}
            made_up |= {
                "shape": ",".join(map(str, sample_shape(config.data))),
                "held_out": 2,
                "test": 2,
                "head_count": 0,
            }
            steps = min(config.local_steps, SCALING_STEPS)
            rounds = 1 + max(1, min(20, SCALING_CLIENTS // classes))
            sized = config.but(**made_up, peers_per_round=SCALING_PEERS, local_steps=steps, rounds=rounds)
            rows.append(_rounds("scaling", sized, _part(on_share, index, len(CLASSES))))
    return rows


def _rounds(name: str, config: RunConfig, on_share: OnShare) -> Row:
    if config.rounds < 2:
        raise UserError("bench leaves the first round out: set rounds to 2 or more")
    spent: list[float] = []
    with TemporaryDirectory() as folder:
        simulation: Simulation[Run] = Simulation(config.but(out=str(Path(folder) / "run"), store=""))
        os.environ[MARK] = folder  # Ray's processes inherit it, and are known by it

        def after(rows: Sequence[Row]) -> None:
            spent.append(core_seconds((os.getpid(), *living(Path(folder)))))
            on_share(rows[0]["round"] / config.rounds)

        simulation.run(after)
        history = [line for line in read_history(Path(folder) / "run") if line["round"] > 1]
    refused = next((line["reason"] for line in history if line["status"] not in ("ok", "idle")), None)
    if refused is not None:
        raise RuntimeError(f"a client did not get through, so that the round cannot be timed: {refused}")
    rounds, at_once = config.rounds - 1, simulation.at_once
    wall = sum({line["round"]: line["round_seconds"] for line in history}.values()) / rounds
    ratio = overhead(history, at_once)
    clients = len(history) / rounds
    return {
        "name": name,
        "network": config.network.kind,
        "batch": config.optimiser.batch,
        "peers": _peers_of_a_client(config),
        "classes": simulation.classes,
        "at_once": at_once,
        "seconds": wall,
        "bare_seconds": wall / ratio,
        "ratio": ratio,
        "client_seconds": wall * at_once / clients,
        "client_core": (spent[-1] - spent[0]) / len(history),
        "server_mb": resident(os.getpid())[1],
        "bytes_down": statistics.mean(line["bytes_down"] for line in history),
        "bytes_up": statistics.mean(line["bytes_up"] for line in history),
    }


def core_seconds(pids: Sequence[int]) -> float:
    """Seconds that these processes have spent on a core, in the system's calls too, since they were started."""
    ticks = 0
    for pid in dict.fromkeys(pids):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


# The wire


def wire(config: RunConfig, on_share: OnShare) -> list[Row]:
    """Bytes that a client receives and sends in a round, and gigabytes of the whole run, of networks as records."""
    untrained = build(config, sample_shape(config.data), 0)
    rounded = rounded_names(untrained, config.federation.wire_dtype)
    network = pack_network(untrained.state_dict(), rounded).count_bytes()
    peers = _peers_of_a_client(config)
    down = network * (min(peers, 1) if config.mutual.exchange == "mean" else peers)
    messages = config.rounds * max(1, round(config.federation.participation * num_classes(config.data)))
    return [
        {
            "name": "bytes",
            "network": config.network.kind,
            "batch": config.optimiser.batch,
            "peers": peers,
            "seconds": None,
            "bare_seconds": None,
            "ratio": None,
            "bytes_down": down,
            "bytes_up": network,
            "run_gigabytes": messages * (down + network) / 1e9,
        }
    ]


def _peers_of_a_client(config: RunConfig) -> int:
    others = num_classes(config.data) - 1 if config.mutual.beta else 0
    return min(others, config.mutual.peers_per_round or others)


PARTS: dict[str, Callable[[RunConfig, OnShare], list[Row]]] = {
    "step": step,
    "round": federated_round,
    "scaling": scaling,
    "bytes": wire,
}
