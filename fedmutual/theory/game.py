"""The game of mutual learning with random features, solved: best response, Nash equilibrium, Nash gap.

Player y chooses A_y, ||A_y||_F <= B, to minimise

    L_y + beta_y M_y + ridge_y ||A_y||_F²
    L_y = mean_j mean_i lambda_j (1/d) ||s_y(x_ij, t_j) + xi_ij / sigma_j||²
    M_y = mean_j mean_i omega_j  (1/d) ||s_y(x_ij, t_j) - sum_z Q_yz s_z(x_ij, t_j)||²

on its own noised samples x_ij. With s_y = A_y phi_y that is the convex quadratic

    (1/d) tr(A_y H_y A_y^T) + (2/d) tr(A_y (C_y - sum_z A_z K_yz^T)^T) + const,
    H_y = own_y + beta_y cross_yy + d ridge_y I,   C_y = target_y,   K_yz = beta_y Q_yz cross_yz,

so best responses and equilibria are linear algebra, the same for each of the d output coordinates. The paper
writes the same objective with other constants in front; a common factor changes neither best response nor
equilibrium. Source: Principled Long-Tailed Generative Modeling via Diffusion Models (NeurIPS 2025),
random-feature analysis.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, gmres
from torch import Tensor

from fedmutual.theory.moments import Moments

DIRECT_LIMIT = 4096
"""Up to this many unknowns K m an equilibrium is one LU factorisation; beyond it, preconditioned GMRES."""


def uniform_peers(classes: int) -> Tensor:
    """Q of the paper, [K, K]: every peer alike, oneself not."""
    if classes < 2:
        raise ValueError("a game needs at least two classes")
    return (1 - torch.eye(classes, dtype=torch.float64)) / (classes - 1)


def relative_ridge(moments: Moments, factor: float) -> Tensor:
    """`factor` of the mean diagonal of the class's own beta-free Gram matrix own_y / d, [*batch, K]."""
    return factor * moments.own.diagonal(dim1=-2, dim2=-1).mean(-1) / moments.target.shape[-2]


