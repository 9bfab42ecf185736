"""Stacking: weights by held-out samples that are exact, cautious and finite, and a mutual term that follows them."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from fedmutual.config import RunConfig
from fedmutual.data import ClassData
from fedmutual.diffusion import make_process
from fedmutual.diffusion.process import expand
from fedmutual.learning.batches import level_of, make_batch
from fedmutual.learning.igd import local_steps
from fedmutual.learning.peers import ByNoise, Peers, freeze
from fedmutual.learning.player import Player
from fedmutual.learning.stacking import (
    LEVELS,
    Stacked,
    error_products,
    on_simplex,
    products,
    stack,
    weigh,
)
from fedmutual.learning.weighing import weighed
from fedmutual.networks import build
from fedmutual.seeds import generator
from tests.support.data import load_class
from tests.support.federation import SMALL, assert_same, federate, networks

SHAPE = (6,)
CONFIG = RunConfig.of({"beta-rule": "auto", "dtype": "float64", "local-steps": 200})
PROCESS = make_process(CONFIG.diffusion, dtype=torch.float64)


class Gaussian(nn.Module):
    """The exact noise of x_t where x_0 ~ N(mean, variance I): sigma (x - alpha mean) / (alpha² variance + sigma²)."""

    def __init__(self, mean: "float | torch.Tensor", variance: float):
        super().__init__()
        self.mean, self.variance = mean, variance

    def forward(self, x, t):
        alpha, sigma = (expand(table[t.long()], x) for table in (PROCESS.alpha, PROCESS.sigma))
        return sigma * (x - alpha * self.mean) / (alpha**2 * self.variance + sigma**2)


class Wrong(nn.Module):
    """A network that answers with noise of its own, whatever it is shown."""

    def __init__(self, seed: int):
        super().__init__()
        self.rng = generator(seed)

    def forward(self, x, t):
        return torch.randn(x.shape, dtype=x.dtype, generator=self.rng)


EXACT, FITTED, FAR = Gaussian(0.3, 0.2), Gaussian(0.6, 0.4), Gaussian(1.5, 1.0)


def held_out(count, seed=0):
    return 0.3 + 0.2**0.5 * torch.randn(count, *SHAPE, dtype=torch.float64, generator=generator(seed))


def weights_of(own, peers, count=20, seed=0):
    return stack(own, peers, held_out(count, seed), CONFIG, PROCESS, y=0, round_=seed)


def test_the_simplex_problem_is_solved_exactly():
    """By its conditions: no weight can be moved to another network at a gain."""
    for seed in range(20):
        errors = torch.randn(7, 5, dtype=torch.float64, generator=generator(seed)) + 0.3
        gram = errors @ errors.mT * 10.0 ** (seed - 10)
        w = on_simplex(gram)
        slope, error = gram @ w, w @ gram @ w
        assert float(w.sum()) == pytest.approx(1, abs=1e-12)
        assert (w >= 0).all()
        scale = float(gram.diagonal().mean())
        assert (slope - error >= -1e-9 * scale).all()
        assert (slope - error)[w > 0].abs().max() <= 1e-9 * scale
    assert on_simplex(torch.zeros(3, 3, dtype=torch.float64)).isfinite().all()


def test_products_are_those_of_the_errors_of_each_sample():
    errors = torch.randn(3, 4, 2, 5, dtype=torch.float64, generator=generator(0))
    table = products(errors)
    assert table.shape == (4, 3, 3)
    assert float(table[1, 0, 2]) == pytest.approx(float((errors[0, 1] * errors[2, 1]).mean()))
    assert error_products([EXACT, FITTED], held_out(5), CONFIG, PROCESS, generator(1)).shape == (LEVELS, 5, 2, 2)


def test_exact_peers_take_nearly_all():
    """The peers know the true score; the class's own network is that of another law."""
    assert (weights_of(FITTED, [EXACT, Wrong(1), Wrong(2)])[1:, 1] > 0.95).all()
    for seed in range(5):
        assert (weights_of(FAR, [EXACT, Wrong(1), Wrong(2)], seed=seed)[:, 1] > 0.8).all()
        peers = weighed(Peers([EXACT] * 3), [1, 2, 3], player_of(FAR), held_out(20, seed), CONFIG, PROCESS, 0, 1)
        assert (peers.by_noise.strength == CONFIG.mutual.beta).all(), "bounded by beta"
        torch.testing.assert_close(peers.by_noise.q.sum(1), torch.ones(LEVELS, dtype=torch.float64))


