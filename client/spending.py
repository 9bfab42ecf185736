"""What a client spends of its class's data before it uses them, and the noised versions that it has paid for."""

import hashlib
from logging import ERROR
from pathlib import Path
from typing import Any, NoReturn

from flwr.common.logger import log
from torch import Tensor

from client.store import Store
from fedmutual.checkpoint import CheckpointError, load, save
from fedmutual.config import RunConfig
from fedmutual.data.fingerprint import Fingerprint
from fedmutual.errors import UserError
from fedmutual.privacy.cost import NOTHING, Cost
from fedmutual.privacy.ledger import Expenditure, Ledger, Overspent
from fedmutual.privacy.versions import Versions, cost, draw_versions, norm_of

FILE = "versions.safetensors"
"""In the folder of a run and class: its noised versions."""


def pay(root: Path, y: int, asked: Expenditure, config: RunConfig, ahead: Cost = NOTHING) -> list[Expenditure]:
    """Enter `asked` in the ledger of class y in the store at `root`, within what may be spent there; all entries then.

    ahead: what the run is going to cost after its first payment, at which it has to fit as well.

    Raises:
        UserError: it cannot be paid; what is wrong with a ledger only the client's own log says.
    """
    try:
        return Ledger(root, y).spend(asked, config.publishing.epsilon, config.publishing.delta, ahead)
    except Overspent:
        raise
    except UserError as error:
        _refuse(error)


def paid_versions(
    store: Store, root: Path, run: str, y: int, data: Tensor, own: Fingerprint, config: RunConfig
) -> Versions:
    """The noised versions of class y's `data`, whose fingerprint is `own`: drawn, kept and paid for once in a run.

    They are on the disk before they are paid for, so that those that are paid for and not there have been lost.

    Raises:
        UserError: they are lost, damaged or of other settings, or cannot be paid.
        Unwritable: they could not be saved; nothing is spent.
    """
    path, told = store.folder / FILE, _told(config, data[0].numel())
    try:
        if not path.exists():
            if any(entry.run == run for entry in Ledger(root, y).entries()):
                raise UserError(f"{path} is missing and has been paid for: restore the store, or train a new run")
            versions = draw_versions(config, data)
            save(path, {"samples": versions.samples}, {**told, "level": versions.level})
        versions = _read(path, told)
    except UserError as error:
        _refuse(error)
    key, bill = f"versions {_digest(versions.samples)}", cost(config, data[0].numel())
    pay(root, y, Expenditure(run, key, "noised versions", told, "replace-one", bill, own), config)
    return versions._replace(samples=versions.samples.to(data))


def _told(config: RunConfig, dimension: int) -> dict[str, Any]:
    """What the versions depend on beside the samples and the noise."""
    asked, diffusion = config.publishing, config.diffusion
    return {
        "versions": asked.noised_versions,
        "norm": norm_of(config, dimension),
        "split": asked.split,
        "process": diffusion.process,
        "diffusion-steps": diffusion.steps,
        "horizon": diffusion.horizon,
        "stop": diffusion.stop,
        "dtype": config.compute.dtype,  # whose rounding may put a time on the other side of the split
    }


def _read(path: Path, told: dict[str, Any]) -> Versions:
    try:
        tensors, meta = load(path)
    except CheckpointError as error:
        raise UserError(f"{error}: restore the store, or train a new run") from None
    level = meta.pop("level")
    if meta != told:
        raise UserError(f"{path} was made by {meta}, and the server asks for {told}: a run keeps its settings")
    return Versions(tensors["samples"], level)


def _digest(samples: Tensor) -> str:
    return hashlib.sha256(samples.contiguous().numpy().tobytes()).hexdigest()[:32]


def _refuse(error: UserError) -> NoReturn:
    """What is wrong with the files that tell of what was spent goes to the client's log, and not to the server."""
    log(ERROR, "%s", error)
    raise UserError("this client cannot tell what it has spent of its data: its own log says why") from None
