"""How `fedmutual compare` runs each method of `fedmutual.methods`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from client.averaging import app as averaging_client
from fedmutual.baselines import Data, OnRound, Trained
from fedmutual.baselines.cbdm import cbdm
from fedmutual.baselines.ccua import ccua
from fedmutual.baselines.central_igd import central_igd
from fedmutual.baselines.cm import cm
from fedmutual.baselines.copy_head import copy_head
from fedmutual.baselines.coral import coral
from fedmutual.baselines.kernel_density import kernel_density
from fedmutual.baselines.memory import memory
from fedmutual.baselines.oc import oc
from fedmutual.baselines.pfdm import pfdm
from fedmutual.baselines.pooled import pooled
from fedmutual.baselines.predictions import predictions
from fedmutual.baselines.reweighted import reweighted
from fedmutual.baselines.ridge import ridge
from fedmutual.baselines.shared_igd import shared_igd
from fedmutual.config import RunConfig
from server import averages
from server.averaging import Recorded, serve
from simulations.engine.simulation import MUTUAL, App

Baseline = Callable[[RunConfig, Data, OnRound], Trained]


@dataclass(frozen=True)
class Knob:
    """The setting that a method tunes, and its values, which are `times` the comparison's own where that is said.

    The only one that is a whole number is local-steps.
    """

    setting: str
    values: tuple[float, ...]
    times: bool = True


def grid_of(knob: Knob, config: RunConfig) -> list[Any]:
    """The values that are tried under the settings `config`; of local steps those that divide a round, the nearest."""
    before = config.settings()[knob.setting]
    if not knob.times:
        return list(knob.values)
    values = [before * value for value in knob.values]
    if isinstance(before, float):
        return values
    divisors = [steps for steps in range(1, before + 1) if before % steps == 0]
    return list(dict.fromkeys(min(divisors, key=lambda steps: abs(steps - value)) for value in values))


@dataclass(frozen=True)
class Recipe:
    """How a method is run.

    how: a federated app, or a function that trains in this process; settings: what the method changes in the
    comparison's settings; own: the settings that may be given for this method alone, which touch neither data nor
    budget; knob: the one of them that `--tune` chooses.
    """

    how: App | Baseline
    settings: Mapping[str, Any] = field(default_factory=dict)
    own: tuple[str, ...] = ()
    knob: Knob | None = None

    @property
    def federated(self) -> bool:
        return isinstance(self.how, App)

    @property
    def averages(self) -> bool:
        """Whether a server averages its clients' networks."""
        return self.federated and self.how is not MUTUAL

    @property
    def conditional(self) -> bool:
        """Whether it trains one network for all classes in this process, on samples of all of them, or noised ones."""
        return self.how in (pfdm, pooled, reweighted, cbdm, ccua, coral, oc, cm, shared_igd)


def _averaging(prepare: Callable[[RunConfig, Mapping[str, Any]], Recorded]) -> App[Any]:
    return App(prepare, serve, averaging_client)


_RATES = ("learning-rate", "weight-decay")
_GAME = ("beta", "beta-rule", "scarcity", "omega-weight", *_RATES)
_STRENGTH, _RATE = (1 / 3, 1.0, 3.0), Knob("learning-rate", (0.5, 1.0, 2.0))
_STEPS = Knob("local-steps", (1.0, 0.2, 0.04))
_SERVER = Knob("server-learning-rate", (0.003, 0.01, 0.03), times=False)
_AVERAGES = ("local-steps", "averaging-weights", *_RATES)
_KEPT = {"optimizer-state": "kept"}
_PEERS = ("beta", "omega-weight", "peer-weights", "peers-per-round", "exchange", *_RATES)

RECIPES = {
    "mutual-auto": Recipe(MUTUAL, {"beta-rule": "auto"}, ("caution", *_PEERS), Knob("beta", _STRENGTH)),
    "mutual-scarcity": Recipe(MUTUAL, {"beta-rule": "scarcity"}, ("scarcity", *_PEERS), Knob("beta", _STRENGTH)),
    "mutual-constant": Recipe(MUTUAL, {"beta-rule": "constant"}, _PEERS, Knob("beta", _STRENGTH)),
    "isolated": Recipe(MUTUAL, {"beta": 0.0}, _RATES, _RATE),
    "fedavg": Recipe(_averaging(averages.prepare_fedavg), {}, ("optimizer-state", *_AVERAGES), _STEPS),
    "fedprox": Recipe(
        _averaging(averages.prepare_fedprox),
        {},
        ("proximal-mu", "optimizer-state", *_AVERAGES),
        Knob("proximal-mu", (1.0, 10.0, 100.0)),
    ),
    "fedavgm": Recipe(
        _averaging(averages.prepare_fedavgm),
        _KEPT,
        ("server-learning-rate", *_AVERAGES),
        Knob("server-learning-rate", (0.1, 0.3, 1.0), times=False),
    ),
    "fedadam": Recipe(_averaging(averages.prepare_fedadam), _KEPT, ("server-learning-rate", *_AVERAGES), _SERVER),
    "fedyogi": Recipe(_averaging(averages.prepare_fedyogi), _KEPT, ("server-learning-rate", *_AVERAGES), _SERVER),
    "scaffold": Recipe(_averaging(averages.prepare_scaffold), _KEPT, ("local-steps", *_RATES), _STEPS),
    "fedper": Recipe(_averaging(averages.prepare_fedper), {}, ("optimizer-state", *_AVERAGES), _STEPS),
    "finetuned": Recipe(
        _averaging(averages.prepare_finetuned),
        {},
        ("finetuning", "optimizer-state", *_AVERAGES),
        Knob("finetuning", (0.25, 0.5, 0.75), times=False),
    ),
    "pfdm": Recipe(
        pfdm,
        {"publish": "noise-split", "beta": 0.0, "beta-rule": "scarcity"},
        ("split", *_RATES),
        Knob("split", (0.3, 0.5, 0.7), times=False),
    ),
    "predictions": Recipe(predictions, {}, _GAME, Knob("beta", _STRENGTH)),
    "pooled": Recipe(pooled, {}, _RATES, _RATE),
    "reweighted": Recipe(reweighted, {}, _RATES, _RATE),
    "cbdm": Recipe(cbdm, {}, ("tau", *_RATES), Knob("tau", _STRENGTH)),
    "ccua": Recipe(ccua, {}, ("alignment", *_RATES), Knob("alignment", _STRENGTH)),
    "coral": Recipe(coral, {}, ("contrast", *_RATES), Knob("contrast", _STRENGTH)),
    "oc": Recipe(oc, {}, _RATES, _RATE),
    "cm": Recipe(cm, {}, ("manipulation", *_RATES), Knob("manipulation", _STRENGTH)),
    "central-igd": Recipe(central_igd, {}, _GAME, Knob("beta", _STRENGTH)),
    "shared-igd": Recipe(shared_igd, {}, _GAME, Knob("beta", _STRENGTH)),
    "ridge": Recipe(ridge, {}, ("learning-rate",)),
    "copy-head": Recipe(copy_head, {}, _RATES),
    "kernel-density": Recipe(kernel_density),
    "memory": Recipe(memory),
}
"""By the name of the method, in the order of the registry."""
