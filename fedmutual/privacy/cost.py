"""What a mechanism costs, how costs add up, and the epsilon at delta that they come to.

A mechanism is (epsilon, delta)-differentially private if for any two neighbouring data sets and any set S of outputs

    P[M(D) in S] <= e^epsilon P[M(D') in S] + delta.

Two forms of cost add up over mechanisms that look at the same data, whatever each has seen of those before it: rho of
Gaussian mechanisms (zCDP, Bun and Steinke 2016), and Rényi divergences at fixed orders (Mironov 2017).
"""

import math
from dataclasses import dataclass
from functools import partial

from scipy.optimize import brentq
from scipy.special import log_ndtr

ORDERS: tuple[float, ...] = (
    *(1 + step / 20 for step in range(1, 20)),
    *(2 + step / 4 for step in range(32)),
    *(float(order) for order in range(10, 64)),
    *(64.0, 80.0, 96.0, 128.0, 192.0, 256.0, 512.0, 1024.0),
)
"""The orders at which `Cost.rdp` holds Rényi divergences, all above 1."""


@dataclass(frozen=True)
class Cost:
    """What one mechanism costs, or several together.

    rho: of Gaussian mechanisms, mu² / 2 with mu the sensitivity over the standard deviation. rdp: Rényi divergences of
    all others at `ORDERS`, or none.
    """

    rho: float = 0.0
    rdp: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.rdp) not in (0, len(ORDERS)):
            raise ValueError(f"{len(self.rdp)} Rényi divergences for {len(ORDERS)} orders")
        if not all(math.isfinite(value) and value >= 0 for value in (self.rho, *self.rdp)):
            raise ValueError("a cost is finite and not below 0")

    def __add__(self, other: "Cost") -> "Cost":
        """What both cost together, also where the second was chosen by what the first had shown."""
        rdp = self.rdp or other.rdp
        if self.rdp and other.rdp:
            rdp = tuple(a + b for a, b in zip(self.rdp, other.rdp, strict=True))
        return Cost(self.rho + other.rho, rdp)

    def is_close(self, other: "Cost") -> bool:
        """Whether both are the same but for the rounding of the machines that worked them out."""
        mine, theirs = (self.rho, *self.rdp), (other.rho, *other.rdp)
        return len(mine) == len(theirs) and all(map(partial(math.isclose, rel_tol=1e-9), mine, theirs))

    def epsilon(self, delta: float) -> float:
        """The smallest epsilon that is known to hold at `delta`, between 0 and 1.

        Exact for Gaussian mechanisms alone, several of which are one of mu² = sum mu_i² (Dong, Roth and Su 2022). Else
        the smallest over the orders a of rdp(a) + log((a - 1) / a) - (log delta + log a) / (a - 1) (Canonne, Kamath and
        Steinke 2020, proposition 12), where a Gaussian mechanism has rdp(a) = a rho.
        """
        if not self.rdp:
            return gaussian_epsilon(math.sqrt(2 * self.rho), delta)
        bounds = (
            own + order * self.rho + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
            for order, own in zip(ORDERS, self.rdp, strict=True)
        )
        return max(0.0, min(bounds))


NOTHING = Cost()


def gaussian_delta(mu: float, epsilon: float) -> float:
    """delta(epsilon) = Phi(mu / 2 - epsilon / mu) - e^epsilon Phi(-mu / 2 - epsilon / mu), which is tight.

    Of a Gaussian mechanism whose sensitivity is `mu` standard deviations (Balle and Wang 2018, theorem 8).
    """
    first, second = log_ndtr(mu / 2 - epsilon / mu), epsilon + log_ndtr(-mu / 2 - epsilon / mu)
    return float(math.exp(first) * -math.expm1(min(0.0, second - first)))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The smallest epsilon of a Gaussian mechanism at `delta`, the inverse of `gaussian_delta`; 0 for mu = 0."""
    if mu == 0 or gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    most = mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta))  # rho + 2 sqrt(rho log(1 / delta)) holds for zCDP
    return float(brentq(lambda epsilon: gaussian_delta(mu, epsilon) - delta, 0.0, most, xtol=1e-10))
