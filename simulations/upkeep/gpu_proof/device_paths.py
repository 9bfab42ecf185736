"""What a device must do as the CPU does: checks of single paths, on the card where there is one.

Each check takes the device and raises AssertionError where something is not as it must be. Networks are small, and
convolutions exact (no TF32), so that what differs is the path and not the rounding.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from client.store import Store
from fedmutual.checkpoint import load, save
from fedmutual.config import RunConfig
from fedmutual.device import pick_device
from fedmutual.diffusion import make_process
from fedmutual.learning.batches import fresh, make_batch
from fedmutual.learning.igd import local_steps
from fedmutual.learning.objective import denoising_loss
from fedmutual.learning.peers import Peers, draw_for_steps, freeze
from fedmutual.learning.player import Player, descend, predict
from fedmutual.networks import build
from fedmutual.seeds import generator
from simulations.upkeep.gpu_proof.findings import Piece, Row

SHAPE = (3, 8, 8)

SETTINGS = {"network": "mlp", "width": 32, "depth": 2, "batch": 8, "local-steps": 6, "diffusion-steps": 40, "rounds": 4}

U_NET = {"network": "unet", "width": 8, "depth": 1, "multipliers": "1,2", "attention": "4"}

RUN = "0123456789abcdef"


def pieces() -> list[Piece]:
    """One piece for each check."""

    def measure(check: Check) -> list[Row]:
        config = RunConfig.of(SETTINGS)
        with exact_convolutions():
            check(pick_device(config.compute))
        return [{"path": check.__name__.replace("_", " "), "passed": True}]

    return [Piece("device paths", check.__name__, partial(measure, check)) for check in CHECKS]


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """cuDNN rounds the inputs of float32 convolutions to TF32 unless it is told not to."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def a_step_is_the_step_of_the_cpu(device: torch.device) -> None:
    """The loss and every gradient of one batch, of an MLP and of a U-Net."""
    for network in ({}, U_NET):
        config = RunConfig.of(SETTINGS, network)
        here, there = (_loss_and_gradients(config, place) for place in (torch.device("cpu"), device))
        torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-5)


def _loss_and_gradients(config: RunConfig, device: torch.device) -> list[Tensor]:
    network = build(config, SHAPE, 0).to(device)
    rng = torch.Generator().manual_seed(1)
    x0, noise = torch.randn(8, *SHAPE, generator=rng), torch.randn(8, *SHAPE, generator=rng)
    index, process = torch.arange(8) * 4, make_process(config.diffusion, device)
    batch = make_batch(
        x0.to(device), index.to(device), noise.to(device), Peers(), process, config.diffusion, "one", "none"
    )
    loss = denoising_loss(predict(network, batch.x, batch.t, "none"), batch.target, batch.denoising).mean()
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    return [loss.detach().cpu(), *(gradient.cpu() for gradient in gradients)]


def fused_updates_are_those_of_adam(device: torch.device) -> None:
    """The player's fused optimiser beside PyTorch's plain one in float64 on the CPU, over five given gradients."""
    config = RunConfig.of(SETTINGS, {"learning-rate": 0.01, "clip": 0.0, "schedule": "constant", "ema": 0.5})
    network = build(config, SHAPE, 0).to(device)
    plain = copy.deepcopy(network).cpu().double()
    player = Player.start(network, config.optimiser)
    reference = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.0, fused=False, foreach=False)
    rng = torch.Generator().manual_seed(2)
    for _ in range(5):
        directions = [torch.randn(parameter.shape, generator=rng) for parameter in plain.parameters()]
        descend(player, [tuple(network.parameters())], _along(network, directions), config.optimiser, 100)
        reference.zero_grad()
        torch.autograd.backward(_along(plain, directions))
        reference.step()
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.detach().cpu().double(), theirs.detach(), rtol=1e-5, atol=1e-6)


