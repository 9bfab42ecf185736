"""`oc` and `cm`: their losses worked out by hand, and the laws that they keep."""

import math

import pytest
import torch

from fedmutual.baselines.cm import Reserved, cm, manipulation_loss, manipulation_weights, merged, reserved_weights
from fedmutual.baselines.oc import oc, towards_head, transfer_probabilities
from fedmutual.baselines.pooled import pooled
from fedmutual.data import ClassData
from fedmutual.errors import UserError
from fedmutual.networks import build_conditional
from fedmutual.seeds import generator
from tests.support.data import load_class
from tests.support.federation import assert_same

SHAPE = (1, 8, 8)


@pytest.fixture
def data(small):
    return [load_class(small(), y) for y in range(10)]


# OC


def test_a_clean_sample_is_as_likely_as_it_is_to_have_been_noised_to_what_is_seen():
    """x_t = 1 with alpha 0.6, sigma 0.8 lies (1 - 0.6 x)² = 0.16, 1 and 2.56 from x = 1, 0 and -1, over 2 * 0.64."""
    x0 = torch.tensor([[1.0], [0.0], [-1.0]], dtype=torch.float64)
    x = torch.tensor([[1.0], [0.0], [0.0]], dtype=torch.float64)
    alpha, sigma = torch.tensor([0.6, 0.6, 1.0]).double(), torch.tensor([0.8, 0.8, 1e-3]).double()
    likely = transfer_probabilities(x, x0, alpha, sigma)
    weights = torch.tensor([math.exp(-0.125), math.exp(-0.78125), math.exp(-2.0)], dtype=torch.float64)
    torch.testing.assert_close(likely[0], weights / weights.sum())
    torch.testing.assert_close(likely[2], torch.tensor([0.0, 1.0, 0.0]).double())  # with little noise, its own


def test_only_a_class_with_as_many_samples_teaches():
    """Class 0 has 5 samples, class 1 has 2, class 2 has 2: a head row keeps itself, and a tail row takes from both."""
    labels, counts = torch.tensor([0, 1, 2, 1]), torch.tensor([5, 2, 2])
    drawn = torch.tensor([1, 0, 3, 3])
    assert towards_head(drawn, labels, counts).tolist() == [0, 0, 3, 3]


@pytest.mark.parametrize("parametrisation", ["noise", "score", "velocity"])
def test_oc_of_one_sample_is_pooled_whatever_the_network_puts_out(small, parametrisation):
    """A batch of copies of one sample: whichever is drawn, the target is what it was, but for rounding."""
    config = small(parametrisation=parametrisation)
    data = [ClassData(load_class(config, y).train[:1] * 0 + 0.3, load_class(config, y).held_out) for y in (0, 1)]
    expected = pooled(config, data).networks["shared"]
    assert_same({0: oc(config, data).networks["shared"]}, {0: expected}, rtol=1e-4, atol=1e-5)


def test_oc_teaches_rare_labels_what_large_classes_look_like(small):
    """Two classes of one image each side of 0, 60 of one and 3 of the other, and much noise: the rare label's guess at
    x_0 moves to the large class's image."""
    config = small(local_steps=60, learning_rate=5e-3, ema=0.0, batch=32)
    data = [ClassData(torch.full((n, 1, 8, 8), value), torch.empty(0, 1, 8, 8)) for n, value in ((60, 0.2), (3, -0.2))]

    def noise_seen(method):
        network = build_conditional(config, SHAPE, 2)
        network.load_state_dict(method(config, data).networks["shared"])
        x, t = torch.zeros(1, *SHAPE), torch.full((1,), 6.0)
        with torch.no_grad():
            return float(network(x, t, torch.tensor([1])).mean())  # above 0: x is thought to come from below 0

    assert noise_seen(oc) < noise_seen(pooled)


# CM


def test_manipulation_weights_are_those_worked_out_by_hand():
    """9 : 1 samples: p = .9, .1 and q = .1, .9, so that 2 (p - .2 q) = 1.76 and -.16; equal classes have .8 each."""
    torch.testing.assert_close(manipulation_weights(torch.tensor([9.0, 1.0])), torch.tensor([1.76, -0.16]))
    torch.testing.assert_close(manipulation_weights(torch.full((5,), 7.0)), torch.full((5,), 0.8))
    torch.testing.assert_close(manipulation_weights(torch.tensor([9.0, 1.0]), 10), torch.tensor([17.6, -0.9]))


def test_manipulation_draws_frequent_labels_together_and_moves_rare_ones_away():
    """d = 2: ||(1,3) - (0,1)||² / 2 = 2.5, at weights 1.76 and -0.16; at the second one output stands still."""
    reserved = torch.tensor([[1.0, 3.0], [1.0, 3.0]], requires_grad=True)
    general = torch.tensor([[0.0, 1.0], [0.0, 1.0]], requires_grad=True)
    loss = manipulation_loss(reserved, general, torch.tensor([1.76, -0.16]))
    torch.testing.assert_close(loss, torch.tensor([4.4, -0.4]))
    loss.sum().backward()
    torch.testing.assert_close(reserved.grad, torch.tensor([[1.76, 3.52], [-0.16, -0.32]]))
    torch.testing.assert_close(general.grad, torch.tensor([[-1.76, -3.52], [0.0, 0.0]]))


@pytest.mark.parametrize("settings", [{"network": "mlp"}, {"network": "unet", "multipliers": "1,2", "depth": 1}])
def test_what_is_reserved_is_of_low_rank_adds_nothing_at_first_and_goes_into_the_weights(small, settings):
    network = build_conditional(small(width=32, **settings), SHAPE, 10)
    names = reserved_weights(network)
    trained = Reserved(network, 0)
    x, t, y = torch.randn(4, *SHAPE, generator=generator(0)), torch.full((4,), 3.0), torch.arange(4)
    with torch.no_grad():
        general = trained(x, t, y, reserved=False)
        torch.testing.assert_close(trained(x, t, y), general)
        for second in trained.second:
            second.normal_(generator=generator(1))
        expected = trained(x, t, y)
        assert not torch.allclose(expected, general, atol=1e-3)
        torch.testing.assert_close(trained(x, t, y, reserved=False), general)
        before = {name: network.get_parameter(name).clone() for name in names}
        network.load_state_dict(merged(trained, trained.state_dict()))
        torch.testing.assert_close(network(x, t, y), expected)
    for name in names:
        change = (network.get_parameter(name) - before[name]).reshape(-1)
        out, into, *side = before[name].shape
        k = side[0] if side else 1
        rank = torch.linalg.matrix_rank(change.view(out * k, into * k), tol=1e-3)
        assert 1 <= rank <= k * max(1, min(out, into) // 10)


def test_cm_publishes_a_network_of_the_size_of_pooled_and_its_loss_moves_it(small, data):
    expected = pooled(small(), data).networks["shared"]
    published = {strength: cm(small(manipulation=strength), data).networks["shared"] for strength in (0.0, 1.0)}
    for network in published.values():
        assert {name: tensor.shape for name, tensor in network.items()} == {
            name: tensor.shape for name, tensor in expected.items()
        }
    assert not torch.allclose(published[0.0]["outer.weight"], published[1.0]["outer.weight"], atol=1e-5)
    with pytest.raises(UserError, match="random features are not trained"):
        cm(small(network="random-features"), data)
