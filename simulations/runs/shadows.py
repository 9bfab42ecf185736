"""Shadow networks of a run: trained like its own, each on a part of a class's samples, for attacks that need them."""

from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
import torch
from torch import Tensor, nn

from fedmutual.baselines.isolated import train_alone
from fedmutual.baselines.kernel_density import KernelDensity
from fedmutual.baselines.memory import Memory
from fedmutual.config import RunConfig
from fedmutual.data import ClassData
from fedmutual.diffusion import Process
from fedmutual.diffusion.sampling import noise_predictor
from fedmutual.errors import UserError
from fedmutual.evaluation.attacks import DRAWS, loss_scores
from fedmutual.evaluation.membership import LOW_NOISE, TIMES, Finding, told_apart
from fedmutual.evaluation.shadows import Shadow, disjoint_parts, gradient_norms, gsa_scores, lira_scores
from fedmutual.networks import OfClass, build
from fedmutual.networks.split import Split
from fedmutual.seeds import derive, generator


def refuse_unshadowed(networks: Sequence[nn.Module], shadows: int) -> None:
    """Raises `UserError` where shadows cannot be trained as the run's networks were, or are not in pairs."""
    if shadows % 2 or shadows < 2:
        raise UserError(f"--shadows {shadows}: shadows are trained in pairs, so give 2, 4 or more")
    if any(isinstance(network, OfClass | Memory | KernelDensity) for network in networks):
        raise UserError("--shadows needs a network of its own for each class, and this run has none: leave it out")
    if any(isinstance(network, Split) and network.private is None for network in networks):
        raise UserError("--shadows trains whole networks, and these were sent in part: add --whole, or leave it out")


def attack_with_shadows(
    network: nn.Module, process: Process, members: Tensor, non_members: Tensor, config: RunConfig, y: int, shadows: int
) -> list[Finding]:
    """GSA and LiRA on class y's network, by so many shadows.

    A shadow is trained by the run's settings for as many steps, alone, on as many of the candidates as the class has
    members, and on half of them at most; it holds nothing out, and stands for its last round. All is drawn from
    (seed, y, "shadows").
    """
    x, count = torch.cat([members, non_members]), len(members)
    rng = generator(config.seed, y, "shadows", device=x.device)
    noise = torch.randn(len(TIMES), *x.shape[1:], dtype=x.dtype, device=x.device, generator=rng)
    look = _looking(process, config, x, noise)
    size = min(count, len(x) // 2)
    parts = disjoint_parts(len(x), size, shadows // 2, rng)
    seen = [_shadow(look, x, rows, config, y, number) for number, rows in enumerate(parts)]
    gradients, losses = look(network)
    findings: list[Finding] = []
    draws = DRAWS * sum(t <= LOW_NOISE for t in TIMES)
    for attack, scores, queries in (
        ("gsa", gsa_scores(gradients, seen), len(TIMES)),
        ("lira", lira_scores(losses, seen), draws),
    ):
        sides = torch.from_numpy(scores).split([count, len(x) - count])
        findings += told_apart(attack, None, sides[0], sides[1], queries)
    return findings


Look = Callable[[nn.Module], "tuple[np.ndarray, np.ndarray]"]
"""Takes a network; gives its gradients and its losses at all candidates, with the same noise for every network."""


def _looking(process: Process, config: RunConfig, x: Tensor, noise: Tensor) -> Look:
    indices = [process.nearest(t) for t in TIMES]
    parametrisation = config.diffusion.parametrisation

    def look(network: nn.Module) -> tuple[np.ndarray, np.ndarray]:
        gradients = gradient_norms(network, process, parametrisation, x, indices, noise)
        predict = noise_predictor(network, process, parametrisation, clip=False)
        same = generator(config.seed, "shadow-losses", device=x.device)
        low = [index for t, index in zip(TIMES, indices, strict=True) if t <= LOW_NOISE]
        losses = reduce(torch.add, (loss_scores(predict, process, x, index, same) for index in low))
        return gradients, losses.double().cpu().numpy()

    return look


def _shadow(look: Look, x: Tensor, rows: Tensor, config: RunConfig, y: int, number: int) -> Shadow:
    own = config.but(seed=derive(config.seed, y, "shadow", number) % 2**31)
    player, _ = train_alone(own, ClassData(x[rows.to(x.device)], x[:0]), y)
    network = build(own, tuple(x.shape[1:]), y).to(x.device)
    network.load_state_dict(player.published())
    inside = np.zeros(len(x), dtype=bool)
    inside[rows.numpy()] = True
    return Shadow(*look(network.eval()), inside)