def _along(network: nn.Module, directions: list[Tensor]) -> Tensor:
    """A loss whose gradient by the parameters is `directions`."""
    terms = [(p * d.to(p)).sum() for p, d in zip(network.parameters(), directions, strict=True)]
    return torch.stack(terms).sum()


def draws_stay_on_the_device_and_follow_the_seed(device: torch.device) -> None:
    """The same seed draws the same batches and another one others; noise has mean 0 and variance 1."""
    config = RunConfig.of(SETTINGS, {"local-steps": 40})
    process, data = make_process(config.diffusion, device), torch.zeros(64, *SHAPE, device=device)
    shares = draw_for_steps([], 0, 40, generator(0))

    def drawn(seed: int) -> tuple[Tensor, Tensor]:
        batches = list(fresh(data, Peers(), shares, process, config, generator(seed, device=device)))
        return torch.cat([batch.target for batch in batches]), torch.cat([batch.t for batch in batches])

    (noise, times), again, other = drawn(1), drawn(1), drawn(2)
    assert noise.device.type == times.device.type == device.type
    assert torch.equal(noise, again[0])
    assert torch.equal(times, again[1])
    assert not torch.equal(noise, other[0])
    assert abs(float(noise.mean())) < 0.02, "noise has a mean"
    assert abs(float(noise.var()) - 1) < 0.02, "noise has another variance than 1"
    assert set(times.tolist()) == set(process.times.tolist()), "some time is never drawn"


def autocast_keeps_parameters_in_float32_and_the_loss_near(device: torch.device) -> None:
    """Steps in bfloat16, against peers that are held in it, beside the same steps in float32."""
    losses = {}
    for autocast in ("none", "bfloat16"):
        config = RunConfig.of(SETTINGS, U_NET, {"autocast": autocast})
        player = Player.start(build(config, SHAPE, 0).to(device), config.optimiser)
        peers = [freeze(build(config, SHAPE, y).to(device), config.compute.autocast) for y in (1, 2)]
        held = torch.bfloat16 if autocast == "bfloat16" else torch.float32
        assert {parameter.dtype for peer in peers for parameter in peer.parameters()} == {held}
        data, process = _data(device), make_process(config.diffusion, device)
        losses[autocast] = local_steps(player, data, Peers(peers, [0.5, 0.5]), config, process, 0, 1)
        assert {parameter.dtype for parameter in player.network.parameters()} == {torch.float32}
    exact, near = losses["none"], losses["bfloat16"]
    assert abs(near.loss - exact.loss) < 0.05 * exact.loss, f"loss {near.loss}, in float32 {exact.loss}"
    assert abs(near.mutual - exact.mutual) < 0.2 * exact.mutual, f"mutual {near.mutual}, in float32 {exact.mutual}"


def _data(device: torch.device) -> Tensor:
    return torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(3)).to(device) * 2 - 1


def peers_in_one_batch_are_peers_one_by_one(device: torch.device) -> None:
    """The mean of the peers' outputs, each on the rows of the steps that drew it."""
    config = RunConfig.of(SETTINGS)
    networks = [freeze(build(config, SHAPE, y).to(device), "none") for y in range(4)]
    shares = draw_for_steps([0.25] * 4, 2, 5, generator(4))
    x, t = torch.randn(40, *SHAPE, device=device), torch.arange(40.0, device=device)
    mean = Peers(networks, [0.25] * 4, shares).mean(x, t)
    with torch.no_grad():
        outputs = torch.stack([network(x, t) for network in networks])
    weights = shares.T.repeat_interleave(8, dim=1).to(outputs)
    torch.testing.assert_close(mean, torch.einsum("pr,pr...->r...", weights, outputs), rtol=1e-4, atol=1e-5)


