"""Run folders made up for tests of what reads them: clearly synthetic, three classes and three rounds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedmutual.config import RunConfig
from fedmutual.settings import write_settings

NAMES = ["cat", "<b>dog</b>", "newt"]
FD = {"mutual": [2.0, 3.0, 8.27], "isolated": [1.5, 3.5, 10.04]}


def fabricate(
    folder: Path,
    method: str = "mutual",
    seed: int = 0,
    shape: tuple[int, ...] = (1, 4, 4),
    shift: float = 0.0,
    fd: Sequence[float] | None = None,
    audit: Sequence[dict[str, Any]] = (),
    **more: Any,
) -> Path:
    """A finished run of three classes and three rounds; `shift` is added to every fd, `more` goes into run.json."""
    fd = [value + shift for value in fd or FD[method]]
    (folder / "samples").mkdir(parents=True)
    settings = RunConfig().but(beta=1.0 if method.startswith("mutual") else 0.0, seed=seed, rounds=3).settings()
    (folder / "config.toml").write_text(write_settings(settings))
    facts = {
        "name": "animals",
        "method": method,
        "class_names": NAMES,
        "training_counts": [90, 20, 4],
        "shape": list(shape),
        "parameters": 1234,
        "versions": {"python": "3.12.1", "flwr": "1.41.0"},
        "hardware": "8 CPU cores",
        "clients_at_once": 3,
        "started": "2026-01-02T03:04:05+00:00",
        "wall_seconds": 12.0,
        "overhead": 1.5,
        "status": "done",
    }
    (folder / "run.json").write_text(json.dumps(facts | more))
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history()))
    rows = [f"{y},{n},fd,{value}" for y, n, value in zip(range(3), (90, 20, 4), fd, strict=True)]
    rows += [f"{y},,n_reference,65" for y in range(3)] + ["0,90,recall,", f"worst,,fd,{max(fd)}"]
    lines = ["method,seed,class,n_train,metric,value", *(f"{method},{seed},{row}" for row in rows)]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    random = np.random.default_rng(seed)
    arrays = {f"{kind}_{y}": random.uniform(-1, 1, (30, *shape)) for kind in ("generated", "real") for y in range(3)}
    np.savez(folder / "samples" / "samples.npz", **{key: a.astype(np.float32) for key, a in arrays.items()})
    if audit:
        (folder / "audit.json").write_text(json.dumps({"rows": list(audit)}))
    return folder


def history() -> list[dict]:
    numbers = {"loss": 0.5, "mutual": 0.1, "grad_norm": 1.0, "held_out": None, "seconds": 2.0}
    costs = {"bytes_down": 2_000_000, "bytes_up": 1_000_000, "round_seconds": 3.0}
    return [
        {"round": k, "class": y, "status": "ok", "reason": "", **numbers, **costs} for k in (1, 2, 3) for y in range(3)
    ]


def many_classes(folder: Path, classes: int, rounds: int = 3, method: str = "mutual", audited: bool = False) -> Path:
    """A finished run of many classes of points, of which the rarest, the last, fare best: an fd of K / y.

    The name of class 7 would end a script, and the first class has no reply that was accepted.
    """
    folder.mkdir(parents=True)
    settings = RunConfig().but(data="npz", rounds=rounds, beta=1.0 if method == "mutual" else 0.0).settings()
    (folder / "config.toml").write_text(write_settings(settings))
    names = [f"kind {y}" if y != 7 else "</script><b>kind 7" for y in range(classes)]
    counts = [classes - y for y in range(classes)]
    facts = {"name": "kinds", "method": method, "class_names": names, "training_counts": counts, "shape": [2]}
    (folder / "run.json").write_text(json.dumps({**facts, "parameters": 9, "status": "done", "clients_at_once": 2}))
    numbers = {"mutual": 0.1, "grad_norm": 1.0, "seconds": 0.5, "round_seconds": 9.0}
    numbers |= {"bytes_down": 4000, "bytes_up": 1000}
    lines = [
        {"round": k, "class": y, "status": "ok", "reason": "", "loss": 1 / (k + y), "held_out": 2 / (k + y), **numbers}
        if y
        else {"round": k, "class": y, "status": "error", "reason": "no memory", "round_seconds": 9.0}
        for k in range(1, rounds + 1)
        for y in range(classes)
    ]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    fd = {y: classes / y for y in range(1, classes)}
    rows = [f"{method},0,{y},{counts[y]},{metric},{value}" for metric in ("fd", "kid") for y, value in fd.items()]
    (folder / "metrics.csv").write_text("\n".join(["method,seed,class,n_train,metric,value", *rows]) + "\n")
    if audited:
        both = [(y, attack) for y in fd for attack in ("pia", "loss")]
        found = [{"class": y, "attack": name, "metric": "auc", "value": 0.5 + y / classes / 3} for y, name in both]
        (folder / "audit.json").write_text(json.dumps({"rows": found}))
    return folder
