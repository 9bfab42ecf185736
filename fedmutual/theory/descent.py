"""Individual gradient descent (the paper's Algorithm 1) in Gram form, for a batch of games at once.

Every round each player takes E steps on its own objective against its peers' last published networks, then
all publish. E = 1 with all peers is simultaneous gradient descent; one step is two small matrix products a
game, whatever the number of samples.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmutual.seeds import generator
from fedmutual.theory.game import Game, stack, unstack

Optimiser = Callable[[Tensor, Tensor], None]
"""(A, gradient) -> None: updates the profile A in place."""


@dataclass(frozen=True)
class Path:
    """What a run leaves behind.

    last, best: [*batch, K, d, m], the final iterate and, for each game, the published one with the smallest
    max_y ||gradient_y||, which is the output of Algorithm 1. profiles: {round: iterate} at the rounds of `record`.
    """

    last: Tensor
    best: Tensor
    profiles: dict[int, Tensor]


def gradient_descent(rate: float | Tensor) -> Optimiser:
    """A <- A - rate gradient; `rate` a number or one for each game, broadcastable to [*batch, K, d, m]."""

    def step(A: Tensor, gradient: Tensor) -> None:
        A.sub_(rate * gradient)

    return step


def adam(rate: float, decay: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8) -> Optimiser:
    """Adam (Kingma and Ba, 2015); each parameter of each game keeps its own state.

    m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g²,  A <- A - rate (m / (1 - b1^k)) / (sqrt(v / (1 - b2^k)) + epsilon)

    Not torch.optim.Adam, whose step takes 2.5 times as long on 300 small games (130 against 52 microseconds on one
    thread) and rounds sqrt(v / (1 - b2^k)) otherwise: the two agree to 3e-16, not bit for bit.
    """
    state: dict[str, Tensor] = {}
    count = 0

    def step(A: Tensor, gradient: Tensor) -> None:
        nonlocal count
        if not state:
            state.update(mean=torch.zeros_like(A), square=torch.zeros_like(A))
        count += 1
        state["mean"].lerp_(gradient, 1 - decay[0])
        state["square"].mul_(decay[1]).addcmul_(gradient, gradient, value=1 - decay[1])
        scale = (state["square"] / (1 - decay[1] ** count)).sqrt_().add_(epsilon)
        A.addcdiv_(state["mean"], scale, value=-rate / (1 - decay[0] ** count))

    return step


def stable_rate(game: Game) -> Tensor:
    """1 / ||Jacobian||_2 of each game, [*batch, 1, 1, 1]: gradient descent is stable at it where beta is small."""
    norm: Tensor = torch.linalg.matrix_norm(game.jacobian, 2) * 2 / game.dimension
    return (1 / norm)[..., None, None, None]


def descend(
    game: Game,
    optimiser: Optimiser,
    rounds: int,
    local_steps: int = 1,
    peers: Callable[[int], Tensor] | None = None,
    record: Iterable[int] = (),
    start: Tensor | None = None,
) -> Path:
    """`rounds` rounds of IGD from `start` (untrained where not given).

    peers: round -> weights [*batch, K, K] in place of Q for that round, see `sampled_peers`.
    """
    published = (game.untrained if start is None else start.expand_as(game.untrained)).clone()
    best, smallest = published.clone(), torch.full(published.shape[:-3], torch.inf, dtype=published.dtype)
    kept = set(record)
    profiles = {0: published.clone()} if 0 in kept else {}
    A, classes, factor = published.clone(), published.shape[-3], 2 / game.dimension
    transposed = game.coupling.mT.contiguous()
    for number in range(1, rounds + 1):
        coupling = transposed if peers is None else _reweighted(game, peers(number)).mT
        linear = game.moments.target - unstack(stack(published) @ coupling, classes)
        for local in range(local_steps):
            gradient = (A @ game.hessian).add_(linear).mul_(factor)
            if local == 0:  # here A is what everybody published, so this is the game's own gradient
                steepest = gradient.flatten(-2).norm(dim=-1).amax(-1)
                better = steepest < smallest
                smallest = torch.where(better, steepest, smallest)
                best = torch.where(better[..., None, None, None], A, best)
            optimiser(A, gradient)
        published = A.clone() if local_steps > 1 else A
        if number in kept:
            profiles[number] = A.clone()
    last_gradient = game.gradient(A).flatten(-2).norm(dim=-1).amax(-1)
    best = torch.where((last_gradient < smallest)[..., None, None, None], A, best)
    return Path(A, best, profiles)


def _reweighted(game: Game, Q: Tensor) -> Tensor:
    """The game's coupling with this round's peers in place of Q, [*batch, K m, K m]."""
    weight = game.beta[..., None] * Q
    return (weight[..., :, None, :, None] * game.moments.cross).flatten(-4, -3).flatten(-2)


def sampled_peers(Q: Tensor, count: int, seeds: list[int]) -> Callable[[int], Tensor]:
    """Each round every player of every game hears `count` peers, drawn from Q_y without replacement.

    Q: [K, K]. Returns round -> [len(seeds), K, K], Q restricted to the drawn peers and normalised: with
    count = K - 1 it is Q itself, with count = 1 its mean over rounds is Q. The generator is derived from
    (seed, class, round), so a game's draws do not depend on the batch that it is in.
    """
    classes = Q.shape[-1]
    if not 1 <= count < classes:
        raise ValueError(f"peers per round must be between 1 and {classes - 1}, not {count}")

    def draw(number: int) -> Tensor:
        heard = torch.zeros(len(seeds), classes, classes, dtype=Q.dtype)
        for game, seed in enumerate(seeds):
            for y in range(classes):
                available = min(count, int((Q[y] > 0).sum()))
                random = generator(seed, y, number, "peers")
                chosen = torch.multinomial(Q[y], available, replacement=False, generator=random)
                heard[game, y, chosen] = Q[y, chosen]
        return heard / heard.sum(-1, keepdim=True)

    return draw
