"""Flower's own FedAvg and FedProx over the same data, with a run folder."""

from pathlib import Path

import pytest
import torch
from flwr.app import Error, Message

from client.averaging import app as client
from fedmutual.diffusion import make_process
from fedmutual.learning.averaged import add_proximal_term
from fedmutual.learning.igd import local_steps
from fedmutual.learning.peers import Peers
from fedmutual.learning.player import Player
from fedmutual.networks import OfClass, build_conditional
from fedmutual.run_folder import read_history
from fedmutual.saved_networks import SHARED
from server.averages import prepare_fedavg, prepare_fedprox
from server.averaging import ITERATE, serve
from server.roster import RunFailed
from simulations.runs.networks import class_networks, read_networks
from tests.support.data import load_class
from tests.support.federation import LocalGrid, Stopped, assert_same, stopping_in

SHAPE = (1, 8, 8)


def average(config, prepare=prepare_fedavg, **options):
    """The strategy after a run of `config` over all ten digits."""
    strategy = prepare(config)
    serve(LocalGrid(range(10), client=client, **options), strategy)
    return strategy


def iterate(strategy):
    return strategy.model.entries[ITERATE].network


def test_one_round_is_the_mean_of_the_clients_weighted_by_their_samples(small):
    config = small(rounds=1, averaging_weights="samples")
    sums, total = {}, 0
    for y in range(10):
        data, network = load_class(config, y).train, build_conditional(config, SHAPE, 10)
        player, process = Player.start(OfClass(network, y), config.optimiser), make_process(config.diffusion)
        local_steps(player, data, Peers(), config, process, y, 1)
        for name, parameter in network.named_parameters():
            sums[name] = sums.get(name, 0) + len(data) * parameter.detach()
        total += len(data)
    expected = {name: tensor / total for name, tensor in sums.items()}
    assert_same({0: iterate(average(config))}, {0: expected}, rtol=1e-5, atol=1e-7)


def test_samples_come_from_the_average_over_rounds(small):
    config = small(rounds=1, ema=0.5, local_steps=3)
    strategy = average(config)
    start = dict(build_conditional(config, SHAPE, 10).named_parameters())
    decay = min(0.5, 3 / 12) ** 3
    for name, mean in iterate(strategy).items():
        expected = decay * start[name].detach() + (1 - decay) * mean
        torch.testing.assert_close(strategy.model.entries[SHARED].network[name], expected)


def test_history_and_checkpoint_are_those_of_any_run(small):
    config = small()
    strategy = average(config)
    folder = Path(config.federation.out)
    history = read_history(folder)
    assert [(line["round"], line["class"]) for line in history] == [(r, y) for r in (1, 2) for y in range(10)]
    parameters = sum(parameter.numel() for parameter in strategy.network.parameters())
    assert {line["bytes_up"] for line in history} == {line["bytes_down"] for line in history}
    assert history[0]["bytes_up"] == pytest.approx(4 * parameters, rel=0.2)  # float32, and a header an array
    assert all(line["loss"] > 0 and line["held_out"] > 0 for line in history)
    round_, of_class = class_networks(folder, "last", torch.device("cpu"))
    assert (round_, set(of_class)) == (2, set(range(10)))
    x, t = torch.randn(3, *SHAPE), torch.full((3,), 5.0)
    assert not torch.equal(of_class[0](x, t), of_class[1](x, t))
    assert_same(dict(read_networks(folder)[1]), dict.fromkeys(range(10), strategy.model.entries[SHARED].network))


def test_fedprox_adds_the_gradient_of_its_term():
    network = torch.nn.Linear(3, 2)
    start = [parameter.detach().clone() for parameter in network.parameters()]
    add_proximal_term(network.parameters(), 0.7)
    x = torch.randn(4, 3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    loss = network(x).square().mean()
    proximal = sum((p - s).square().sum() for p, s in zip(network.parameters(), start, strict=True))
    expected = torch.autograd.grad(loss + 0.35 * proximal, list(network.parameters()))
    network(x).square().mean().backward()
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_fedprox_keeps_clients_near_the_server_and_is_fedavg_at_next_to_nothing(small, tmp_path):
    def moved(prepare, **settings):
        config = small(rounds=1, out=str(tmp_path / str(len(list(tmp_path.iterdir())))), **settings)
        strategy = average(config, prepare)
        start = dict(build_conditional(config, SHAPE, 10).named_parameters())
        return sum(float((mean - start[name].detach()).norm()) for name, mean in iterate(strategy).items())

    plain = {"optimizer": "sgd", "learning_rate": 0.1, "clip": 0.0, "local_steps": 30}
    free = moved(prepare_fedavg, **plain)
    assert moved(prepare_fedprox, proximal_mu=1e-9, **plain) == pytest.approx(free, rel=1e-4)
    assert moved(prepare_fedprox, proximal_mu=5.0, **plain) < 0.8 * free


@pytest.mark.parametrize("checkpoint_every", [1, 3])
def test_stopping_and_resuming_equals_running_through_in_any_order_of_clients(small, tmp_path, checkpoint_every):
    settings = {"rounds": 6, "checkpoint_every": checkpoint_every}
    expected = average(small(**settings, out=str(tmp_path / "through")))

    config = small(**settings)
    with pytest.raises(Stopped):
        average(config, fault=stopping_in(5))
    resumed = average(config.but(resume=True), seed=1)
    for name in (SHARED, ITERATE):
        assert_same({0: resumed.model.entries[name].network}, {0: expected.model.entries[name].network})
    lines = [(line["round"], line["class"]) for line in read_history(Path(config.federation.out))]
    assert lines == [(round_, y) for round_ in range(1, 7) for y in range(10)]


def of_class_3(reply: Message) -> bool:
    """Whether it answers an order to train."""
    return "numbers" in reply.content and reply.content["numbers"]["class"] == 3


def test_a_client_that_fails_or_is_missing_ends_the_arm_with_the_reason(small, tmp_path):
    def fails(order: Message, reply: Message) -> Message:
        if of_class_3(reply):
            return Message(Error(code=2, reason="<class 'X'>:<'disk full'>"), reply_to=order)
        return reply

    with pytest.raises(RunFailed, match="round 1: a client failed: disk full"):
        average(small(), fault=fails)
    lost = small(out=str(tmp_path / "lost"))
    with pytest.raises(RunFailed, match="round 1: 9 of 10 clients replied in time"):
        average(lost, fault=lambda order, reply: None if of_class_3(reply) else reply)
