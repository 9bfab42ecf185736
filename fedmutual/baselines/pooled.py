"""`pooled`: one class-conditional diffusion model on all samples in one place, what sharing no data is measured by.

Ho, Jain and Abbeel (2020) with a label. K classes make K times the steps of one class's network at the same
batch, so that as many samples are seen in all; a class is seen as often as it has samples.
"""

import copy
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from fedmutual.baselines import Data, OnRound, Trained, ignore
from fedmutual.config import RunConfig
from fedmutual.device import dtype_of
from fedmutual.diffusion import Process, make_process
from fedmutual.learning.conditional import Draw, Loss, Pool, by_sample, conditional_steps, denoising
from fedmutual.learning.keeping import end_round
from fedmutual.learning.player import Player
from fedmutual.networks import OfClass, build_conditional

Prepare = Callable[[nn.Module], nn.Module]
"""What a method adds to the conditional network."""

State = Mapping[str, Tensor]

Finish = Callable[[nn.Module, State], State]
"""(what was trained, its averaged state) -> a state with the names of the conditional network, and maybe more."""


def unchanged(network: nn.Module) -> nn.Module:
    """Nothing is added."""
    return network


def as_it_is(trained: nn.Module, state: State) -> State:
    """The state itself."""
    return state


def pooled(config: RunConfig, data: Data, on_round: OnRound = ignore) -> Trained:
    return train_conditional(config, data, by_sample, denoising, on_round)


def train_conditional(
    config: RunConfig,
    data: Data,
    draw: Draw,
    loss: Loss,
    on_round: OnRound,
    prepare: Prepare = unchanged,
    finish: Finish = as_it_is,
    process: Process | None = None,
) -> Trained:
    """One conditional network trained on `draw` and `loss`; its averaged parameters under the name `shared`.

    `prepare` makes of that network the one that is trained, which may have more parameters, such as more labels, and
    `finish` goes back; what is published has the names and shapes of `build_conditional`. `process` as `train_alone`.
    """
    classes, device = len(data), data[0].train.device
    together = config.but(local_steps=classes * config.local_steps)
    process = process or make_process(config.diffusion, device, dtype_of(config.compute))
    pool = Pool.of([part.train for part in data])
    published = build_conditional(config, tuple(pool.samples.shape[1:]), classes).to(device)
    player = Player.start(prepare(copy.deepcopy(published)).to(device), config.optimiser)
    held_out = {y: part.held_out for y, part in enumerate(data)}
    for round_ in range(1, config.rounds + 1):
        conditional_steps(player, pool, draw, loss, together, process, round_)
        told = end_round(player, held_out, config, process, round_, OfClass)
        on_round(round_, [{"class": y, "held_out": told.get(y)} for y in range(classes)])
    return Trained(
        {"shared": _cut(finish(player.network, player.published()), published)}, config.rounds * config.local_steps
    )


def _cut(trained: State, published: nn.Module) -> dict[str, Tensor]:
    """What `published` has of `trained`: its names, and of each tensor the leading part of its shape."""
    shapes = {name: tensor.shape for name, tensor in published.state_dict().items()}
    return {name: trained[name][tuple(map(slice, shape))].contiguous() for name, shape in shapes.items()}