@dataclass(frozen=True)
class Game:
    """A batch of games of K players with d x m parameters each; profiles are `A: [*batch, K, d, m]`.

    beta:  [*batch, K] weight of the mutual term.        Q: [*batch, K, K] row-stochastic, zero diagonal.
    ridge: [*batch, K] absolute, on ||A_y||_F².          bound: B, the radius of the ball that holds A_y.
    Batch dimensions broadcast against those of the moments: a sweep over beta is one batch.
    """

    moments: Moments
    beta: Tensor
    Q: Tensor
    ridge: Tensor
    bound: float = math.inf

    def __post_init__(self) -> None:
        classes = self.moments.own.shape[-3]
        if self.Q.shape[-2:] != (classes, classes) or self.beta.shape[-1] != classes:
            raise ValueError(f"beta and Q must be for {classes} classes")
        if (self.Q < 0).any() or not torch.allclose(self.Q.sum(-1), torch.ones_like(self.Q[..., 0])):
            raise ValueError("every row of Q must be a distribution over peers")
        if self.Q.diagonal(dim1=-2, dim2=-1).any():
            raise ValueError("the diagonal of Q must be zero: a player is not its own peer")
        if (self.beta < 0).any() or (self.ridge < 0).any() or not self.bound > 0:
            raise ValueError("beta and ridge must not be negative, and the bound must be positive")

    @property
    def dimension(self) -> int:
        return self.moments.target.shape[-2]

    @property
    def untrained(self) -> Tensor:
        """A = 0 for every player of every game, [*batch, K, d, m]."""
        batch = torch.broadcast_shapes(self.hessian.shape[:-3], self.Q.shape[:-2])
        return self.moments.target.new_zeros(*batch, *self.moments.target.shape[-3:])

    @cached_property
    def hessian(self) -> Tensor:
        """H_y: [*batch, K, m, m]; player y's Hessian is (2/d) H_y in each output coordinate."""
        own = self.moments.own
        at_home = self.moments.cross.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)  # cross_yy
        identity = torch.eye(own.shape[-1], dtype=own.dtype)
        ridge = self.dimension * self.ridge[..., None, None] * identity
        return own + self.beta[..., None, None] * at_home + ridge

    @cached_property
    def coupling(self) -> Tensor:
        """K_yz = beta_y Q_yz cross_yz: [*batch, K m, K m], zero on the diagonal blocks."""
        weight = self.beta[..., None] * self.Q
        return (weight[..., :, None, :, None] * self.moments.cross).flatten(-4, -3).flatten(-2)

    @cached_property
    def jacobian(self) -> Tensor:
        """J = blockdiag(H_y) - K: [*batch, K m, K m]; in each coordinate the players' gradients are (2/d) (J a + c)."""
        classes = self.hessian.shape[-3]
        here = torch.eye(classes, dtype=self.hessian.dtype)
        diagonal = here[:, None, :, None] * self.hessian[..., :, :, None, :]
        return diagonal.flatten(-4, -3).flatten(-2) - self.coupling

    def pull(self, A: Tensor) -> Tensor:
        """sum_z A_z K_yz^T, what the peers contribute to each player's gradient: [*batch, K, d, m]."""
        return unstack(stack(A) @ self.coupling.mT, A.shape[-3])

    def gradient(self, A: Tensor) -> Tensor:
        """Each player's gradient of its own objective: (2/d) (A_y H_y + C_y - sum_z A_z K_yz^T)."""
        return 2 / self.dimension * (A @ self.hessian + self.moments.target - self.pull(A))

    def best_response(self, A: Tensor) -> Tensor:
        """argmin over ||A_y||_F <= B of each player's objective against the others of `A`."""
        return minimise_quadratic(self.hessian, self.pull(A) - self.moments.target, self.bound)

    def nash_gap(self, A: Tensor) -> Tensor:
        """max_y [ objective_y(A_y, A_-y) - min_A objective_y(A, A_-y) ], [*batch]; zero at an equilibrium only."""
        linear = self.pull(A) - self.moments.target
        best = minimise_quadratic(self.hessian, linear, self.bound)
        step = A - best
        # f(best + step) - f(best), expanded at the minimum: no cancellation of two large numbers.
        slope = best @ self.hessian - linear if math.isfinite(self.bound) else torch.zeros_like(best)
        gain = (step * (step @ self.hessian + 2 * slope)).sum((-2, -1)) / self.dimension
        return gain.amax(-1)

    def equilibrium(self) -> Tensor:
        """The Nash equilibrium: J a = -c for each output coordinate, or its projected form when B binds."""
        size = self.jacobian.shape[-1]
        free = self._solve_directly() if size <= DIRECT_LIMIT else self._solve_iteratively()
        if (torch.linalg.matrix_norm(free) <= self.bound).all():
            return free
        return self._solve_projected()

    def _solve_directly(self) -> Tensor:
        """LU with one step of iterative refinement, so that the gradient vanishes to rounding."""
        right = -stack(self.moments.target).mT  # [*batch, K m, d]
        factors, pivots = torch.linalg.lu_factor(self.jacobian)
        right = right.expand(*factors.shape[:-2], *right.shape[-2:])
        solution = torch.linalg.lu_solve(factors, pivots, right)
        solution = solution + torch.linalg.lu_solve(factors, pivots, right - self.jacobian @ solution)
        return unstack(solution.mT, self.hessian.shape[-3])

    def _solve_iteratively(self, tolerance: float = 1e-11) -> Tensor:
        """GMRES on a = T a + b, the fixed point of best responses: every H_y^-1 is its own preconditioner."""
        shape, batch = self.untrained.shape, self.untrained.shape[:-3]
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self.hessian))
        start = (-self.moments.target @ inverse).expand(shape).reshape(-1, *shape[-3:])
        inverse = inverse.expand(*batch, *inverse.shape[-3:]).reshape(-1, *inverse.shape[-3:])
        coupling = self.coupling.expand(*batch, *self.coupling.shape[-2:]).reshape(-1, *self.coupling.shape[-2:])
        solved = [_krylov(*game, tolerance) for game in zip(inverse, coupling, start, strict=True)]
        solution = torch.stack(solved).reshape(shape)
        residual = self.gradient(solution).norm() / (2 / self.dimension * self.moments.target.norm())
        if not residual < 100 * tolerance:
            raise ValueError(f"the iterative equilibrium solver stopped at a relative residual of {residual:.1e}")
        return solution

    def _solve_projected(self, tolerance: float = 1e-12, limit: int = 20_000) -> Tensor:
        """Best responses, averaged with the last profile so that rotation dies out; finished games stand still."""
        A = self.best_response(self.untrained)
        for _ in range(limit):
            move = self.best_response(A) - A
            moving = move.flatten(-3).norm(dim=-1) > tolerance * A.flatten(-3).norm(dim=-1)
            if not moving.any():
                return A
            A = A + 0.5 * moving[..., None, None, None] * move
        raise ValueError(f"best responses did not settle within {limit} iterations: the game may not be monotone")

    def smallest_eigenvalue(self) -> Tensor:
        """Of the symmetric part of the game's Jacobian, [*batch]; positive: strongly monotone, so one equilibrium."""
        symmetric = (self.jacobian + self.jacobian.mT) / 2
        eigenvalues: Tensor = torch.linalg.eigvalsh(symmetric)
        return 2 / self.dimension * eigenvalues[..., 0]

    def spectral_radius(self) -> Tensor:
        """Of best-response iteration A <- best_response(A), [*batch]; below 1 it converges to the equilibrium."""
        classes, features = self.hessian.shape[-3], self.hessian.shape[-1]
        coupling = torch.unflatten(self.coupling, -2, (classes, features))
        response = torch.linalg.solve(self.hessian, coupling).flatten(-3, -2)
        eigenvalues: Tensor = torch.linalg.eigvals(response)
        return eigenvalues.abs().amax(-1)


