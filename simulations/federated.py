"""Starts Flower's simulation engine: Ray runs the clients, one CPU each, GPU shares where there is a GPU."""

import logging
import os
import time
from pathlib import Path

# Read when Flower and Ray are imported: nothing is reported to anybody, and no banner is printed.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from client.app import app as client_app
from fedmutual.config import RunConfig, UserError
from fedmutual.data.sources import num_classes, training_counts
from server.app import OnRound, prepare, serve
from server.journal import read_history


def simulate(config: RunConfig, cpus: int = 0, gpus: int = -1, on_round: OnRound = lambda rows: None) -> Path:
    """Run a federation of one client a class on this machine; the run folder.

    `cpus` clients train at once (0: one for each core this process may use); `gpus` are shared among them
    (-1: all there are). Clients keep their states in the run folder unless `store` says otherwise.

    Raises:
        UserError: settings, data or a run folder that cannot work; found before anything is started.
        RunFailed: no client gets through.
    """
    counts = training_counts(config)
    classes = num_classes(config)
    at_once = min(classes, cpus or len(os.sched_getaffinity(0)))
    gpus = _gpus(config, gpus)
    strategy = prepare(config, on_round)
    began = time.monotonic()
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        serve(grid, strategy)

    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    run_simulation(
        server,
        client_app,
        num_supernodes=classes,
        backend_config={
            "init_args": {"num_cpus": at_once, "num_gpus": gpus, "log_to_driver": False, "logging_level": "CRITICAL"},
            "client_resources": {"num_cpus": 1, "num_gpus": gpus / at_once},
        },
    )
    journal = strategy.journal
    spent = journal.read_run().get("wall_seconds") or 0.0
    journal.write_run(
        training_counts=counts,
        clients_at_once=at_once,
        wall_seconds=spent + time.monotonic() - began,
        overhead=overhead(journal.folder, at_once),
    )
    return journal.folder


def _gpus(config: RunConfig, wanted: int) -> int:
    there = torch.cuda.device_count() if config.device != "cpu" else 0
    if wanted > there:
        raise UserError(f"--gpus {wanted}, and torch sees {there} here")
    return there if wanted < 0 else wanted


def overhead(folder: Path, at_once: int) -> float | None:
    """Wall time of all rounds over that of the clients' gradient steps alone, `at_once` of them at a time; 1 is ideal.

    What is above 1 is Flower, Ray, checks, checkpoints, the clients' loading and saving, and waiting.
    """
    history = read_history(folder)
    compute = sum(line["seconds"] or 0.0 for line in history)
    wall = sum({line["round"]: line["round_seconds"] for line in history}.values())
    return wall * at_once / compute if compute else None
