"""Individual gradient descent: one player's local steps against frozen peers (the paper's Algorithm 1).

theta_y <- theta_y - eta grad_{theta_y} [ L_y + beta_y M_y ](theta_y, theta_-y)

Peers do not move within a call, so their outputs are computed for many steps in one large batch, and a step
is the player's own forward and backward alone. With `peers-per-step` each step sees peers drawn by Q, which leaves the
gradient unbiased, for it is linear in the mean of the peers. Numbers leave the device once a call.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedmutual.config import RunConfig, UserError
from fedmutual.diffusion import Process, ddpm, ornstein_uhlenbeck
from fedmutual.diffusion.process import expand
from fedmutual.learning.objective import denoising_loss, denoising_target, mutual_loss
from fedmutual.learning.peers import draw_for_steps
from fedmutual.seeds import derive, generator

BLOCK = 2**18
"""Numbers of x_t drawn, and shown to the peers, at once: 128 steps of batch 32 on 8x8 images."""

PASS = 2**16
"""Numbers that go through a peer at once on a CPU: a U-Net's activations for more fall out of the cache."""

HELD_OUT_TIMES = 10

NO_STEPS = "local-steps = 0 is for separate machines, whose server finds the number: give one here, such as 200"


class Diverged(RuntimeError):
    """The loss or its gradient stopped being finite; says for which class, round and step."""


@dataclass
class Player:
    """One class's state between rounds: network theta_y, optimiser, averaged parameters, steps taken."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    average: list[Tensor]
    step: int = 0

    @classmethod
    def start(cls, network: nn.Module, config: RunConfig) -> "Player":
        parameters = list(network.parameters())
        options = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
        if config.optimizer == "adam":
            optimizer = torch.optim.AdamW(parameters, fused=True, **options)  # Adam where nothing decays
        else:
            optimizer = torch.optim.SGD(parameters, **options)
        return cls(network, optimizer, [parameter.detach().clone() for parameter in parameters])

    def published(self) -> dict[str, Tensor]:
        """The network that peers receive and samples come from: averaged parameters, and buffers as they are."""
        names = [name for name, _ in self.network.named_parameters()]
        return {**self.network.state_dict(), **dict(zip(names, self.average, strict=True))}


def predict(network: nn.Module, x: Tensor, t: Tensor, autocast: bool) -> Tensor:
    """s(x, t) in the dtype of `x: [batch, *dims]`, worked out in bfloat16 under `autocast`."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        return network(x, t).to(x.dtype)


def freeze(network: nn.Module, config: RunConfig) -> nn.Module:
    """`network` as a peer, in place: evaluation mode, no gradients, parameters in the type that it runs in."""
    network.eval().requires_grad_(False)
    if config.autocast == "bfloat16":
        for parameter in network.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    return network


@dataclass(frozen=True)
class Peers:
    """The frozen networks that one player sees, and their weights Q_y, which sum to 1.

    `shares: [steps, peers]`, on the CPU, are the weights in each of several steps, where they are not Q in all.
    """

    networks: Sequence[nn.Module] = ()
    weights: Sequence[float] = ()
    shares: Tensor | None = None

    @torch.no_grad()
    def mean(self, x: Tensor, t: Tensor, autocast: bool = False) -> Tensor | None:
        """E_Q s_{y'}(x, t), the shape of `x: [rows, *dims]`; None when there are no peers.

        With `shares` the rows are those of their steps in turn, and a peer runs on the rows of the steps in which
        it has a share.
        """
        if not self.networks:
            return None
        shares = torch.tensor([self.weights], dtype=torch.float64) if self.shares is None else self.shares
        size, total = len(x) // len(shares), torch.zeros_like(x)
        parts = [(x[row : row + size], t[row : row + size], total[row : row + size]) for row in range(0, len(x), size)]
        at_once = max(1, (PASS if x.device.type == "cpu" else BLOCK) // (size * x[0].numel()))
        for network, weights in zip(self.networks, shares.T.tolist(), strict=True):
            drawn = [(weight, *part) for weight, part in zip(weights, parts, strict=True) if weight]
            for start in range(0, len(drawn), at_once):
                weight, rows, times, totals = zip(*drawn[start : start + at_once], strict=True)
                outputs = predict(network, torch.cat(rows), torch.cat(times), autocast).split(size)
                torch._foreach_add_(totals, torch._foreach_mul(outputs, weight))
        return total


@dataclass(frozen=True)
class Steps:
    """What a call of `local_steps` measured: means over its steps, each of them before the update."""

    loss: float
    mutual: float
    gradient_norm: float


class Batch(NamedTuple):
    """One step's inputs: `x, target, peer_mean: [batch, *dims]`, `t, denoising, mutual: [batch]` (weights)."""

    x: Tensor
    t: Tensor
    target: Tensor
    peer_mean: Tensor | None
    denoising: Tensor
    mutual: Tensor


def make_process(config: RunConfig, device: torch.device | str = "cpu") -> Process:
    """The process of the settings, its tables on `device` in the run's dtype."""
    if config.process == "ddpm":
        process = ddpm(config.diffusion_steps)
    else:
        process = ornstein_uhlenbeck(config.horizon, config.stop, config.diffusion_steps)
    return process.to(device, getattr(torch, config.dtype))


def effective_beta(config: RunConfig, count: int) -> float:
    """beta_y by the rule: beta, or beta r / (r + n_y), which spares a class with many samples its peers' pull."""
    if config.beta_rule == "constant":
        return config.beta
    return config.beta * config.scarcity / (config.scarcity + count)


def learning_rate(config: RunConfig, step: int) -> float:
    """eta at a step counted from 0 over the whole run: linear warm-up, then constant or a half cosine to 0."""
    rate = config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup))
    if config.schedule == "cosine":
        rate *= (1 + math.cos(math.pi * step / (config.rounds * config.local_steps))) / 2
    return rate


