"""`reweighted`: as `pooled`, but each sample of a batch comes from a class drawn evenly (class-balanced sampling)."""

from fedmutual.baselines import Data, OnRound, Trained, ignore
from fedmutual.baselines.pooled import train_conditional
from fedmutual.config import RunConfig
from fedmutual.learning.conditional import by_class, denoising


def reweighted(config: RunConfig, data: Data, on_round: OnRound = ignore) -> Trained:
    return train_conditional(config, data, by_class, denoising, on_round)
