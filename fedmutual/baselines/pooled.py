"""`pooled`: one class-conditional diffusion model on all samples in one place, what sharing no data is measured by.

Ho, Jain and Abbeel (2020) with a label. K classes make K times the steps of one class's network at the same
batch, so that as many samples are seen in all; a class is seen as often as it has samples.
"""

from fedmutual.baselines import Data, OnRound, Trained, ignore
from fedmutual.config import RunConfig
from fedmutual.device import dtype_of
from fedmutual.diffusion import make_process
from fedmutual.learning.conditional import Draw, Loss, Pool, by_sample, conditional_steps, denoising
from fedmutual.learning.keeping import end_round
from fedmutual.learning.player import Player
from fedmutual.networks import OfClass, build_conditional


def pooled(config: RunConfig, data: Data, on_round: OnRound = ignore) -> Trained:
    return train_conditional(config, data, by_sample, denoising, on_round)


def train_conditional(config: RunConfig, data: Data, draw: Draw, loss: Loss, on_round: OnRound) -> Trained:
    """One conditional network trained on `draw` and `loss`; its averaged parameters under the name `shared`."""
    classes, device = len(data), data[0].train.device
    together = config.but(local_steps=classes * config.local_steps)
    process = make_process(config.diffusion, device, dtype_of(config.compute))
    pool = Pool.of([part.train for part in data])
    player = Player.start(
        build_conditional(config, tuple(pool.samples.shape[1:]), classes).to(device), config.optimiser
    )
    held_out = {y: part.held_out for y, part in enumerate(data)}
    for round_ in range(1, config.rounds + 1):
        conditional_steps(player, pool, draw, loss, together, process, round_)
        told = end_round(player, held_out, config, process, round_, OfClass)
        on_round(round_, [{"class": y, "held_out": told.get(y)} for y in range(classes)])
    return Trained({"shared": player.published()}, config.rounds * config.local_steps)
