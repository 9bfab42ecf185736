"""Real processes and real kills: whatever dies, and whenever, the result is the uninterrupted run's, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedmutual.run_folder import read_history
from simulations.runs.networks import read_networks
from tests.support.federation import assert_same, federate, networks
from tests.support.processes import CLIENT, SERVER, federate_under_kills, without_times


@pytest.fixture
def three_digits(small, tmp_path):
    """Settings of a federation of three classes; `arm` names its folders."""
    digits = load_digits()
    kept = [index for y in range(3) for index in np.flatnonzero(digits.target == y)[:30]]
    path = tmp_path / "digits.npz"
    np.savez(path, images=(digits.images[kept] / 16 * 255).astype(np.uint8), labels=digits.target[kept])

    def make(arm, **changes):
        own = {"data": "npz", "data_path": str(path), "imbalance": "none", "test": 0, "held_out": 8, "head_count": 0}
        places = {"out": str(tmp_path / arm / "run"), "store": str(tmp_path / arm / "clients")}
        return small(**own, **places, **changes)

    return make


@pytest.mark.parametrize(
    ("seed", "checkpoint_every"),
    [(1, 1), *(pytest.param(seed, every, marks=pytest.mark.faults) for seed in (2, 3, 4) for every in (1, 3))],
)
def test_killed_at_random_moments_and_resumed_equals_running_through(
    three_digits, tmp_path, record_property, seed, checkpoint_every
):
    """Classes choose among their rounds, so that what a store keeps of an earlier round is struck as well."""
    settings = {"rounds": 24, "local_steps": 5, "classes": 3, "checkpoint_every": checkpoint_every}
    settings |= {"keep": "best", "learning_rate": 0.05}
    through = three_digits("through", **settings)
    expected = networks(federate(through))
    config = three_digits("killed", **settings)
    kills = federate_under_kills(config, tmp_path, seed, server_kills=20)
    record_property(f"{sum(kills.values())} kills", kills)
    assert_same(dict(sorted(read_networks(Path(config.federation.out))[1].items())), expected)
    assert without_times(read_history(Path(config.federation.out))) == without_times(
        read_history(Path(through.federation.out))
    )
    assert sum(kills.values()) >= 50
    assert set(kills) >= {*CLIENT, *SERVER}
