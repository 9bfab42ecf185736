"""How `fedmutual compare` runs each method of `fedmutual.methods`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from client.averaging import app as averaging_client
from fedmutual.baselines import Data, OnRound, Trained
from fedmutual.baselines.cbdm import cbdm
from fedmutual.baselines.central_igd import central_igd
from fedmutual.baselines.copy_head import copy_head
from fedmutual.baselines.memory import memory
from fedmutual.baselines.pooled import pooled
from fedmutual.baselines.reweighted import reweighted
from fedmutual.baselines.ridge import ridge
from fedmutual.baselines.shared_igd import shared_igd
from fedmutual.config import RunConfig
from server import averaging
from simulations.engine.simulation import MUTUAL, App

Baseline = Callable[[RunConfig, Data, OnRound], Trained]


@dataclass(frozen=True)
class Recipe:
    """How a method is run.

    how: a federated app, or a function that trains in this process; settings: what the method changes in the
    comparison's settings; own: the settings that may be given for this method alone, which touch neither data nor
    budget.
    """

    how: App | Baseline
    settings: Mapping[str, Any] = field(default_factory=dict)
    own: tuple[str, ...] = ()

    @property
    def federated(self) -> bool:
        return isinstance(self.how, App)

    @property
    def conditional(self) -> bool:
        """Whether it trains one network for all classes, on samples of all of them."""
        return self.how in (pooled, reweighted, cbdm, shared_igd)


_FEDAVG: App[Any] = App(averaging.prepare_fedavg, averaging.serve, averaging_client)
_FEDPROX: App[Any] = App(averaging.prepare_fedprox, averaging.serve, averaging_client)
_RATES = ("learning-rate", "weight-decay")
_GAME = ("beta", "beta-rule", "scarcity", "omega-weight", *_RATES)
_PEERS = ("beta", "omega-weight", "peer-weights", "peers-per-round", "exchange", *_RATES)

RECIPES = {
    "mutual-auto": Recipe(MUTUAL, {"beta-rule": "auto"}, ("caution", *_PEERS)),
    "mutual-scarcity": Recipe(MUTUAL, {"beta-rule": "scarcity"}, ("scarcity", *_PEERS)),
    "mutual-constant": Recipe(MUTUAL, {"beta-rule": "constant"}, _PEERS),
    "isolated": Recipe(MUTUAL, {"beta": 0.0}, _RATES),
    "fedavg": Recipe(_FEDAVG, {}, _RATES),
    "fedprox": Recipe(_FEDPROX, {}, ("proximal-mu", *_RATES)),
    "pooled": Recipe(pooled, {}, _RATES),
    "reweighted": Recipe(reweighted, {}, _RATES),
    "cbdm": Recipe(cbdm, {}, ("tau", *_RATES)),
    "central-igd": Recipe(central_igd, {}, _GAME),
    "shared-igd": Recipe(shared_igd, {}, _GAME),
    "ridge": Recipe(ridge, {}, ("learning-rate",)),
    "copy-head": Recipe(copy_head, {}, _RATES),
    "memory": Recipe(memory),
}
"""By the name of the method, in the order of the registry."""
