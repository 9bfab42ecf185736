"""Random-feature players and the moments of their data that the game depends on.

Player y's network is s_y(x, t) = A_y phi_y(x, t), phi_y(x, t) = ReLU(W_y x + U_y e(t)) / m, e(t) = (t / T,
1), with W_y and U_y frozen. Both terms of its objective are quadratic in the players' A, so second moments of
the features are all that the data has to say: the game never looks at a sample again.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedmutual.diffusion.process import Process
from fedmutual.seeds import generator


@dataclass(frozen=True)
class Players:
    """The frozen features of K networks in a batch of games.

    W: [*batch, K, m, d], U: [*batch, K, m, 2]; horizon: the T of e(t) = (t / T, 1).
    """

    W: Tensor
    U: Tensor
    horizon: float

    @classmethod
    def draw(
        cls,
        seeds: list[int],
        classes: int,
        features: int,
        dimension: int,
        horizon: float,
        shared: bool = False,
    ) -> "Players":
        """W and U uniform on [-1, 1], each from (seed, class, "features"); `shared`: class 0's for all."""
        tables = [[_uniform(seed, 0 if shared else y, features, dimension) for y in range(classes)] for seed in seeds]
        drawn = torch.stack([torch.stack(row) for row in tables])
        return cls(drawn[..., :dimension], drawn[..., dimension:], horizon)

    @property
    def classes(self) -> int:
        return self.W.shape[-3]

    def only(self, y: int) -> "Players":
        """Class y's network alone."""
        return Players(self.W[..., y : y + 1, :, :], self.U[..., y : y + 1, :, :], self.horizon)

    def features(self, x: Tensor, t: float | Tensor) -> Tensor:
        """phi_y(x, t) of every class at the points `x: [*batch, 1 or K, n, d]` and one time.

        Returns [*batch, K, n, m].
        """
        bias = self.U[..., 0] * (t / self.horizon) + self.U[..., 1]
        return torch.relu(x @ self.W.mT + bias[..., None, :]) / self.W.shape[-2]

    def score(self, A: Tensor, x: Tensor, t: float | Tensor) -> Tensor:
        """s_y(x, t) = A_y phi_y(x, t): [*batch, K, n, d] for the profile `A: [*batch, K, d, m]`."""
        return self.features(x, t) @ A.mT


def _uniform(seed: int, y: int, features: int, dimension: int) -> Tensor:
    """(W, U) side by side, [m, d + 2], uniform on [-1, 1]."""
    random = generator(seed, y, "features")
    return 2 * torch.rand(features, dimension + 2, dtype=torch.float64, generator=random) - 1


@dataclass(frozen=True)
class Sample:
    """One class's private data, and the one draw of noise for each (time, sample) that makes its loss a fixed number.

    x0: [*batch, n, d]; noise: [*batch, N, n, d], N the number of training times.
    """

    x0: Tensor
    noise: Tensor

    @property
    def count(self) -> int:
        return self.x0.shape[-2]

    def take(self, index: Tensor) -> "Sample":
        """The samples at `index: [k]`, with their noise."""
        return Sample(self.x0[..., index, :], self.noise[..., index, :])

    def at(self, process: Process, j: int) -> tuple[Tensor, Tensor]:
        """x_t and the regression target -grad log p(x_t | x_0) = xi / sigma at time j, both [*batch, n, d]."""
        noise = self.noise[..., j, :, :]
        return process.alpha[j] * self.x0 + process.sigma[j] * noise, noise / process.sigma[j]


@dataclass(frozen=True)
class Moments:
    """What the game keeps of the data; means are over the class's own samples and the training times.

    own:    [*batch, K, m, m]    mean lambda phi_y phi_y^T
    target: [*batch, K, d, m]    mean lambda (xi / sigma) phi_y^T
    cross:  [*batch, K, m, K, m] mean omega phi_y phi_z^T on class y's samples, for every z
    """

    own: Tensor
    target: Tensor
    cross: Tensor


def class_moments(
    players: Players, y: int, sample: Sample, process: Process, own_weight: Tensor, mutual_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Class y's rows of `Moments`: own [*batch, m, m], target [*batch, d, m], cross [*batch, m, K, m].

    own_weight, mutual_weight: lambda and omega at the training times, [N].
    """
    own = target = cross = sample.x0.new_zeros(())
    # One time after the other, because the features of all times at once would not fit for many classes.
    for j, t in enumerate(process.times):
        x, aim = sample.at(process, j)
        everyone = players.features(x[..., None, :, :], t)  # [*batch, K, n, m]
        mine = everyone[..., y, :, :]  # [*batch, n, m]
        own = own + own_weight[j] * mine.mT @ mine
        target = target + own_weight[j] * aim.mT @ mine
        stacked = everyone.movedim(-3, -2).flatten(-2)  # [*batch, n, K m]
        cross = cross + mutual_weight[j] * mine.mT @ stacked
    scale = 1 / (len(process) * sample.count)
    cross = torch.unflatten(cross, -1, (players.classes, -1))
    return own * scale, target * scale, cross * scale


def moments(
    players: Players, samples: list[Sample], process: Process, own_weight: Tensor, mutual_weight: Tensor
) -> Moments:
    """The moments of all classes; `samples` holds one `Sample` a class, their sizes may differ."""
    rows = [class_moments(players, y, sample, process, own_weight, mutual_weight) for y, sample in enumerate(samples)]
    own, target, cross = zip(*rows, strict=True)
    return Moments(torch.stack(own, -3), torch.stack(target, -3), torch.stack(cross, -4))


def denoising_losses(players: Players, A: Tensor, y: int, sample: Sample, process: Process, weight: Tensor) -> Tensor:
    """L_y sample by sample: mean_j lambda_j (1/d) ||s_y(x_t) + xi / sigma||², [*batch, n]; A: [*batch, d, m]."""
    network, total = players.only(y), sample.x0.new_zeros(())
    for j, t in enumerate(process.times):
        x, aim = sample.at(process, j)
        residual = (network.score(A[..., None, :, :], x[..., None, :, :], t)).squeeze(-3) + aim
        total = total + weight[j] * residual.square().mean(-1)
    return total / len(process)


def mutual_losses(
    players: Players, A: Tensor, Q: Tensor, y: int, sample: Sample, process: Process, weight: Tensor
) -> Tensor:
    """M_y sample by sample: mean_j omega_j (1/d) ||s_y - sum_z Q_yz s_z||² on class y's samples, [*batch, n].

    It differs from E_{z ~ Q_y} ||s_y - s_z||² by the peers' variance, which does not depend on player y.
    """
    total = sample.x0.new_zeros(())
    for j, t in enumerate(process.times):
        x, _ = sample.at(process, j)
        scores = players.score(A, x[..., None, :, :], t)  # [*batch, K, n, d]
        peers = torch.einsum("...z,...znd->...nd", Q[..., y, :], scores)
        total = total + weight[j] * (scores[..., y, :, :] - peers).square().mean(-1)
    return total / len(process)
