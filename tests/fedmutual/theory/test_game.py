"""The solved game against autograd on the raw samples, scipy's optimisers, and the definitions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from fedmutual.data.mixtures import MIXTURES, line
from fedmutual.theory import game as game_module
from fedmutual.theory.descent import adam, descend, gradient_descent, sampled_peers, stable_rate
from fedmutual.theory.game import Game, minimise_quadratic, relative_ridge, uniform_peers
from fedmutual.theory.moments import denoising_losses, mutual_losses
from simulations.game.reference import autograd_igd, networks, objective
from simulations.game.world import World

SEEDS = [3, 5]
BETA = torch.tensor([0.3, 2.0], dtype=torch.float64)


def close(left, right, tolerance=1e-9):
    scale = torch.as_tensor(right).abs().max().clamp(min=1e-300)
    assert (torch.as_tensor(left) - right).abs().max() <= tolerance * scale


def world(name="overlap", counts=(9, 5), seeds=SEEDS, **options):
    return World.draw(list(seeds), MIXTURES[name](), list(counts), **options)


def three_classes(beta=0.5, seeds=SEEDS):
    setting = World.draw(list(seeds), line(3), [8, 6, 4])
    Q = torch.tensor([[0, 0.7, 0.3], [0.5, 0, 0.5], [0.1, 0.9, 0]], dtype=torch.float64)
    return setting, setting.game(torch.full((3,), beta, dtype=torch.float64), Q)


def random_profile(game, seed=0):
    return torch.randn(game.untrained.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["overlap", "overlap-2d"])
def test_gradient_is_that_of_the_objective_on_the_raw_samples(name):
    setting = world(name)
    game = setting.game(BETA)
    A = random_profile(game)
    gradient = game.gradient(A)
    for s in range(len(SEEDS)):
        players = networks(setting, s, A[s])
        for y, player in enumerate(players):
            loss = objective(setting, s, y, players, float(BETA[y]), game.Q, float(game.ridge[s, y]))
            close(gradient[s, y], torch.autograd.grad(loss, player.A)[0])


def test_losses_by_definition_equal_those_of_the_networks():
    setting = world("overlap-2d")
    game = setting.game(BETA)
    A = random_profile(game)
    for y in range(2):
        own = denoising_losses(setting.players, A[:, y], y, setting.samples[y], setting.process, setting.own_weight)
        mutual = mutual_losses(
            setting.players, A, game.Q, y, setting.samples[y], setting.process, setting.mutual_weight
        )
        players = networks(setting, 1, A[1])
        expected = objective(setting, 1, y, players, float(BETA[y]), game.Q, 0.0)
        close((own + BETA[y] * mutual)[1].mean(), expected.detach())


def test_mean_peer_has_the_gradient_of_all_peers():
    setting, game = three_classes()
    A = random_profile(game)
    players = networks(setting, 0, A[0])
    mean = objective(setting, 0, 0, players, 0.5, game.Q, 0.0)
    each = sum(
        game.Q[0, z] * objective(setting, 0, 0, players, 0.5, torch.eye(3, dtype=torch.float64)[[z] * 3], 0.0)
        for z in (1, 2)
    )
    gradients = [torch.autograd.grad(loss, players[0].A)[0] for loss in (mean, each)]
    close(*gradients, tolerance=1e-12)


def test_no_player_can_lower_its_objective_beyond_the_best_response():
    setting, game = three_classes()
    A = random_profile(game)
    best = game.best_response(A)
    players = networks(setting, 0, A[0])
    for y in range(3):

        def value(flat, y=y):
            with torch.no_grad():
                players[y].A.copy_(torch.from_numpy(flat).view(1, -1))
            loss = objective(setting, 0, y, players, 0.5, game.Q, float(game.ridge[0, y]))
            return loss.item(), torch.autograd.grad(loss, players[y].A)[0].numpy().ravel()

        result = minimize(value, A[0, y].numpy().ravel(), jac=True, method="BFGS", options={"gtol": 1e-9})
        assert abs(value(best[0, y].numpy().ravel())[0] - result.fun) <= 1e-9 * abs(result.fun)
        with torch.no_grad():
            players[y].A.copy_(A[0, y])


def test_gradient_vanishes_at_the_equilibrium():
    for setting, game in (three_classes(), (world("overlap-2d"), world("overlap-2d").game(BETA))):
        A = game.equilibrium()
        assert game.gradient(A).norm() < 1e-10 * game.gradient(torch.zeros_like(A)).norm()
        assert (game.nash_gap(A) < 1e-20).all()
        close(game.best_response(A), A)
        assert setting.classes == A.shape[-3]


def test_beta_zero_is_everyone_alone():
    setting = world()
    game = setting.game(torch.zeros(2, dtype=torch.float64))
    alone = torch.linalg.solve(
        game.moments.own + game.ridge[..., None, None] * torch.eye(16), -game.moments.target, left=False
    )
    close(game.equilibrium(), alone)
    close(game.best_response(random_profile(game)), alone)


def test_nash_gap_is_the_largest_regret():
    setting, game = three_classes()
    A = random_profile(game)
    best = game.best_response(A)

    def values(profile):
        players = networks(setting, 1, profile)
        return [objective(setting, 1, y, players, 0.5, game.Q, float(game.ridge[1, y])).item() for y in range(3)]

    regrets = []
    for y in range(3):
        deviation = A[1].clone()
        deviation[y] = best[1, y]
        regrets.append(values(A[1])[y] - values(deviation)[y])
    close(game.nash_gap(A)[1], torch.tensor(max(regrets), dtype=torch.float64))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), bound=st.floats(1e-3, 10), rank=st.integers(1, 6))
def test_projected_best_response_satisfies_the_trust_region_conditions(seed, bound, rank):
    random = torch.Generator().manual_seed(seed)
    half = torch.randn(6, rank, dtype=torch.float64, generator=random)
    hessian = half @ half.mT + 1e-6 * torch.eye(6)
    linear = torch.randn(2, 6, dtype=torch.float64, generator=random)
    A = minimise_quadratic(hessian, linear, bound)
    assert torch.linalg.matrix_norm(A) <= bound * (1 + 1e-9)
    # Optimality in the ball: the residual R - A H is mu A with mu >= 0, and mu > 0 on the sphere only.
    residual = linear - A @ hessian
    mu = (residual * A).sum() / A.square().sum()
    assert mu >= -1e-9
    close(residual, mu * A, tolerance=1e-7 if mu > 1e-9 else float("inf"))
    if torch.linalg.matrix_norm(A) < bound * (1 - 1e-9):
        assert residual.norm() <= 1e-8 * linear.norm()


def test_projected_best_response_matches_a_constrained_optimiser():
    game = replace(world().game(BETA), bound=2.0)
    A = random_profile(game)
    best, linear = game.best_response(A), game.pull(A) - game.moments.target
    hessian, right = game.hessian[0, 1].numpy(), linear[0, 1, 0].numpy()
    ball = {"type": "ineq", "fun": lambda a: 4.0 - a @ a, "jac": lambda a: -2 * a}
    result = minimize(
        lambda a: a @ hessian @ a - 2 * a @ right,
        np.zeros(16),
        jac=lambda a: 2 * (hessian @ a - right),
        constraints=[ball],
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    assert np.linalg.norm(best[0, 1, 0].numpy()) == pytest.approx(2.0)
    np.testing.assert_allclose(best[0, 1, 0].numpy(), result.x, atol=1e-5)


def test_no_player_gains_at_the_projected_equilibrium():
    free = world().game(BETA)
    game = replace(free, bound=float(torch.linalg.matrix_norm(free.equilibrium()).min()) / 2)
    A = game.equilibrium()
    assert torch.linalg.matrix_norm(A).max() == pytest.approx(game.bound)
    close(game.best_response(A), A)
    assert (game.nash_gap(A).abs() < 1e-12).all()
    assert (game.nash_gap(A / 2) > 1e-3).all()


def test_iterative_solver_finds_the_direct_solution(monkeypatch):
    setting = World.draw(SEEDS, MIXTURES["overlap-2d"](), [9, 5])
    game = setting.game(torch.tensor([[[0.5]], [[4.0]]], dtype=torch.float64))
    direct = game.equilibrium()
    monkeypatch.setattr(game_module, "DIRECT_LIMIT", 1)
    close(game.equilibrium(), direct, tolerance=1e-7)


def test_monotone_games_contract_under_the_gradient_field():
    game = world().game(torch.tensor([[[0.1]], [[1.0]], [[30.0]]], dtype=torch.float64).expand(3, 1, 2))
    left, right = random_profile(game, 1), random_profile(game, 2)
    gap = left - right
    growth = (gap * (game.gradient(left) - game.gradient(right))).sum((-3, -2, -1))
    smallest = game.smallest_eigenvalue()
    assert (growth >= smallest * gap.square().sum((-3, -2, -1)) - 1e-12).all()
    assert smallest.shape == (3, 2)
    assert (smallest[0] > 0).all()


def test_best_response_iteration_converges_at_its_spectral_radius():
    game = world().game(BETA)
    radius, equilibrium = game.spectral_radius(), game.equilibrium()
    A, errors = game.untrained, []
    for _ in range(20):
        A = game.best_response(A)
        errors.append((A - equilibrium).flatten(-3).norm(dim=-1))
    assert (radius < 1).all()
    measured = (errors[19] / errors[14]) ** (1 / 5)
    close(measured, radius, tolerance=5e-2)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("local_steps", [1, 3])
def test_gram_form_walks_the_path_of_autograd_on_the_samples(optimiser, local_steps):
    setting, game = three_classes()
    rate = 0.5 if optimiser == "sgd" else 0.01
    kernel = gradient_descent(rate) if optimiser == "sgd" else adam(rate)
    path = descend(game, kernel, 6, local_steps)
    for s in range(2):
        expected = autograd_igd(setting, game, s, optimiser, rate, 6, local_steps)
        close(path.last[s], expected)


def test_sampled_peers_walk_the_path_of_autograd_on_the_samples():
    setting, game = three_classes()
    draw = sampled_peers(game.Q, 1, SEEDS)
    path = descend(game, gradient_descent(0.5), 5, local_steps=2, peers=draw)
    expected = autograd_igd(setting, game, 1, "sgd", 0.5, 5, 2, peers=lambda number: draw(number)[1])
    close(path.last[1], expected)


def test_descent_reaches_the_solved_equilibrium_whatever_the_local_steps():
    setting, game = three_classes()
    game = replace(game, ridge=relative_ridge(setting.moments, 0.3))
    for local_steps in (1, 5):
        path = descend(game, gradient_descent(stable_rate(game)), 4000, local_steps)
        close(path.last, game.equilibrium())


def test_hearing_all_peers_is_the_full_game():
    _, game = three_classes()
    draw = sampled_peers(game.Q, 2, SEEDS)
    close(draw(4), game.Q.expand(2, 3, 3), tolerance=1e-15)
    with pytest.raises(ValueError, match="between 1 and 2"):
        sampled_peers(game.Q, 3, SEEDS)


def test_one_sampled_peer_is_the_mixture_on_average():
    _, game = three_classes()
    draw = sampled_peers(game.Q, 1, [7])
    mean = sum(draw(number) for number in range(3000)) / 3000
    assert (mean[0] - game.Q).abs().max() < 0.04


def test_best_iterate_has_the_smallest_gradient_of_the_path():
    game = world().game(torch.tensor([60.0, 60.0], dtype=torch.float64))  # not monotone: descent turns away
    rate = stable_rate(game)
    path = descend(game, gradient_descent(rate), 300, record=range(301))
    norms = torch.stack([game.gradient(A).flatten(-2).norm(dim=-1).amax(-1) for A in path.profiles.values()])
    best = game.gradient(path.best).flatten(-2).norm(dim=-1).amax(-1)
    close(best, norms.amin(0), tolerance=1e-12)


def test_result_does_not_depend_on_the_batch():
    seeds = [11, 12, 13, 14, 15]
    together, alone = world(seeds=seeds), world(seeds=[13])
    games = [setting.game(BETA) for setting in (together, alone)]
    for solve in (
        Game.equilibrium,
        lambda game: game.nash_gap(game.untrained)[:, None, None, None],
        lambda game: descend(game, adam(1e-2), 200).last,
        lambda game: replace(game, bound=1.0).equilibrium(),
    ):
        many, one = (solve(game) for game in games)
        close(many[2], one[0], tolerance=1e-11)
    betas = torch.tensor([[[0.0]], [[0.3]], [[5.0]]], dtype=torch.float64)
    close(together.game(betas).equilibrium()[1], together.game(betas[1]).equilibrium(), tolerance=1e-11)


def test_a_game_that_makes_no_sense_is_refused():
    setting = world()
    for beta, Q in (
        (torch.tensor([-1.0, 0.0], dtype=torch.float64), None),
        (torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)),
        (torch.zeros(2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)),
        (torch.zeros(2, dtype=torch.float64), uniform_peers(3)),
    ):
        with pytest.raises(ValueError, match=r"beta|Q"):
            setting.game(beta, Q)
