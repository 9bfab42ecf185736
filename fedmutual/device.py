"""Where the local steps run, and in which numbers."""

import torch

from fedmutual.config import Compute
from fedmutual.errors import UserError


def pick_device(compute: Compute) -> torch.device:
    """The device of the local steps.

    Raises:
        UserError: `device = cuda` on a machine without a GPU.
    """
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device = cuda, and torch sees no GPU here: use device = auto or cpu")
    return torch.device("cuda" if compute.device != "cpu" and torch.cuda.is_available() else "cpu")


def dtype_of(compute: Compute) -> torch.dtype:
    """The type of parameters, samples and the process's tables: torch.float32 or torch.float64."""
    return {"float32": torch.float32, "float64": torch.float64}[compute.dtype]
