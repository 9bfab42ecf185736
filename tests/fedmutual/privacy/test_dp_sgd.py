"""The cost of DP-SGD: Opacus' accountant over the ledger's orders."""

import sys

import pytest
from opacus.accountants import RDPAccountant

from fedmutual.config import RunConfig
from fedmutual.errors import UserError
from fedmutual.privacy import dp_sgd
from fedmutual.privacy.cost import Cost
from fedmutual.privacy.dp_sgd import cost, sampling_rate


def config(**settings):
    base = {"publish": "dp-sgd", "keep": "last", "evaluate-every": 0, "local-steps": 1}
    return RunConfig.of(base, {key.replace("_", "-"): value for key, value in settings.items()})


@pytest.mark.parametrize(("count", "steps", "noise"), [(1000, 500, 1.0), (40, 100, 6.0)])
def test_epsilon_is_that_of_opacus(count, steps, noise):
    asked = config(noise_multiplier=noise)
    accountant = RDPAccountant()
    accountant.history = [(noise, sampling_rate(asked, count), steps)]
    assert cost(asked, count, steps).epsilon(1e-5) == pytest.approx(accountant.get_epsilon(1e-5), rel=0.01)


def test_where_all_samples_are_taken_a_step_is_a_gaussian_mechanism():
    """Of a sensitivity of one clipped gradient, so that rho = steps / (2 z²), but for the orders that are tried."""
    told = cost(config(noise_multiplier=5.0), 32, 50).epsilon(1e-5)
    assert Cost(rho=1.0).epsilon(1e-5) < told < 1.1 * Cost(rho=1.0).epsilon(1e-5)
    assert cost(config(noise_multiplier=5.0), 4, 50) == cost(config(noise_multiplier=5.0), 32, 50)


def test_costs_of_rounds_add_up_to_that_of_all_their_steps():
    asked = config()
    parts = cost(asked, 100, 30) + cost(asked, 100, 70)
    assert parts.rdp == pytest.approx(cost(asked, 100, 100).rdp)


def test_next_to_no_noise_costs_what_no_bound_is_worth_and_still_adds_up():
    told = cost(config(noise_multiplier=1e-3), 100, 10)
    assert (told + told).epsilon(1e-5) > 1e5


def test_without_opacus_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus.accountants.analysis.rdp", None)
    dp_sgd._divergences.cache_clear()
    with pytest.raises(UserError, match=r"needs Opacus: pip install 'fedmutual\[dp\]'"):
        cost(config(), 100, 1)
