"""The bridge: the federated app, over its real client and server code, plays the game that `game.py` solves."""

import pytest
import torch

from fedmutual.config import RunConfig
from fedmutual.device import dtype_of
from fedmutual.diffusion import make_process
from fedmutual.networks import build
from fedmutual.seeds import generator
from fedmutual.theory.descent import adam, descend, gradient_descent, stable_rate
from fedmutual.theory.game import Game, uniform_peers
from fedmutual.theory.moments import Players, Sample, moments
from tests.support.data import load_class, training_counts
from tests.support.federation import LocalGrid, federate, networks

GAUSSIANS = {
    "data": "gaussians",
    "imbalance": "counts",
    "network": "random-features",
    "parametrisation": "score",
    "process": "ou",
    "draws": "fixed",
    "dtype": "float64",
    "lambda_weight": "sigma",
    "omega_weight": "exp",
    "beta_rule": "constant",
    "beta": 0.5,
    "schedule": "constant",
    "clip": 0.0,
    "ema": 0.0,
    "held_out": 0,
    "norm_bound": 1e9,
    "evaluate_every": 0,
    "width": 8,
    "diffusion_steps": 12,
}


def game_of(config: RunConfig) -> Game:
    """The federation's game: its clients' samples, fixed noise and frozen features, in Gram form, a batch of one."""
    process = make_process(config.diffusion, dtype=dtype_of(config.compute))
    classes = len(training_counts(config))
    data = [load_class(config, y).train.double() for y in range(classes)]
    frozen = [build(config, tuple(x.shape[1:]), y) for y, x in enumerate(data)]
    W, U = (torch.stack([getattr(network, name) for network in frozen])[None] for name in ("W", "U"))
    samples = []
    for y, x in enumerate(data):
        random = generator(config.seed, y, 0, "noise")
        noise = torch.randn(len(process), *x.shape, dtype=torch.float64, generator=random)
        samples.append(Sample(x[None], noise[None]))
    weights = process.weight(config.diffusion.lambda_weight), process.weight(config.mutual.omega_weight)
    table = moments(Players(W, U, config.diffusion.horizon), samples, process, *weights)
    beta = torch.full((1, classes), config.mutual.beta, dtype=torch.float64)
    return Game(table, beta, uniform_peers(classes), torch.zeros_like(beta))


def trained(config: RunConfig) -> torch.Tensor:
    """[1, K, d, m] after a federated run with everyone taking part."""
    bank = networks(federate(config, LocalGrid(range(len(training_counts(config))))))
    return torch.stack([network["A"].double() for network in bank.values()])[None]


OVERLAP = {**GAUSSIANS, "mixture": "overlap", "counts": "9,5"}
LINE = {**GAUSSIANS, "mixture": "line-10", "counts": "12,10,9,8,7,6,5,4,3,2"}


@pytest.mark.parametrize("family", [OVERLAP, LINE])
@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.5), ("adam", 1e-2)])
def test_one_local_step_lands_on_the_iterates_of_the_game(small, family, optimizer, rate):
    config = small(**family, optimizer=optimizer, learning_rate=rate, local_steps=1, rounds=4)
    kernel = gradient_descent(rate) if optimizer == "sgd" else adam(rate)
    torch.testing.assert_close(trained(config), descend(game_of(config), kernel, 4).last, rtol=1e-9, atol=1e-12)


def test_local_steps_land_on_the_iterates_against_stale_peers(small):
    config = small(**LINE, optimizer="sgd", learning_rate=0.5, local_steps=5, rounds=3)
    expected = descend(game_of(config), gradient_descent(0.5), 3, local_steps=5).last
    torch.testing.assert_close(trained(config), expected, rtol=1e-9, atol=1e-12)


def test_many_rounds_land_on_the_solved_equilibrium(small):
    # Two features and a well-conditioned draw of them, so that gradient descent gets there within the test's time.
    family = {**OVERLAP, "counts": "40,25", "width": 2, "diffusion_steps": 6, "beta": 0.3, "seed": 4}
    rate = float(stable_rate(game_of(small(**family))))
    config = small(**family, optimizer="sgd", learning_rate=rate, local_steps=100, rounds=35)
    game = game_of(config)
    solved = game.equilibrium()
    torch.testing.assert_close(trained(config), solved, rtol=1e-9, atol=1e-9)
    assert game.nash_gap(solved) < 1e-20
