"""How a run recognises its data: a fingerprint of the samples that each class trains on, whatever their order."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from fedmutual.checkpoint import write_atomic
from fedmutual.errors import UserError

FILE = "data.json"
"""In a run folder or a client's store: `{class: {"size": ..., "fingerprint": ...}}`."""


class Fingerprint(NamedTuple):
    """How many samples a class trains on, and a hash of what they are."""

    size: int
    fingerprint: str


def fingerprint(samples: Tensor) -> Fingerprint:
    """The fingerprint of samples `[n, *dims]`; the same for samples in float64 as for the same ones in float32."""
    return combined(mark(sample) for sample in samples.float().cpu())


def mark(sample: Tensor) -> bytes:
    """16 bytes that mark one sample, float32 on the CPU, by its values."""
    return hashlib.blake2b(np.ascontiguousarray(sample.numpy()).tobytes(), digest_size=16).digest()


def combined(marks: Iterable[bytes]) -> Fingerprint:
    """The fingerprint of a class, from the marks of its samples."""
    ordered = sorted(marks)
    return Fingerprint(len(ordered), hashlib.sha256(b"".join(ordered)).hexdigest()[:32])


def write_fingerprints(folder: Path, fingerprints: Mapping[int, Fingerprint]) -> None:
    """Keep {class: fingerprint of what it trains on} in a run folder, or in a client's store.

    Raises:
        Unwritable: the disk is full, or the folder forbidden.
    """
    content = {str(y): own._asdict() for y, own in fingerprints.items()}
    write_atomic(folder / FILE, json.dumps(content, indent=1).encode())


def refuse_changed(folder: Path, now: Mapping[int, Fingerprint], names: Sequence[str]) -> None:
    """Compare with the fingerprints in `folder`; a folder without them, of an earlier version, is taken as it is.

    Raises:
        UserError: a class would not be the one that was trained on.
    """
    path = folder / FILE
    if not path.exists():
        return
    try:
        before = {int(y): Fingerprint(**own) for y, own in json.loads(path.read_text(encoding="utf-8")).items()}
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: restore it, or train a new run") from None
    for y, own in now.items():
        then = before.get(y, own)
        if then == own:
            continue
        had = str(then.size) if own.size != then.size else "others"
        name = names[y] if y < len(names) else y
        raise UserError(
            f"the data have changed since this run was trained: class {name} has {own.size} training samples and had "
            f"{had}, so that training and test samples would mix: restore the data as they were, or train a new run"
        )
