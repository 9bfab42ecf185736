"""Where the local steps run."""

import torch

from fedmutual.config import RunConfig
from fedmutual.errors import UserError


def pick_device(config: RunConfig) -> torch.device:
    """The device of the local steps.

    Raises:
        UserError: `device = cuda` on a machine without a GPU.
    """
    if config.compute.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device = cuda, and torch sees no GPU here: use device = auto or cpu")
    return torch.device("cuda" if config.compute.device != "cpu" and torch.cuda.is_available() else "cpu")
