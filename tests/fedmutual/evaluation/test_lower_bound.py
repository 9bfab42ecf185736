"""Lower bounds on epsilon: they do not exceed a claim that holds, and exceed one that does not."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom

from fedmutual.config import RunConfig
from fedmutual.evaluation.lower_bound import LARGEST, Guesses, epsilon_at_least, guess, p_value
from fedmutual.privacy import versions
from fedmutual.privacy.versions import draw_versions, secret_normal, sent_epsilon

PAIRS = 4000


def seen_through(config, count=PAIRS):
    """Guesses by the best attack there is, on the versions themselves: of each pair, the farthest two samples.

    What is sent is made from the versions, and tells no more than they do.
    """
    rng = np.random.default_rng(0)
    secrets = torch.from_numpy(rng.integers(0, 2, count) * 2.0 - 1)
    drawn = draw_versions(config, secrets[:, None] * torch.full((count, 4), 30.0, dtype=torch.float64))
    scores = (drawn.samples.sum((0, 2)) * secrets).numpy()  # towards the sample that was used
    sure = np.argsort(-abs(scores))[: count // 10]
    return Guesses(count, len(sure), int((scores[sure] > 0).sum()))


def config(**settings):
    base = {"publish": "noise-budget", "keep": "last", "evaluate-every": 0, "diffusion-steps": 25}
    return RunConfig.of(base, {key.replace("_", "-"): value for key, value in settings.items()})


@pytest.mark.parametrize("settings", [{}, {"noised_versions": 3, "sample_norm": 1.0}])
def test_it_does_not_exceed_what_noise_budget_claims(settings):
    asked = config(**settings)
    claimed, found = sent_epsilon(asked, (4,)), epsilon_at_least(seen_through(asked), 1e-5)
    assert 0.3 < found <= claimed


@pytest.mark.parametrize("settings", [{}, {"noised_versions": 3, "sample_norm": 1.0}])
def test_it_exceeds_the_claim_of_a_mechanism_whose_noise_was_cut_to_a_tenth(settings, monkeypatch):
    asked = config(**settings)
    monkeypatch.setattr(versions, "secret_normal", lambda *shape: secret_normal(*shape) / 10)
    assert epsilon_at_least(seen_through(asked), 1e-5) > sent_epsilon(asked, (4,))


def test_it_exceeds_the_claim_of_a_mechanism_that_scales_no_sample_down(monkeypatch):
    asked = config()
    monkeypatch.setattr(versions, "scaled_down", lambda x, norm: x)
    assert epsilon_at_least(seen_through(asked), 1e-5) > sent_epsilon(asked, (4,))


def test_randomised_response_is_bounded_by_its_epsilon_and_nearly_reaches_it():
    """It is right with probability e^epsilon / (1 + e^epsilon): no mechanism of that epsilon is more often."""
    epsilon, made = 1.5, 400
    right = binom(made, 1 / (1 + math.exp(-epsilon)))
    bounds = {v: epsilon_at_least(Guesses(made, made, v), 0.0) for v in range(290, 361)}
    assert right.cdf(289) + right.sf(360) < 1e-3
    assert sum(right.pmf(v) for v, bound in bounds.items() if bound > epsilon) <= 0.05
    assert bounds[round(right.mean())] == pytest.approx(epsilon, abs=0.25)


@pytest.mark.parametrize("guesses", [Guesses(100, 100, 50), Guesses(1, 1, 1), Guesses(100, 0, 0), Guesses(9, 9, 0)])
def test_guesses_that_chance_makes_refute_nothing(guesses):
    assert epsilon_at_least(guesses, 1e-5) == 0


def test_guesses_that_are_all_right_refute_what_their_number_can():
    """P[all r right] = (e^epsilon / (1 + e^epsilon))^r is 5 % at the bound."""
    q = 0.05 ** (1 / 50)
    assert epsilon_at_least(Guesses(50, 50, 50), 0.0) == pytest.approx(math.log(q / (1 - q)), abs=1e-4)
    assert epsilon_at_least(Guesses(50, 50, 50), 1e-3) < epsilon_at_least(Guesses(50, 50, 50), 0.0) < LARGEST


def test_the_excess_by_delta_is_that_of_the_papers_procedure():
    """Appendix D of Steinke, Nasr and Jagielski (2023), as it is printed there."""
    for m, r, v, epsilon, delta in ((200, 100, 80, 1.0, 1e-4), (50, 50, 49, 2.0, 1e-3), (10, 10, 3, 0.5, 1e-2)):
        q = 1 / (1 + math.exp(-epsilon))
        beta, alpha, below = binom.sf(v - 1, r, q), 0.0, 0.0
        for i in range(1, v + 1):
            below += binom.pmf(v - i, r, q)
            alpha = max(alpha, below / i)
        assert p_value(Guesses(m, r, v), epsilon, delta) == pytest.approx(min(1.0, beta + alpha * delta * 2 * m))


def test_pairs_are_drawn_and_ties_left_to_a_coin():
    rng = np.random.default_rng(0)
    assert guess([3.0, 4.0], [0.0, 1.0, 2.0], rng) == (2, 2, 2)
    assert guess([0.0], [1.0, 2.0], rng) == (1, 1, 0)
    tied = guess(np.zeros(1000), np.zeros(2000), rng)
    assert 430 < tied.right < 570
    assert Guesses(3, 2, 1) + Guesses(4, 4, 4) == Guesses(7, 6, 5)
