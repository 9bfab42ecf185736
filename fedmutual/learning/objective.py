"""The two losses, one number an example and both of one call shape.

`output, target: [batch, *dims]`, `weight: [batch]` -> `[batch]`. ||.||² is the mean square over the d
coordinates, so that a learning rate and a clip carry over between image sizes; the factor 1/d is the same
in both terms and moves no minimiser.
"""

from torch import Tensor

from fedmutual.config import Parametrisation


def denoising_target(
    parametrisation: Parametrisation, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """What the network should put out for x_t = alpha x_0 + sigma xi.

    The noise xi, the score -xi / sigma, or the velocity alpha xi - sigma x_0 (Salimans and Ho 2022), of which an
    error e is one of sigma e in x_0 and alpha e in xi: where nearly all is noise, xi is x_t but for little.
    x0, noise: [batch, *dims]; alpha, sigma broadcast against them.
    """
    if parametrisation == "velocity":
        return alpha * noise - sigma * x0
    return noise if parametrisation == "noise" else -noise / sigma


def denoised(parametrisation: Parametrisation, x: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The x_0 that an output at x stands for: the inverse of `denoising_target`, of the same shapes."""
    if parametrisation == "velocity":
        return alpha * x - sigma * output
    noise = output if parametrisation == "noise" else -sigma * output
    return (x - sigma * noise) / alpha


def denoising_loss(output: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """lambda(t) ||s_y(x_t, t) - target||²: denoising score matching (Vincent 2011)."""
    return weight * (output - target).square().flatten(1).mean(1)


def mutual_loss(output: Tensor, peer_mean: Tensor, weight: Tensor) -> Tensor:
    """omega(t) ||s_y(x_t, t) - E_Q s_{y'}(x_t, t)||², with no gradient into the peers.

    E_Q ||s_y - s_{y'}||² exceeds it by Var_Q(s_{y'}), which theta_y does not move: the gradient by the mean
    of the peers is the gradient by all of them.
    """
    return denoising_loss(output, peer_mean.detach(), weight)