def test_random_peers_are_left_alone():
    """A hundred decisions at one standard error: hardly one takes more than a few hundredths, and the mean nothing."""
    kept = []
    untrained = [freeze(build(CONFIG, SHAPE, y), "none") for y in range(1, 6)]
    for seed in range(10):
        for peers in (untrained, [Wrong(seed + k) for k in range(5)]):
            own = weights_of(EXACT, peers, seed=seed)[:, 0]
            assert (own > 0.9).all()
            kept.append(own)
    assert float(torch.stack(kept).mean()) > 0.997


def test_the_peer_of_the_same_class_is_found_among_nine_others():
    centres = torch.randn(9, *SHAPE, dtype=torch.float64, generator=generator(6))
    others = [Gaussian(centre, 0.2) for centre in centres]
    peers = [*others[:4], EXACT, *others[4:]]
    weights = torch.stack([weights_of(FAR, peers, seed=seed) for seed in range(5)]).mean(0)
    assert (weights[:, 1:].argmax(1) == 4).all()
    assert (weights[:, 5] > 0.6).all()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_class_with_hardly_a_sample_gets_a_finite_answer(count):
    weights = weights_of(FITTED, [EXACT, Wrong(0)], count)
    assert weights.isfinite().all()
    torch.testing.assert_close(weights.sum(1), torch.ones(LEVELS, dtype=torch.float64))
    if count == 1:
        assert (weights[:, 0] == 1).all(), "one sample cannot be held out from itself"


def test_caution_takes_away_what_is_not_certain():
    """Six samples: bold takes shares everywhere, and nobody is certain enough for eight standard errors."""
    table = error_products([FITTED, EXACT, Gaussian(0.0, 0.3)], held_out(6), CONFIG, PROCESS, generator(3))
    bold, timid = (torch.stack([weigh(one, caution)[0] for one in table]) for caution in (0.0, 8.0))
    assert (bold < 0.6).all()
    assert (timid == 1).all()


def player_of(network):
    class Fixed(Player):
        def published(self):
            return self.network.state_dict()

    return Fixed(network, None, [])


def test_nobody_to_learn_from_is_isolated():
    for peers, count in ((Peers(), 20), (Peers([EXACT]), 1), (Peers([EXACT]), 0)):
        assert weighed(peers, [1], player_of(FITTED), held_out(count), CONFIG, PROCESS, 0, 1) == Peers()
    assert weighed(Peers([Wrong(1)]), [1], player_of(EXACT), held_out(20), CONFIG, PROCESS, 0, 1).by_noise is None


def config(**settings):
    base = {"width": 16, "depth": 2, "batch": 8, "diffusion-steps": 25, "local-steps": 6, "dtype": "float64"}
    return RunConfig.of(base, {key.replace("_", "-"): value for key, value in settings.items()})


def peers_of(settings, count=3):
    return Peers([freeze(build(settings, SHAPE, y), "none") for y in range(1, 1 + count)], [1 / count] * count)


def trained(settings, peers):
    player = Player.start(build(settings, SHAPE, 0), settings.optimiser)
    steps = local_steps(
        player, held_out(10), peers, settings, make_process(settings.diffusion, dtype=torch.float64), 0, 1
    )
    return {0: player.published()}, steps


@pytest.mark.parametrize("draws", ["fresh", "fixed"])
def test_one_strength_and_equal_weights_are_the_constant_rule(draws):
    auto = config(beta_rule="auto", draws=draws)
    constant = config(beta_rule="constant", beta=0.7, omega_weight="one", draws=draws)
    peers = peers_of(auto)
    by_noise = ByNoise(torch.full((5, 3), 1 / 3, dtype=torch.float64), torch.full((5,), 0.7, dtype=torch.float64))
    ours, _ = trained(auto, replace(peers, by_noise=by_noise))
    theirs, _ = trained(constant, peers)
    assert_same(ours, theirs, rtol=1e-10, atol=1e-12)


def test_each_level_of_noise_meets_its_own_mixture_and_strength():
    settings = config()
    process = make_process(settings.diffusion, dtype=torch.float64)
    peers = peers_of(settings)
    q = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0.5, 0.5, 0], [0, 0.2, 0.8], [0, 0, 1]], dtype=torch.float64)
    strength = torch.tensor([0.3, 0.0, 2.0, 1.0, 3.0], dtype=torch.float64)
    index, noise = torch.arange(25), torch.randn(25, *SHAPE, dtype=torch.float64, generator=generator(1))
    arguments = (held_out(25), index, noise)
    rest = (process, settings.diffusion, "t", "none")
    batch = make_batch(*arguments, replace(peers, by_noise=ByNoise(q, strength)), *rest)
    levels = level_of(index, 25, 5)
    assert levels.bincount().tolist() == [5] * 5
    each = torch.stack([network(batch.x, batch.t) for network in peers.networks], 1)
    torch.testing.assert_close(batch.peer_mean, (q[levels][..., None] * each).sum(1))
    torch.testing.assert_close(batch.mutual, strength[levels])