def stack(A: Tensor) -> Tensor:
    """[*batch, K, d, m] -> [*batch, d, K m]: the players side by side in each output coordinate."""
    return A.movedim(-3, -2).flatten(-2)


def unstack(a: Tensor, classes: int) -> Tensor:
    """[*batch, d, K m] -> [*batch, K, d, m]: the inverse of `stack`."""
    return torch.unflatten(a, -1, (classes, -1)).movedim(-2, -3)


def minimise_quadratic(hessian: Tensor, linear: Tensor, bound: float = math.inf) -> Tensor:
    """argmin of tr(A H A^T) - 2 tr(A R^T) over ||A||_F <= B: A = R (H + mu I)^-1, mu = 0 or ||A||_F = B.

    hessian: [*batch, m, m] positive definite, linear R: [*batch, d, m]. Where the ball binds, mu >= 0 solves
    the secular equation 1 / ||A(mu)||_F = 1 / B by Newton's method in the eigenbasis of H; the left side is
    concave in mu, so from mu = 0 the iteration climbs to the root without overshooting (Moré and Sorensen,
    1983).
    """
    if math.isinf(bound):
        solution: Tensor = torch.linalg.solve(hessian, linear, left=False)
        return solution
    values, vectors = torch.linalg.eigh(hessian)
    values = values.clamp(min=values[..., -1:] * torch.finfo(values.dtype).eps)[..., None, :]
    rotated: Tensor = linear @ vectors
    mu = torch.zeros_like(rotated[..., :1, :1])
    for _ in range(100):
        scaled = rotated / (values + mu)
        norm = scaled.square().sum((-2, -1), keepdim=True).sqrt()
        slope = (scaled.square() / (values + mu)).sum((-2, -1), keepdim=True)
        step = (norm.square() / slope * (norm / bound - 1)).clamp(min=0).nan_to_num()
        mu = mu + step
        if (step <= 1e-15 * mu).all():
            break
    minimum: Tensor = rotated / (values + mu) @ vectors.mT
    return minimum


def _krylov(inverse: Tensor, coupling: Tensor, start: Tensor, tolerance: float) -> Tensor:
    """One game, `start: [K, d, m]`: solves a - H^-1 K a = start coordinate by coordinate, without forming J."""
    classes, dimension, features = start.shape

    def apply(flat: np.ndarray) -> np.ndarray:
        a = torch.from_numpy(np.ascontiguousarray(flat))
        pulled = torch.einsum("yij,yj->yi", inverse, (coupling @ a).view(classes, features))
        return (a - pulled.flatten()).numpy()

    operator = LinearOperator((classes * features,) * 2, matvec=apply, dtype=np.float64)
    columns = [
        gmres(operator, start[:, k].flatten().numpy(), rtol=tolerance, restart=200, maxiter=50)[0]
        for k in range(dimension)
    ]
    return torch.from_numpy(np.stack(columns)).view(dimension, classes, features).movedim(0, 1)
