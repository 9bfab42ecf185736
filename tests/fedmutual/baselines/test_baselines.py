"""Each method to compare with does what its name says."""

import pytest
import torch

from fedmutual.baselines import isolated, memory, ridge
from fedmutual.baselines.cbdm import cbdm, cbdm_loss
from fedmutual.baselines.central_igd import central_igd
from fedmutual.baselines.copy_head import copy_head
from fedmutual.baselines.isolated import train_alone
from fedmutual.baselines.pooled import pooled
from fedmutual.baselines.reweighted import reweighted
from fedmutual.baselines.shared_igd import peer_mean, shared_igd
from fedmutual.data import ClassData
from fedmutual.device import dtype_of
from fedmutual.diffusion import make_process
from fedmutual.diffusion.sampling import sample
from fedmutual.errors import UserError
from fedmutual.learning.conditional import Pool, by_class, by_sample, in_turn
from fedmutual.networks import OfClass, build, build_conditional
from fedmutual.records import norm
from fedmutual.seeds import generator
from tests.support.data import load_class
from tests.support.federation import assert_same, federate, networks

SHAPE = (1, 8, 8)


@pytest.fixture
def data(small):
    return [load_class(small(), y) for y in range(10)]


def size(network):
    return sum(parameter.numel() for parameter in network.parameters())


# Networks for all classes


