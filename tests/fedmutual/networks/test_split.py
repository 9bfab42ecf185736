"""A network in two parts: which rows go where, what of it is sent, and how its parts are trained apart."""

import copy

import pytest
import torch

from fedmutual.config import RunConfig
from fedmutual.diffusion import make_process
from fedmutual.errors import UserError
from fedmutual.learning.igd import Diverged, local_steps
from fedmutual.learning.peers import Peers, freeze
from fedmutual.learning.player import Player
from fedmutual.networks import build
from fedmutual.networks.split import PRIVATE, border, lacks_private, sent, sent_part

SHAPE = (1, 4, 4)


def config(**settings):
    base = {"publish": "noise-split", "width": 16, "published-width": 8, "depth": 2, "batch": 8, "local-steps": 6}
    more = {"diffusion-steps": 25, "rounds": 3}
    return RunConfig.of(base, more, {key.replace("_", "-"): value for key, value in settings.items()})


@pytest.fixture
def data():
    return torch.rand(10, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def trained(settings, data, change=lambda network: None, peers=None):
    """A class's network after a round, from a start that `change` may have altered."""
    network = build(settings, SHAPE, 0)
    change(network)
    player = Player.start(network, settings.optimiser)
    return player, local_steps(player, data, peers or Peers(), settings, make_process(settings.diffusion), 0, 1)


def same(network, other, part):
    """Whether all parameters of that part are equal bit for bit."""
    return all(torch.equal(t, other[name]) for name, t in network.items() if name.startswith(part))


def larger(network):
    """Other private parameters, of gradients far above the clip."""
    with torch.no_grad():
        for parameter in network.private.parameters():
            parameter.mul_(30)


@pytest.mark.parametrize(("process", "split", "expected"), [("ddpm", 0.5, 12.5), ("ou", 0.25, 0.5)])
def test_each_row_is_the_output_of_the_part_that_knows_its_time(process, split, expected):
    settings = config(process=process, split=split)
    network, x = build(settings, SHAPE, 0), torch.randn(5, *SHAPE)
    t = torch.tensor([0.0, 0.9, 1.0, 1.1, 2.0]) * expected  # the middle one lies on the border
    assert border(settings) == expected
    output = network(x, t)
    torch.testing.assert_close(output[2:], network.published(x[2:], t[2:]))
    torch.testing.assert_close(output[:2], network.private(x[:2], t[:2]))
    torch.testing.assert_close(sent_part(network)(x, t), torch.cat([torch.zeros(2, *SHAPE), output[2:]]))


def test_what_is_sent_is_a_network_of_its_own_that_lacks_the_private_part():
    network = build(config(), SHAPE, 0)
    state = network.state_dict()
    assert sent(state).keys() == sent_part(network).state_dict().keys() == {n for n in state if "private" not in n}
    assert lacks_private(sent(state))
    assert not lacks_private(state)
    assert network.published.inner.out_features == 8
    assert network.private.inner.out_features == 16


def test_a_network_that_is_published_whole_is_sent_whole():
    network = build(RunConfig(), (1, 8, 8), 0)
    assert sent_part(network) is network
    assert sent(network.state_dict()).keys() == network.state_dict().keys()
    assert border(RunConfig()) == 0


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_private_part_moves_the_published_one_by_nothing(data, optimizer):
    """Not by its gradient, and not by a clip that they would share; nor do the numbers of the reply tell of it."""
    settings = config(optimizer=optimizer, learning_rate=0.01, weight_decay=0.1, clip=0.01)
    (one, stated), (other, stated_by_other) = trained(settings, data), trained(settings, data, larger)
    assert same(one.published(), other.published(), "published.")
    assert not same(one.published(), other.published(), PRIVATE)
    assert stated == stated_by_other


def test_peers_pull_the_published_part_alone(data):
    settings = config(beta=100.0, beta_rule="constant")
    peers = Peers([freeze(sent_part(build(settings, SHAPE, y)), "none") for y in (1, 2)], [0.5, 0.5])
    (alone, _), (pulled, steps) = trained(settings, data), trained(settings, data, peers=peers)
    assert steps.mutual > 0
    assert same(alone.published(), pulled.published(), PRIVATE)
    assert not same(alone.published(), pulled.published(), "published.")


def test_where_all_times_are_published_it_is_the_network_that_is_published_whole(data):
    """The times of the Ornstein-Uhlenbeck process begin above 0, so that none is left for the private part."""
    settings = config(process="ou", split=1e-6, published_width=0)
    whole = settings.but(publish="network")
    peers = {y: build(whole, SHAPE, y) for y in (1, 2)}
    as_sent = {y: sent_part(build(settings, SHAPE, y)) for y in peers}
    weights = [0.5, 0.5]
    expected, numbers = trained(whole, data, peers=Peers([freeze(p, "none") for p in peers.values()], weights))
    split, same_numbers = trained(settings, data, peers=Peers([freeze(p, "none") for p in as_sent.values()], weights))
    before = build(settings, SHAPE, 0).state_dict()
    assert same({f"published.{name}": t for name, t in expected.published().items()}, split.published(), "published.")
    assert same(before, split.published(), PRIVATE)
    assert numbers == same_numbers


def test_a_private_part_that_diverges_stops_the_client(data):
    def infinite(network):
        with torch.no_grad():
            network.private.outer.bias.fill_(float("inf"))

    with pytest.raises(Diverged, match="no longer finite"):
        trained(config(), data, infinite)


def test_a_split_above_the_last_time_is_refused():
    assert config(split=0.96).publishing.split == 0.96
    with pytest.raises(UserError, match=r"split = 0\.97 is above the last training time, 0\.96: lower it"):
        config(split=0.97)


def test_a_copy_of_what_is_sent_moves_nothing_of_its_owner():
    network = build(config(), SHAPE, 0)
    copied = copy.deepcopy(sent_part(network))
    with torch.no_grad():
        copied.published.outer.bias.fill_(7.0)
    assert not network.published.outer.bias.eq(7.0).any()
