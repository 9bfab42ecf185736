"""A comparison refuses what would change none of its arms, before it is begun."""

import re

import pytest

from fedmutual.config import RunConfig
from fedmutual.errors import UserError
from simulations.experiments.methods import RECIPES, grid_of
from simulations.experiments.plan import plan
from simulations.experiments.tuning import to_tune
from tests.support.federation import SMALL


@pytest.mark.parametrize(
    ("given", "methods", "says"),
    [
        ({"mutual-auto.omega-weight": "one"}, "mutual-auto,isolated", "mutual-auto: omega-weight = one has no effect"),
        ({"fedavg.optimizer-state": "averaged", "optimizer": "sgd"}, "fedavg", "fedavg: optimizer-state = averaged"),
        ({"central-igd.scarcity": 3.0, "central-igd.beta-rule": "constant"}, "central-igd", "central-igd: scarcity"),
        ({"mutual-constant.exchange": "mean"}, "mutual-constant", "mutual-constant: exchange = mean averages"),
        ({"fedavg.local-steps": 1}, "pooled,isolated", "fedavg.local-steps has no effect, as --methods lacks fedavg"),
        ({"publish": "noise-split"}, "pooled,reweighted", "publish = noise-split has no effect on pooled, reweighted"),
        ({"wire-dtype": "bfloat16"}, "pooled", "wire-dtype = bfloat16 has no effect on pooled"),
        ({"peers-per-round": 2}, "isolated,fedavg", "peers-per-round = 2 has no effect on isolated, fedavg"),
        ({"peers-per-step": 2}, "shared-igd", "peers-per-step = 2 has no effect on shared-igd"),
        ({"beta": 2.0}, "isolated,pooled,fedavg", "beta = 2.0 has no effect on isolated, pooled, fedavg"),
        ({"beta": 2.0, "mutual-auto.beta": 1.0}, "mutual-auto", "beta = 2.0 has no effect on mutual-auto"),
        ({"beta-rule": "constant"}, "mutual-auto,isolated", "beta-rule = constant has no effect on mutual-auto"),
        ({"omega-weight": "one"}, "mutual-auto,isolated", "omega-weight = one has no effect with beta-rule = auto"),
        ({"caution": 2.0}, "mutual-scarcity", "caution = 2.0 has no effect with beta-rule = scarcity"),
        ({"scarcity": 3.0}, "mutual-constant,isolated", "scarcity = 3.0 has no effect with beta-rule = constant"),
        ({"ema": 0.9}, "kernel-density,memory", "ema = 0.9 has no effect on kernel-density, memory"),
        ({"rounds": 3}, "memory", "rounds = 3 has no effect on memory"),
        ({"weight-decay": 0.1}, "ridge,memory", "weight-decay = 0.1 has no effect on ridge, memory"),
        ({"optimizer-state": "fresh"}, "fedadam", "optimizer-state = fresh has an effect on the methods fedavg"),
        ({"tstr-seeds": 2, "samples": 20, "test": 0}, "pooled", "the data have no test part, on which to test"),
    ],
)
def test_a_setting_that_no_arm_would_show_is_refused(tmp_path, given, methods, says):
    with pytest.raises(UserError, match=re.escape(says)):
        plan({**SMALL, **given}, methods, 1, tmp_path / "cmp", given=given)
    assert not (tmp_path / "cmp").exists()


@pytest.mark.parametrize(
    ("given", "methods"),
    [
        ({"beta": "2"}, "isolated,shared-igd"),
        ({"beta-rule": "constant"}, "mutual,isolated"),
        ({"beta-rule": "constant"}, "mutual-auto,central-igd"),
        ({"publish": "noise-split", "split": 0.4}, "isolated,pooled"),
        ({"omega-weight": "one"}, "mutual-auto,mutual-constant"),
        ({"ema": 0.9, "learning-rate": "1e-3"}, "memory,pooled"),
        ({"optimizer-state": "averaged"}, "fedavg,fedadam"),
        ({"fedavg.local-steps": 1, "rounds": 4}, "fedavg"),
        ({"tstr-seeds": 2, "samples": 20}, "pooled"),
    ],
)
def test_one_arm_that_shows_it_is_enough(tmp_path, given, methods):
    plan({**SMALL, **given}, methods, 1, tmp_path / "cmp", given=given)


def test_a_value_for_all_methods_never_loses_to_a_grid(tmp_path):
    given = {"server-learning-rate": 0.5}
    made = plan({**SMALL, **given}, "fedadam,fedyogi", 1, tmp_path / "cmp", given=given)
    with pytest.raises(
        UserError, match=r"server-learning-rate = 0.5 would lose .* for fedadam among 0.003, 0.01, 0.03"
    ):
        to_tune(made, given)
    assert (
        list(to_tune(made, {**given, "fedadam.server-learning-rate": 0.5, "fedyogi.server-learning-rate": 1.0})) == []
    )
    assert list(to_tune(made, {"learning-rate": 0.1})) == ["fedadam", "fedyogi"]


@pytest.mark.parametrize(
    ("steps", "grid"), [(200, [200, 40, 8]), (7, [7, 1]), (30, [30, 6, 1]), (1, [1]), (64, [64, 16, 2])]
)
def test_local_steps_on_a_grid_divide_the_round(steps, grid):
    found = grid_of(RECIPES["fedavg"].knob, RunConfig().but(local_steps=steps))
    assert found == grid
    assert all(steps % one == 0 for one in found)
