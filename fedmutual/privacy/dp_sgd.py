"""What DP-SGD costs (Abadi et al. 2016), by the accountant of Opacus.

Each step takes every sample with probability q, clips its gradient to the norm C, adds them up, and adds noise of
standard deviation z C to each number of the sum, z being the setting `noise-multiplier`. Where one sample is added or
removed, a step is a Gaussian mechanism on a Poisson sample (Mironov, Talwar and Zhang 2019). What is computed from the
noised sums, such as the network, its averages and all that follows, costs nothing more.

The number of samples n, and with it q = min(1, batch / n), is held fixed and known.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from fedmutual.config import RunConfig
from fedmutual.errors import UserError
from fedmutual.privacy.cost import ORDERS, Cost

NO_BOUND = 1e200
"""Stands for a divergence that has no finite bound at an order: no epsilon comes from it, and sums stay finite."""


def sampling_rate(config: RunConfig, count: int) -> float:
    """q, with which each of `count` samples is taken in a step: `batch` of them in the mean, or always all."""
    return min(1.0, config.optimiser.batch / count)


def cost(config: RunConfig, count: int, steps: int) -> Cost:
    """What `steps` steps cost a class of `count` samples, where one is added or removed.

    Raises:
        UserError: Opacus is not installed.
    """
    one = _divergences(sampling_rate(config, count), config.publishing.noise_multiplier)
    return Cost(rdp=tuple(min(NO_BOUND, steps * value) for value in one))


def accountant() -> Callable[..., Any]:
    """Opacus' Rényi divergences of a step.

    Raises:
        UserError: Opacus is not installed.
    """
    try:
        from opacus.accountants.analysis.rdp import compute_rdp
    except ImportError:
        raise UserError("publish = dp-sgd needs Opacus: pip install 'fedmutual[dp]'") from None
    found: Callable[..., Any] = compute_rdp
    return found


@lru_cache(maxsize=256)
def _divergences(rate: float, noise_multiplier: float) -> tuple[float, ...]:
    """Of one step, at `ORDERS`."""
    told = accountant()(q=rate, noise_multiplier=noise_multiplier, steps=1, orders=list(ORDERS))
    return tuple(float(value) for value in np.nan_to_num(told, nan=NO_BOUND, posinf=NO_BOUND).clip(0, NO_BOUND))
