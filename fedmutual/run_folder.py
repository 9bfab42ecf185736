"""The files of a run folder: where they lie and how they are read."""

import json
import os
import platform
import sys
from contextlib import suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fedmutual.config import RunConfig
from fedmutual.records import Network


def run_folder(config: RunConfig) -> Path:
    """`out`, or a new folder named by the time."""
    if config.federation.out:
        return Path(config.federation.out).expanduser().resolve()
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path.home() / ".fedmutual" / "runs" / f"{config.data.source}-{stamp}"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of the run in `folder`, oldest first."""
    return sorted((folder / "checkpoints").glob("round-*.safetensors"))


SHARED = "shared"
"""In a checkpoint's place for a class: the one conditional network of all classes."""


def networks_in(tensors: dict[str, torch.Tensor]) -> dict[int | str, Network]:
    """{class: network} of a checkpoint, whose tensors are named `<class>/<parameter>`; see `SHARED`."""
    networks: dict[int | str, Network] = {}
    for name, tensor in tensors.items():
        place, _, parameter = name.partition("/")
        networks.setdefault(int(place) if place.isdigit() else place, {})[parameter] = tensor
    return networks


def checkpoint_path(folder: Path, round_: int) -> Path:
    return folder / "checkpoints" / f"round-{round_:06d}.safetensors"


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The lines of `history.jsonl`; a last line that a kill cut short is left out."""
    path = folder / "history.jsonl"
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def versions() -> dict[str, str]:
    """Versions of what a result may depend on."""
    packages = ("fedmutual", "flwr", "ray", "torch", "numpy", "scikit-learn", "diffusers")
    found = {"python": platform.python_version()}
    for package in packages:
        # Flower ships the app's code to a server in a bundle, so fedmutual itself need not be installed there.
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def hardware() -> str:
    """The server's processor and GPU, in words."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.machine()} {sys.platform}, {len(os.sched_getaffinity(0))} CPU cores{gpu}"
