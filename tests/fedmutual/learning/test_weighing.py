"""When a class weighs its peers, what it keeps of it, and whom it asks for."""

import pytest
import torch

from fedmutual.config import RunConfig
from fedmutual.diffusion import make_process
from fedmutual.learning.peers import Peers, freeze
from fedmutual.learning.player import Player, Weighed
from fedmutual.learning.stacking import LEVELS
from fedmutual.learning.weighing import (
    EVERY,
    SHARE,
    UPDATE,
    helpers,
    pack_weighed,
    pulling,
    rotated,
    schedule,
    unpack_weighed,
    weighed,
)
from fedmutual.networks import build
from fedmutual.seeds import generator

SHAPE = (6,)
SETTINGS = {"beta-rule": "auto", "width": 16, "depth": 2, "diffusion-steps": 25, "dtype": "float64"}


def config(**settings):
    return RunConfig.of(SETTINGS, {key.replace("_", "-"): value for key, value in settings.items()})


def held_out(count=20):
    return torch.randn(count, *SHAPE, dtype=torch.float64, generator=generator(0))


def kept(*rows, classes=(3, 5, 8), round_=4):
    return Weighed(round_, classes, torch.tensor(rows, dtype=torch.float64))


@pytest.mark.parametrize("steps", [1, 7, 50, 200, 5000])
@pytest.mark.parametrize(("held", "peers", "per_step"), [(20, 9, 0), (50, 9, 1), (20, 4, 1), (400, 99, 2), (3, 1, 0)])
def test_weighing_takes_no_more_than_its_share_of_the_steps(steps, held, peers, per_step):
    every, shown = schedule(config(local_steps=steps, batch=16, peers_per_step=per_step), held, peers)
    work = steps * 16 * (UPDATE + min(per_step or peers, peers))
    assert LEVELS * shown * (1 + peers) <= SHARE * every * work * (1 + 1e-9)
    assert 1 <= shown <= 2 * held
    assert every <= EVERY or shown <= 8, "so seldom only where not even eight samples are paid for sooner"


def test_presets_weigh_in_every_round_where_it_is_cheap_and_seldom_where_rounds_are_short():
    digits = config(local_steps=200, batch=32)
    assert schedule(digits, 20, 9) == schedule(digits.but(peers_per_step=1), 20, 9) == (1, 40)
    assert schedule(config(local_steps=50, batch=16, peers_per_step=1), 50, 9) == (4, 25), "fashion-14"
    assert schedule(config(local_steps=1, draws="fixed"), 50, 9) == (1, 100)


def test_samples_are_shown_in_turn():
    samples = torch.arange(10.0)
    assert rotated(samples, 20, 3).tolist() == rotated(samples, 10, 3).tolist() == samples.tolist()
    turns = [rotated(samples, 4, round_).tolist() for round_ in range(1, 6)]
    assert all(len(set(turn)) == 4 for turn in turns)
    assert sorted(value for turn in turns for value in turn) == sorted(2 * samples.tolist())


def test_weights_stand_until_it_is_time_and_only_then_networks_are_shown_anything():
    settings = config(local_steps=10, batch=60)  # 10 * 60 * 6 * .1 / 20: 18 samples a round, of 40
    assert schedule(settings, 20, 3) == (3, 40)
    shown = []

    class Counting(torch.nn.Module):
        def forward(self, x, t):
            shown.append(len(x))
            return 0.5 * x

    process = make_process(settings.diffusion, dtype=torch.float64)
    player = Player.start(build(settings, SHAPE, 0), settings.optimiser)
    peers, seen = Peers([Counting(), Counting(), Counting()], [1 / 3] * 3), []
    for round_ in range(1, 8):
        of = weighed(peers, [3, 5, 8], player, held_out(), settings, process, 0, round_)
        seen.append((player.weighed.round if player.weighed else 0, len(shown)))
        assert (player.weighed is None) == (of == Peers()) == (round_ < 3), "untrained networks gain by such peers"
    each = 3 * LEVELS
    assert seen == [(0, 0), (0, 0), (3, each), (3, each), (3, each), (6, 2 * each), (6, 2 * each)]
    assert set(shown) == {40}


def test_what_peers_had_that_are_not_there_is_the_own_networks():
    weights = kept([0.1, 0.2, 0.3, 0.4], [1.0, 0.0, 0.0, 0.0])
    assert torch.equal(weights.of([3, 5, 8]), weights.weights)
    torch.testing.assert_close(weights.of([8, 9, 3]), kept([0.4, 0.4, 0.0, 0.2], [1.0, 0.0, 0.0, 0.0]).weights)
    assert weights.of([1, 2])[:, 0].tolist() == [1.0, 1.0]


def test_the_pull_has_the_mixture_as_its_minimum_and_is_bounded():
    """(s - target)² + b (s - q . peers)² is smallest at s = (target + b q . peers) / (1 + b)."""
    weights = kept([0.4, 0.6, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0], [1.0, 0.0, 0.0, 0.0]).weights
    peers = Peers([None] * 3)
    q, strength = pulling(peers, weights, 3.0).by_noise
    assert q.tolist() == [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]
    torch.testing.assert_close(strength, torch.tensor([1.5, 3.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(q[0] * strength[0] / (1 + strength[0]), weights[0, 1:])
    assert pulling(peers, weights[2:], 3.0) == Peers()


def test_it_asks_for_those_that_weigh_most():
    player = Player(None, None, [])
    assert helpers(player, 2) == []
    player.weighed = kept([0.4, 0.3, 0.0, 0.3], [0.6, 0.4, 0.0, 0.0])
    assert helpers(player, 2) == [3, 8]
    assert helpers(player, 1) == [3]
    assert helpers(player, 3) == [3, 8], "nobody that did not help"


def test_weights_are_kept_with_the_player_as_they_are():
    one, other = (Player(None, None, []) for _ in range(2))
    one.weighed = kept([0.1, 0.2, 0.3, 0.4])
    unpack_weighed(other, pack_weighed(one))
    assert (other.weighed.round, other.weighed.classes) == (4, (3, 5, 8))
    assert torch.equal(other.weighed.weights, one.weighed.weights)
    unpack_weighed(other, pack_weighed(Player(None, None, [])))
    assert other.weighed is None


def test_frozen_peers_are_weighed_again_by_other_samples_of_the_same_class():
    """Two weighings of the same networks see other samples and other noise."""
    settings = config(local_steps=10, batch=16)  # 4.8 samples a round: 19 of 20 each fourth
    assert schedule(settings, 20, 3) == (4, 19)
    process = make_process(settings.diffusion, dtype=torch.float64)
    player = Player.start(build(settings, SHAPE, 0), settings.optimiser)
    peers = Peers([freeze(build(settings, SHAPE, y), "none") for y in (1, 2, 3)], [1 / 3] * 3)
    weights = []
    for round_ in (4, 8):
        weighed(peers, [1, 2, 3], player, held_out(), settings, process, 0, round_)
        weights.append(player.weighed.weights)
    assert not torch.equal(*weights)
    assert all(torch.isclose(one.sum(1), torch.ones(LEVELS, dtype=torch.float64)).all() for one in weights)