def a_checkpoint_goes_to_the_cpu_and_back(device: torch.device) -> None:
    """A network that was saved on the device is read on the CPU bit for bit, and the other way round."""
    config = RunConfig.of(SETTINGS, U_NET)
    with TemporaryDirectory() as folder:
        path, place = Path(folder) / "network.safetensors", device
        network = build(config, SHAPE, 0).to(place)
        for _ in range(2):
            state = network.state_dict()
            save(path, state, {})
            place = torch.device("cpu") if place == device else device
            network = build(config, SHAPE, 1).to(place)
            network.load_state_dict(load(path)[0])
            for name, tensor in network.state_dict().items():
                assert torch.equal(tensor.cpu(), state[name].cpu()), f"{name} has changed"


def a_client_goes_on_where_it_was(device: torch.device) -> None:
    """Two rounds equal one round, its state kept by the client's store and restored on this device, and one more.

    So does a round on the CPU from the state that the device has left, up to the other draws there.
    """
    config = RunConfig.of(SETTINGS)
    with TemporaryDirectory() as folder:
        store = Store(Path(folder), RUN, 0)
        through = _rounds(config, device, (1, 2))
        first = _rounds(config, device, (1,))
        with store.locked(10.0):
            store.keep(first, {"class": 0, "attempt": 1, "round": 1, "step": first.step}, 0)
        then = Player.start(build(config, SHAPE, 0).to(device), config.optimiser)
        store.restore(then, 1, 2, 1)
        _rounds(config, device, (2,), then)
        for ours, theirs in zip(then.average, through.average, strict=True):
            assert torch.equal(ours, theirs), "a restored client ends elsewhere"
        here = Player.start(build(config, SHAPE, 0), config.optimiser)
        store.restore(here, 1, 2, 1)
        for ours, theirs in zip(here.average, first.average, strict=True):
            assert torch.equal(ours, theirs.cpu()), "the CPU reads another state"
        assert all(parameter.isfinite().all() for parameter in _rounds(config, torch.device("cpu"), (2,), here).average)


def _rounds(config: RunConfig, device: torch.device, rounds: tuple[int, ...], player: Player | None = None) -> Player:
    player = player or Player.start(build(config, SHAPE, 0).to(device), config.optimiser)
    for round_ in rounds:
        local_steps(player, _data(device), Peers(), config, make_process(config.diffusion, device), 0, round_)
    return player


def flips_mirror_images(device: torch.device) -> None:
    """With mirror images at random, each x_0 in a batch is an image or its mirror image, about half of each."""
    config = RunConfig.of(SETTINGS, {"flips": True, "local-steps": 50})
    process = make_process(config.diffusion, device)
    silent = replace(process, alpha=torch.ones_like(process.alpha), sigma=torch.zeros_like(process.sigma))
    data, shares = _data(device)[:1], draw_for_steps([], 0, 50, generator(0))
    x = torch.cat([b.x for b in fresh(data, Peers(), shares, silent, config, generator(5, device=device))])
    mirrored = (x == data.flip(-1)).flatten(1).all(1)
    assert bool((mirrored | (x == data).flatten(1).all(1)).all())
    assert 0.35 < float(mirrored.float().mean()) < 0.65


def memory_does_not_grow(device: torch.device) -> None:
    """Rounds after the second need no more of the card than it."""
    if device.type != "cuda":
        return
    config, player, used = RunConfig.of(SETTINGS), None, []
    for round_ in range(1, 6):
        player = _rounds(config, device, (round_,), player)
        used.append(torch.cuda.memory_allocated(device))
    assert all(later <= earlier for earlier, later in pairwise(used[1:])), f"bytes after each round: {used}"


Check = Callable[[torch.device], None]

CHECKS: tuple[Check, ...] = (
    a_step_is_the_step_of_the_cpu,
    fused_updates_are_those_of_adam,
    draws_stay_on_the_device_and_follow_the_seed,
    autocast_keeps_parameters_in_float32_and_the_loss_near,
    peers_in_one_batch_are_peers_one_by_one,
    a_checkpoint_goes_to_the_cpu_and_back,
    a_client_goes_on_where_it_was,
    flips_mirror_images,
    memory_does_not_grow,
)