def _batch(
    x0: Tensor,
    index: Tensor,
    noise: Tensor,
    peers: Peers,
    process: Process,
    config: RunConfig,
) -> Batch:
    """The inputs of one or more steps, flat over them: `x0, noise: [rows, *dims]`, `index: [rows]`."""
    x, t = process.noised(x0, index, noise), process.times[index]
    alpha, sigma = expand(process.alpha[index], x0), expand(process.sigma[index], x0)
    target = denoising_target(config.parametrisation, x0, noise, alpha, sigma)
    denoising, mutual = (process.weight(name)[index] for name in (config.lambda_weight, config.omega_weight))
    mean = peers.mean(x, t, config.autocast == "bfloat16")
    return Batch(x, t, target, mean, denoising, mutual)


def blocks(config: RunConfig, numbers: int) -> Iterator[tuple[int, int]]:
    """(first step, steps) of the blocks that `config.local_steps` are drawn in; `numbers` in one sample."""
    size = max(1, BLOCK // (config.batch * numbers))
    for start in range(0, config.local_steps, size):
        yield start, min(size, config.local_steps - start)


def noised(x0: Tensor, peers: Peers, process: Process, config: RunConfig, rng: torch.Generator) -> Iterator[Batch]:
    """The batches of some steps on their samples `x0: [steps * batch, *dims]`, each at a time and noise of its own."""
    options = {"generator": rng, "device": x0.device}
    if config.flips:
        mirrored = torch.rand(len(x0), **options) < 0.5
        x0 = torch.where(expand(mirrored, x0), x0.flip(-1), x0)
    index = torch.randint(len(process), (len(x0),), **options)
    noise = torch.randn(x0.shape, dtype=x0.dtype, **options)
    flat = _batch(x0, index, noise, peers, process, config)
    steps = len(x0) // config.batch
    chunks = [part.split(config.batch) if part is not None else [None] * steps for part in flat]
    yield from map(Batch._make, zip(*chunks, strict=True))


def _fresh(
    data: Tensor,
    peers: Peers,
    process: Process,
    config: RunConfig,
    rng: torch.Generator,
    shares: Tensor,
) -> Iterator[Batch]:
    """Every step draws its own samples, times and noise; drawn and shown to the peers a block of steps at a time.

    `shares: [local_steps, peers]` says how much each peer counts in each step.
    """
    for start, steps in blocks(config, data[0].numel()):
        rows = torch.randint(len(data), (steps * config.batch,), generator=rng, device=data.device)
        seen = replace(peers, shares=shares[start : start + steps])
        yield from noised(data[rows], seen, process, config, rng)


def _fixed(
    data: Tensor,
    peers: Peers,
    process: Process,
    config: RunConfig,
    rng: torch.Generator,
) -> Iterator[Batch]:
    """Every step sees all samples at all times, with noise [N, n, *dims] drawn once for the whole run."""
    times, count = len(process), len(data)
    noise = torch.randn(times, *data.shape, dtype=data.dtype, device=data.device, generator=rng).flatten(0, 1)
    index = torch.arange(times, device=data.device).repeat_interleave(count)
    x0 = data.repeat(times, *(1 for _ in data.shape[1:]))
    batch = _batch(x0, index, noise, peers, process, config)
    for _ in range(config.local_steps):
        yield batch


def local_steps(
    player: Player,
    data: Tensor,
    peers: Peers,
    config: RunConfig,
    process: Process,
    y: int,
    round_: int,
) -> Steps:
    """`config.local_steps` steps of class y on its own `data: [n, *dims]`, in place.

    Without peers the mutual term is 0. Randomness: (seed, y, round, "steps") and, for the peers of each step,
    (seed, y, round, "peer-steps"); or (seed, y, 0, "noise") for fixed draws.

    Raises:
        UserError: no number of steps is given.
        Diverged: at the first step whose loss or gradient is not finite; the player is then spoilt.
    """
    if not config.local_steps:
        raise UserError(NO_STEPS)
    beta = effective_beta(config, len(data))
    if config.draws == "fixed":
        batches = _fixed(data, peers, process, config, generator(config.seed, y, 0, "noise", device=data.device))
    else:
        rng = generator(config.seed, y, round_, "steps", device=data.device)
        chance = generator(config.seed, y, round_, "peer-steps")
        shares = draw_for_steps(peers.weights, config.peers_per_step, config.local_steps, chance)
        batches = _fresh(data, peers, process, config, rng, shares)
    parameters = list(player.network.parameters())
    measured = []
    player.network.train()
    with torch.random.fork_rng(devices=[data.device] if data.is_cuda else []):
        torch.manual_seed(derive(config.seed, y, round_, "dropout"))
        for batch in batches:
            measured.append(_step(player, parameters, batch, beta, config))
    return means(measured, f"class {y}, round {round_}")


def means(measured: Sequence[tuple[Tensor, Tensor, Tensor]], where: str) -> Steps:
    """What steps measured (loss, mutual term, gradient norm), read off the device at once.

    Raises:
        Diverged: at the first step of which something is not finite.
    """
    loss, mutual, norm = (torch.stack(column).double().cpu() for column in zip(*measured, strict=True))
    finite = loss.isfinite() & mutual.isfinite() & norm.isfinite()
    if not finite.all():
        raise Diverged(f"{where}, local step {int(finite.long().argmin()) + 1}: the loss is no longer finite")
    return Steps(float(loss.mean()), float(mutual.mean()), float(norm.mean()))


def _step(player: Player, parameters: list[Tensor], batch: Batch, beta: float, config: RunConfig) -> tuple[Tensor, ...]:
    """One update; returns (denoising loss, mutual loss, gradient norm before clipping) as scalars on the device."""
    output = predict(player.network, batch.x, batch.t, config.autocast == "bfloat16")
    own = denoising_loss(output, batch.target, batch.denoising).mean()
    alone = batch.peer_mean is None
    pull = own.new_zeros(()) if alone else mutual_loss(output, batch.peer_mean, batch.mutual).mean()
    norm = descend(player, parameters, own + beta * pull, config)
    return own.detach(), pull.detach(), norm


def descend(player: Player, parameters: list[Tensor], loss: Tensor, config: RunConfig) -> Tensor:
    """One update of the player along the gradient of `loss`: clip, optimiser, average; the norm before clipping."""
    player.optimizer.zero_grad()
    loss.backward()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if config.clip:
        nn.utils.clip_grads_with_norm_(parameters, config.clip, norm)
    for group in player.optimizer.param_groups:
        group["lr"] = learning_rate(config, player.step)
    player.optimizer.step()
    # A young average forgets its random start quickly, as in diffusers' EMAModel.
    decay = min(config.ema, (1 + player.step) / (10 + player.step))
    with torch.no_grad():
        torch._foreach_lerp_(player.average, parameters, 1 - decay)
    player.step += 1
    return norm


@torch.no_grad()
def held_out_loss(network: nn.Module, data: Tensor, config: RunConfig, process: Process, y: int) -> float:
    """The denoising loss on samples kept from training, each at `HELD_OUT_TIMES` times spread over the process.

    The draws are the same in every round, (seed, y, 0, "held-out"), so that rounds compare.
    """
    network.eval()
    times = torch.linspace(0, len(process) - 1, HELD_OUT_TIMES, device=data.device).round().long()
    rng = generator(config.seed, y, 0, "held-out", device=data.device)
    noise = torch.randn(HELD_OUT_TIMES, *data.shape, dtype=data.dtype, device=data.device, generator=rng)
    losses = []
    for index, xi in zip(times, noise, strict=True):
        batch = _batch(data, index.expand(len(data)), xi, Peers(), process, config)
        output = predict(network, batch.x, batch.t, config.autocast == "bfloat16")
        losses.append(denoising_loss(output, batch.target, batch.denoising).mean())
    return float(torch.stack(losses).mean())
