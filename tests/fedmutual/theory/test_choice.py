"""Choosing beta, ridge and peers: properties, with models that are not networks at all."""

import pytest
import torch
from scipy.stats import norm
from scipy.stats import t as student

from fedmutual.theory.choice import choose, folds, held_out_losses, similarity, surest

CANDIDATES = (0.0, 0.1, 1.0)


@pytest.mark.parametrize(("count", "parts"), [(14, 5), (5, 5), (3, 5), (2, 2), (101, 10)])
def test_every_sample_is_held_out_once_and_never_seen(count, parts):
    splits = folds(count, parts)
    assert torch.cat([held_out for _, held_out in splits]).sort().values.tolist() == list(range(count))
    for kept, held_out in splits:
        assert not set(kept.tolist()) & set(held_out.tolist())
        assert len(kept) + len(held_out) == count


def test_held_out_losses_come_in_the_order_of_the_samples():
    samples = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])

    def fit(shrinkage, kept):
        return samples[kept].mean() * (1 - shrinkage)

    def loss(mean, held_out):
        return (samples[held_out] - mean).square()

    losses = held_out_losses(5, CANDIDATES, fit, loss)
    for row, shrinkage in zip(losses, CANDIDATES, strict=True):
        for i in range(5):
            mean = (samples.sum() - samples[i]) / 4 * (1 - shrinkage)
            torch.testing.assert_close(row[i], (samples[i] - mean).square())


def test_deep_networks_can_be_chosen_by_the_same_functions():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=generator)
    y = x @ torch.randn(3, 1, generator=generator)

    def fit(decay, kept):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        optimiser = torch.optim.AdamW(network.parameters(), lr=0.05, weight_decay=decay)
        for _ in range(60):
            optimiser.zero_grad()
            (network(x[kept]) - y[kept]).square().mean().backward()
            optimiser.step()
        return network

    def loss(network, held_out):
        with torch.no_grad():
            return (network(x[held_out]) - y[held_out]).square().mean(1)

    losses = held_out_losses(12, (0.0, 50.0), fit, loss, parts=3)
    assert losses.shape == (2, 12)
    assert choose(losses, (0.0, 50.0)) == 0.0


@pytest.mark.parametrize("rule", [choose, surest])
def test_a_class_with_nothing_to_gain_keeps_the_safe_choice(rule):
    base = torch.rand(20, generator=torch.Generator().manual_seed(1))
    assert rule(torch.stack([base, base, base + 0.1]), CANDIDATES) == 0.0


@pytest.mark.parametrize("rule", [choose, surest])
def test_a_sure_gain_is_taken_and_the_smallest_of_equals_wins(rule):
    base = torch.rand(20, generator=torch.Generator().manual_seed(1))
    assert rule(torch.stack([base, base - 0.5, base - 0.5]), CANDIDATES) == pytest.approx(0.1)
    assert rule(torch.stack([base, base - 0.5, base - 0.9]), CANDIDATES) == 1.0


@pytest.mark.parametrize("rule", [choose, surest])
def test_caution_decides_what_a_doubtful_gain_is_worth(rule):
    generator = torch.Generator().manual_seed(2)
    base = torch.rand(20, generator=generator)
    noise = torch.randn(20, generator=generator)
    doubtful = base - 0.01 + 0.2 * (noise - noise.mean())
    losses = torch.stack([base, doubtful, base + 1])
    assert rule(losses, CANDIDATES, caution=0.0) == pytest.approx(0.1)
    assert rule(losses, CANDIDATES, caution=1.0) == 0.0


def test_the_surest_gain_is_its_mean_less_the_error_below_it():
    """Gains of -1, 0, 0, 5: a mean of 1, below which lie 2, 1 and 1: twice the squares, 12, over 3 times 4."""
    base = torch.full((4,), 9.0, dtype=torch.float64)
    losses = torch.stack([base, base - torch.tensor([-1.0, 0, 0, 5]), base - 0.2])
    assert student.ppf(norm.cdf(1.0), 3) > 1 - 0.2, "the error is 1"
    assert surest(losses, CANDIDATES, caution=1.0) == 1.0, "0.2 for certain beats a mean of 1 that is not"
    assert surest(losses, CANDIDATES, caution=0.5) == pytest.approx(0.1)
    worse = torch.stack([base, base + torch.tensor([-1.0, 0, 0, 5]), base])
    assert surest(worse, CANDIDATES, caution=0.0) == 0.0
    lucky = torch.stack([base, base - torch.tensor([0.9, 1.0, 1.0, 40.0])])
    assert surest(lucky, CANDIDATES[:2]) == pytest.approx(0.1), "a gain on every sample, however unequal"
    assert choose(lucky, CANDIDATES[:2]) == 0.0


def test_choice_is_made_for_each_game_by_itself():
    losses = torch.rand(4, 7, 3, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for rule in (choose, surest):
        chosen = rule(losses, CANDIDATES)
        assert chosen.shape == (4, 7)
        assert all(chosen[i, j] == rule(losses[i, j], CANDIDATES) for i in range(4) for j in range(7))


def test_samples_that_cannot_be_split_leave_the_safe_choice():
    losses = held_out_losses(1, CANDIDATES, lambda *_: None, lambda *_: torch.zeros(2, 0))
    assert choose(losses, CANDIDATES) == surest(losses, CANDIDATES) == 0
    with pytest.raises(ValueError, match="at least two folds"):
        folds(4, 1)


def test_similarity_is_a_distribution_that_prefers_the_peer_that_agrees():
    own = torch.randn(6, 50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    peers = torch.stack([own + 0.05, own + 0.3, own + 0.5], -3)
    weights = similarity(own, peers)
    torch.testing.assert_close(weights.sum(-1), torch.ones(6, dtype=torch.float64))
    assert (weights.diff(dim=-1) < 0).all()
    assert (weights[..., 0] > 0.99).all()


def test_similarity_has_no_unit_and_forgets_with_temperature():
    own, other = torch.randn(2, 50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    peers = torch.stack([other, own + other])
    torch.testing.assert_close(similarity(own, peers), similarity(1000 * own, 1000 * peers))
    torch.testing.assert_close(similarity(own, peers, 1e9), torch.full((2,), 0.5, dtype=torch.float64))
