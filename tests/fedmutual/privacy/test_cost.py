"""Costs against the closed form of a Gaussian mechanism, quadrature and known numbers."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from fedmutual.privacy.cost import ORDERS, Cost, gaussian_delta, gaussian_epsilon


@pytest.mark.parametrize(("mu", "epsilon"), [(0.1, 0.05), (1.0, 0.5), (1.0, 4.0), (3.0, 12.0)])
def test_delta_is_the_integral_of_what_exceeds_e_to_the_epsilon(mu, epsilon):
    """delta = integral of max(0, p - e^epsilon q) for p = N(mu, 1), q = N(0, 1)."""
    start = epsilon / mu + mu / 2  # where p = e^epsilon q
    expected, _ = integrate.quad(
        lambda x: stats.norm.pdf(x, mu) - math.exp(epsilon) * stats.norm.pdf(x), start, start + 40, epsabs=1e-14
    )
    assert gaussian_delta(mu, epsilon) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mu", [0.01, 0.3, 1.0, 5.0, 40.0, 3000.0])
def test_epsilon_is_the_inverse_of_delta(mu):
    epsilon = gaussian_epsilon(mu, 1e-5)
    assert gaussian_delta(mu, epsilon) == pytest.approx(1e-5, rel=1e-5)
    assert epsilon <= mu**2 / 2 + mu * math.sqrt(2 * math.log(1e5))


def test_nothing_costs_nothing():
    assert Cost().epsilon(1e-5) == 0
    assert gaussian_epsilon(1e-6, 1e-5) == 0


def test_gaussian_mechanisms_add_up_to_one_of_their_squared_mu():
    one, other = Cost(rho=0.5), Cost(rho=2.0)
    assert (one + other).epsilon(1e-5) == gaussian_epsilon(math.sqrt(1 + 4), 1e-5)


def test_renyi_divergences_add_up_order_by_order_with_rho():
    """A Gaussian mechanism has the divergence a rho at the order a: both ways of telling it add up to the same."""
    told = Cost(rdp=tuple(0.3 * order for order in ORDERS))
    twice = tuple(0.8 * order for order in ORDERS)
    assert (told + Cost(rdp=tuple(0.5 * order for order in ORDERS))).rdp == pytest.approx(twice)
    assert (told + Cost(rho=0.5)).epsilon(1e-5) == pytest.approx(Cost(rdp=twice).epsilon(1e-5))


@pytest.mark.parametrize("rho", [0.01, 0.5, 4.0, 30.0])
def test_the_bound_by_renyi_divergences_holds_and_is_near(rho):
    exact, bound = Cost(rho).epsilon(1e-5), Cost(rdp=tuple(rho * order for order in ORDERS)).epsilon(1e-5)
    assert exact <= bound <= 1.1 * exact


def test_it_is_the_bound_that_opacus_gives():
    """The formula of Opacus' `get_privacy_spent`, for one Gaussian step of noise multiplier 2 at these orders."""
    rdp = np.array([order / (2 * 2.0**2) for order in ORDERS])
    orders = np.array(ORDERS)
    theirs = rdp - (np.log(1e-5) + np.log(orders)) / (orders - 1) + np.log((orders - 1) / orders)
    assert Cost(rdp=tuple(rdp)).epsilon(1e-5) == pytest.approx(float(np.nanmin(theirs)))


def test_a_cost_that_is_none_is_refused():
    with pytest.raises(ValueError, match="3 Rényi divergences"):
        Cost(rdp=(1.0, 2.0, 3.0))
    for rho in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="finite and not below 0"):
            Cost(rho)
