"""The registry of methods that `fedmutual compare` runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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
class Method:
    """What can be compared.

    about: one line; data: whether samples stay with their clients, are pooled, or the method is a control that
    claims neither; how: a federated app, or a function that trains in this process; settings: what the method
    changes in the comparison's settings; own: the settings that may be given for this method alone, which touch
    neither data nor budget.
    """

    about: str
    data: Literal["stays", "pooled", "control"]
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

METHODS = {
    "mutual-constant": Method(
        "a network a class, pulled towards its peers by the same beta for all",
        "stays",
        MUTUAL,
        {"beta-rule": "constant"},
        _PEERS,
    ),
    "mutual-scarcity": Method(
        "the same with beta r / (r + n): the more samples, the less pull",
        "stays",
        MUTUAL,
        {"beta-rule": "scarcity"},
        ("scarcity", *_PEERS),
    ),
    "isolated": Method("a network a class, each on its own (beta 0)", "stays", MUTUAL, {"beta": 0.0}, _RATES),
    "fedavg": Method("one conditional network, averaged by Flower's FedAvg", "stays", _FEDAVG, {}, _RATES),
    "fedprox": Method(
        "the same by Flower's FedProx, clients held near the average", "stays", _FEDPROX, {}, ("proximal-mu", *_RATES)
    ),
    "pooled": Method("one conditional network on all samples in one place", "pooled", pooled, {}, _RATES),
    "reweighted": Method("the same, every class drawn as often", "pooled", reweighted, {}, _RATES),
    "cbdm": Method("the same as pooled with the loss of CBDM", "pooled", cbdm, {}, ("tau", *_RATES)),
    "central-igd": Method(
        "a network a class, peers exchanged at every step",
        "pooled",
        central_igd,
        {},
        _GAME,
    ),
    "shared-igd": Method(
        "one conditional network, classes take turns, their peers its other labels",
        "pooled",
        shared_igd,
        {},
        _GAME,
    ),
    "ridge": Method(
        "isolated with weight decay, each class's chosen by its held-out samples",
        "control",
        ridge,
        {},
        ("learning-rate",),
    ),
    "copy-head": Method("the largest class's network for every class", "control", copy_head, {}, _RATES),
    "memory": Method("the training samples themselves as the generated ones", "control", memory),
}
"""By name, in the order of tables."""