@pytest.mark.parametrize(
    "settings",
    [{"network": "mlp"}, {"network": "unet", "multipliers": "1,2", "depth": 1}, {"network": "random-features"}],
    ids=lambda settings: settings["network"],
)
def test_a_conditional_network_tells_labels_apart_and_is_a_class_network_at_one(small, settings):
    config = small(**settings)
    network = build_conditional(config, SHAPE, 3)
    with torch.no_grad():
        for parameter in network.parameters():  # some start at zero
            parameter.normal_(generator=generator(0, "test"))
    x, t = torch.randn(4, *SHAPE), torch.tensor([0.0, 5.0, 10.0, 24.0])
    with torch.no_grad():
        outputs = [network(x, t, torch.full((4,), y)) for y in range(3)]
        assert all((outputs[y] - outputs[z]).abs().max() > 1e-3 for y, z in ((0, 1), (0, 2), (1, 2)))
        mixed = network(x, t, torch.tensor([2, 0, 1, 2]))
        rows = torch.stack([outputs[y][i] for i, y in enumerate((2, 0, 1, 2))])
        torch.testing.assert_close(mixed, rows, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(OfClass(network, 1)(x, t), outputs[1])


def test_a_conditional_network_is_a_class_network_and_a_vector_a_label(small):
    config = small()
    assert size(build_conditional(config, SHAPE, 10)) == size(build(config, SHAPE, 0)) + 10 * config.network.width


# What a step draws


def test_reweighted_draws_classes_evenly_and_pooled_draws_samples_evenly():
    pool = Pool.of([torch.zeros(90, 1), torch.ones(9, 1), torch.full((1, 1), 2.0)])
    even = pool.labels[by_class(pool, 0, 100, 300, generator(0))]
    assert (torch.bincount(even) / 30_000 - 1 / 3).abs().max() < 0.02
    natural = pool.labels[by_sample(pool, 0, 100, 300, generator(0))]
    torch.testing.assert_close(torch.bincount(natural) / 30_000, torch.tensor([0.9, 0.09, 0.01]), atol=0.01, rtol=0)


def test_rows_of_a_class_are_its_own_and_all_of_them():
    pool = Pool.of([torch.zeros(5, 1), torch.ones(3, 1)])
    assert pool.labels.tolist() == [0] * 5 + [1] * 3
    rows = pool.rows_of(torch.ones(1000, dtype=torch.long), generator(0))
    assert torch.bincount(rows, minlength=8)[5:].min() > 250
    assert set(rows.tolist()) == {5, 6, 7}


def test_classes_take_turns():
    pool = Pool.of([torch.zeros(5, 1), torch.ones(3, 1), torch.ones(2, 1)])
    labels = pool.labels[in_turn(pool, 4, 5, 2, generator(0))]
    assert labels.tolist() == [1, 1, 2, 2, 0, 0, 1, 1, 2, 2]


def test_pooled_takes_the_steps_of_all_classes_together(small, data, monkeypatch):
    from fedmutual.baselines import pooled as module

    config, taken = small(evaluate_every=0), []
    steps = module.conditional_steps

    def counted(player, *rest):
        steps(player, *rest)
        taken.append(player.step)

    monkeypatch.setattr(module, "conditional_steps", counted)
    rounds = []
    trained = pooled(config, data, lambda round_, rows: rounds.append((round_, len(rows))))
    assert taken == [30, 60]  # 2 rounds of 3 steps for each of 10 classes
    assert rounds == [(1, 10), (2, 10)]
    assert trained.gradient_steps == 6
    assert set(trained.networks) == {"shared"}


def test_methods_on_the_pool_differ_and_repeat(small, data):
    config = small()
    results = {}
    for method in (pooled, reweighted, cbdm, shared_igd):
        torch.manual_seed(len(results))  # what ran before, and its draws, must not matter
        first, again = (method(config, data).networks["shared"] for _ in range(2))
        assert_same({0: first}, {0: again})
        results[method.__name__] = first["outer.weight"]
    assert len({float(weight.sum()) for weight in results.values()}) == 4


# Losses


def test_loss_of_cbdm_is_that_worked_out_by_hand():
    """d = 2. Example 1: ||(1,2) - 0||² / 2 = 2.5, and between the labels ||(1,2) - (0,2)||² / 2 = 0.5."""
    output = torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    other = torch.tensor([[0.0, 2.0], [4.0, 2.0]], requires_grad=True)
    target, ones = torch.tensor([[0.0, 0.0], [0.0, 2.0]]), torch.ones(2)
    weight = torch.tensor([0.8, 0.1])  # tau t / T
    own, regulariser = cbdm_loss(output, other, target, ones, weight)
    torch.testing.assert_close(own, torch.tensor([2.5, 2.0]))
    torch.testing.assert_close(regulariser, torch.tensor([0.8 * 1.25 * 0.5, 0.1 * 1.25 * 10.0]))
    (own.sum() + regulariser.sum()).backward()
    # d/d output: (output - target), and weight (output - other) without the commitment; d/d other: its quarter.
    torch.testing.assert_close(output.grad, torch.tensor([[1.8, 2.0], [-0.4, -2.2]]))
    torch.testing.assert_close(other.grad, torch.tensor([[-0.2, 0.0], [0.1, 0.05]]))


def test_cbdm_without_its_regulariser_descends_the_loss_of_pooled(small, data, monkeypatch):
    """At tau = 0 only the draws of the other labels are left; taken from elsewhere, the networks are equal."""
    config = small(tau=0.0, dtype="float64")
    doubled = [ClassData(part.train.double(), part.held_out.double()) for part in data]
    multinomial, aside = torch.multinomial, generator(1)
    monkeypatch.setattr(torch, "multinomial", lambda *a, generator, **k: multinomial(*a, generator=aside, **k))
    expected = pooled(config, doubled).networks["shared"]
    assert_same({0: cbdm(config, doubled).networks["shared"]}, {0: expected}, rtol=1e-9, atol=1e-12)


def test_peers_in_one_network_are_its_other_labels(small):
    network = build_conditional(small(), SHAPE, 4)
    x, t, labels = torch.randn(5, *SHAPE), torch.rand(5) * 24, torch.tensor([0, 1, 2, 3, 1])
    for i, y in enumerate(labels.tolist()):
        others = torch.tensor([z for z in range(4) if z != y])
        expected = network(x[[i] * 3], t[[i] * 3], others).mean(0)
        torch.testing.assert_close(peer_mean(network, x, t, labels, 4)[i], expected.detach(), rtol=1e-4, atol=1e-6)


def test_shared_igd_without_beta_is_turns_alone_and_beta_pulls_the_labels_together(small, data):
    def spread(beta):
        config = small(beta=beta, beta_rule="constant", local_steps=60)
        network = build_conditional(config, SHAPE, 10)
        network.load_state_dict(shared_igd(config, data).networks["shared"])
        x, t = torch.randn(64, *SHAPE, generator=generator(0)), torch.full((64,), 20.0)
        with torch.no_grad():
            outputs = torch.stack([network(x, t, torch.full((64,), y)) for y in range(10)])
        return float(outputs.var(0).mean())

    assert spread(10.0) < 0.7 * spread(0.0)


# A network a class


def test_training_alone_is_the_federated_run_without_beta(small, data):
    config = small(beta=0.0)
    alone = {y: train_alone(config, data[y], y)[0].published() for y in range(10)}
    assert_same(networks(federate(config)), alone)


def test_central_igd_reports_by_rounds_and_exchanges_at_every_step(small, data):
    config, rounds = small(), []
    trained = central_igd(config, data, lambda round_, rows: rounds.append((round_, [row["class"] for row in rows])))
    assert rounds == [(1, list(range(10))), (2, list(range(10)))]
    assert trained.gradient_steps == 6
    each_step = central_igd(config.but(rounds=6, local_steps=1), data)
    assert_same(trained.networks, each_step.networks)


def test_copy_head_gives_every_class_the_largest_ones_network(small, data):
    config = small()
    reverse = data[::-1]  # so that the head is not class 0
    trained = copy_head(config, reverse)
    head, _ = train_alone(config, reverse[9], 9)
    assert trained.facts["copied_class"] == 9
    assert_same(trained.networks, dict.fromkeys(range(10), head.published()))


def test_ridge_keeps_what_held_out_samples_like_best(small, data, monkeypatch):
    monkeypatch.setattr(ridge, "GRID", (0.0, 1.0, 50.0))
    config = small(local_steps=40, learning_rate=1e-2)
    trained = ridge.ridge(config, data[:3])
    for y, (losses, chosen) in enumerate(
        zip(trained.facts["held_out_losses"], trained.facts["weight_decay_chosen"], strict=True)
    ):
        players = [train_alone(config.but(weight_decay=decay), data[y], y)[0] for decay in ridge.GRID]
        assert losses == [isolated.held_out(config, player, data[y], y) for player in players]
        best = losses.index(min(losses))
        assert chosen == ridge.GRID[best]
        assert_same({y: trained.networks[y]}, {y: players[best].published()})
    assert losses[2] > min(losses[:2])  # a decay that forgets everything is seen to be bad


def test_ridge_needs_held_out_samples(small, data):
    without = [ClassData(part.train, part.held_out[:0]) for part in data]
    with pytest.raises(UserError, match="set held-out above 0"):
        ridge.ridge(small(), without)


def test_weight_decay_shrinks_and_none_is_plain_adam(small, data):
    norms = []
    for decay in (0.0, 1.0, 10.0):
        player, _ = train_alone(small(weight_decay=decay, local_steps=100, learning_rate=1e-2), data[0], 0)
        norms.append(norm(player.network.state_dict()))
    assert norms[0] > norms[1] > norms[2]


OUTPUTS = [{"parametrisation": name} for name in ("noise", "score", "velocity")]


@pytest.mark.parametrize("settings", [*OUTPUTS, {"process": "ou"}], ids=str)
def test_memory_gives_back_its_training_samples(small, data, settings):
    config = small(**settings)
    known = memory.memory(config, data).networks[9]["samples"]
    process = make_process(config.diffusion)
    network = memory.Memory(known, process, config.diffusion.parametrisation)
    options = {"parametrisation": config.diffusion.parametrisation, "sampler": "ddpm", "clip": True}
    drawn = sample(network, process, SHAPE, 40, generator(0), **options)
    distances = torch.cdist(drawn.flatten(1), known.flatten(1))
    spacing = torch.cdist(known.flatten(1), known.flatten(1)).fill_diagonal_(float("inf")).min()
    assert distances.min(1).values.max() < spacing / 5  # where the process stops early, its noise stays
    assert len(distances.argmin(1).unique()) > 1


def test_memory_minimises_the_denoising_loss(small):
    """Two samples on a line: x_0 is their mean weighted by Gaussian likelihoods, and the noise follows from it."""
    config = small(dtype="float64")
    process = make_process(config.diffusion, dtype=dtype_of(config.compute))
    network = memory.Memory(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), process, "noise")
    x, j = torch.tensor([[0.3]], dtype=torch.float64), 12
    alpha, sigma = process.alpha[j], process.sigma[j]
    likelihood = [torch.exp(-((0.3 - alpha * known) ** 2) / (2 * sigma**2)) for known in (-1, 1)]
    x0 = (likelihood[1] - likelihood[0]) / (likelihood[0] + likelihood[1])
    torch.testing.assert_close(network(x, process.times[[j]]), ((0.3 - alpha * x0) / sigma).reshape(1, 1))