def test_drawn_peers_have_the_same_mean_as_all():
    settings = config()
    q = torch.tensor([[0.6, 0.3, 0.1], [0, 0, 0]], dtype=torch.float64)
    peers = replace(peers_of(settings), by_noise=ByNoise(q, torch.tensor([1.0, 0.0])))
    shares = peers.drawn(1, 4000, generator(2))
    assert shares.shape == (4000, 2, 3)
    assert ((shares > 0).sum(-1) == torch.tensor([1, 0])).all(), "one peer where there is a pull, none elsewhere"
    torch.testing.assert_close(shares.mean(0), q, atol=0.03, rtol=0)
    assert_same(trained(settings.but(beta_rule="auto"), peers)[0], trained(settings.but(beta_rule="auto"), peers)[0])


def test_a_stacked_network_is_the_mixture_at_each_level():
    weights = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.25, 0.75], [0.0, 1.0], [0.1, 0.9]], dtype=torch.float64)
    x, index = torch.randn(100, *SHAPE, dtype=torch.float64, generator=generator(4)), torch.arange(100)
    mixed = Stacked([FITTED, EXACT], weights, PROCESS)(x, PROCESS.times[index])
    own, peer = (network(x, PROCESS.times[index]) for network in (FITTED, EXACT))
    share = weights[index // 20, 1:]
    torch.testing.assert_close(mixed, (1 - share) * own + share * peer)


def test_pulled_by_exact_peers_a_network_denoises_better_than_alone():
    """Ten samples in six dimensions, and a peer that has the true score."""
    settings = config(beta_rule="auto", local_steps=300, learning_rate=3e-3, diffusion_steps=100, ema=0.9, beta=9.0)
    player = Player.start(build(settings, SHAPE, 0), settings.optimiser)
    for round_ in (1, 2):
        peers = weighed(Peers([EXACT, Wrong(1)]), [1, 2], player, held_out(20, 1), settings, PROCESS, 0, round_)
        local_steps(player, held_out(10), peers, settings, PROCESS, 0, 1)
    alone = Player.start(build(settings, SHAPE, 0), settings.optimiser)
    for _ in range(2):
        local_steps(alone, held_out(10), Peers(), settings, PROCESS, 0, 1)
    errors = []
    for trained_player in (player, alone):
        network = copy.deepcopy(trained_player.network)
        network.load_state_dict(trained_player.published())
        table = error_products([network], held_out(500, 2), settings, PROCESS, generator(5))
        errors.append(float(table.mean()))
    assert errors[0] < 0.95 * errors[1]


def test_beta_0_is_isolated_whatever_the_rule(small, tmp_path):
    elsewhere = {"out": str(tmp_path / "b"), "store": str(tmp_path / "c")}
    alone = networks(federate(small(beta=0.0)))
    assert_same(alone, networks(federate(small(beta=0.0, beta_rule="auto", **elsewhere))))


def test_real_networks_use_their_peers_and_more_caution_means_less(small, tmp_path):
    settings = RunConfig.of(SMALL, {"beta-rule": "auto", "local-steps": 30, "batch": 64})
    process = make_process(settings.diffusion)
    parts: list[ClassData] = [load_class(settings, y) for y in range(4)]
    players = [Player.start(build(settings, (1, 8, 8), y), settings.optimiser) for y in range(4)]
    for y, player in enumerate(players):
        local_steps(player, parts[y].train, Peers(), settings, process, y, 1)
    peers = Peers([freeze(copy.deepcopy(player.network), "none") for player in players[1:]], [1 / 3] * 3)
    strengths = []
    for caution in (0.0, 3.0):
        players[0].weighed = None
        of = weighed(peers, [1, 2, 3], players[0], parts[0].held_out, settings.but(caution=caution), process, 0, 1)
        strengths.append(of.by_noise.strength if of.by_noise else torch.zeros(LEVELS, dtype=torch.float64))
    assert strengths[0].sum() > strengths[1].sum()
