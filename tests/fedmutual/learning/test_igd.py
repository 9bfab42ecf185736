import copy
import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedmutual.config import RunConfig
from fedmutual.device import dtype_of
from fedmutual.diffusion import make_process
from fedmutual.diffusion.process import expand
from fedmutual.learning import batches, peers
from fedmutual.learning.held_out import held_out_loss
from fedmutual.learning.igd import Diverged, local_steps
from fedmutual.learning.objective import denoising_loss, denoising_target, mutual_loss
from fedmutual.learning.peers import Peers, draw_for_steps, effective_beta, freeze
from fedmutual.learning.player import Player, learning_rate
from fedmutual.networks import build
from fedmutual.seeds import derive, generator

SHAPE = (1, 4, 4)


def config(**settings):
    base = {"width": 16, "depth": 2, "batch": 8, "diffusion-steps": 25, "local-steps": 6, "rounds": 3}
    return RunConfig.of(base, {key.replace("_", "-"): value for key, value in settings.items()})


def process_of(settings):
    return make_process(settings.diffusion, dtype=dtype_of(settings.compute))


def player_of(settings, y=0):
    return Player.start(build(settings, SHAPE, y), settings.optimiser)


def peers_of(settings):
    return Peers([freeze(build(settings, SHAPE, y), settings.compute.autocast) for y in (1, 2)], [0.25, 0.75])


@pytest.fixture
def data():
    return torch.rand(10, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_losses_are_weighted_mean_squares_one_an_example():
    output, target = torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]]), torch.tensor([[[0.0, 0.0]], [[3.0, 4.0]]])
    weight = torch.tensor([2.0, 10.0])
    torch.testing.assert_close(denoising_loss(output, target, weight), torch.tensor([5.0, 125.0]))
    torch.testing.assert_close(mutual_loss(output, target, weight), torch.tensor([5.0, 125.0]))


def test_no_gradient_flows_into_the_peers():
    output, peer = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    mutual_loss(output, peer, torch.ones(2)).sum().backward()
    assert peer.grad is None
    assert output.grad is not None


def test_score_noise_and_velocity_targets_are_one_target():
    """eps = -sigma s = sigma x + alpha v, so lambda on the noise is lambda sigma² on the score, alpha² on v."""
    x0, noise, output = torch.randn(3, 5, 3, dtype=torch.float64)
    sigma = torch.rand(5, 1, dtype=torch.float64) * 0.8 + 0.1
    alpha = (1 - sigma**2).sqrt()
    x = alpha * x0 + sigma * noise

    def loss(parametrisation, estimate, weight):
        target = denoising_target(parametrisation, x0, noise, alpha, sigma)
        return denoising_loss(estimate, target, weight.expand(5, 1)[:, 0])

    by_noise = loss("noise", output, torch.ones(1))
    torch.testing.assert_close(loss("score", -output / sigma, sigma**2), by_noise)
    torch.testing.assert_close(loss("velocity", (output - sigma * x) / alpha, alpha**2), by_noise)


@pytest.mark.parametrize(
    ("optimizer", "peers_per_step", "parametrisation"),
    [("adam", 0, "noise"), ("sgd", 0, "noise"), ("adam", 1, "noise"), ("adam", 0, "velocity")],
)
def test_steps_are_those_of_a_plain_loop(data, optimizer, peers_per_step, parametrisation):
    """The same draws through a loop as one would write it: per-step peers, torch's own clip, average and optimiser."""
    settings = config(optimizer=optimizer, beta=0.7, beta_rule="constant", warmup=4, clip=0.3, ema=0.9, dtype="float64")
    settings = settings.but(peers_per_step=peers_per_step, parametrisation=parametrisation)
    data, process, peers = data.double(), process_of(settings), peers_of(settings)
    player = player_of(settings)
    network = copy.deepcopy(player.network)
    measured = local_steps(player, data, peers, settings, process, y=0, round_=1)

    rng = generator(settings.seed, 0, 1, "steps")
    rows = 6 * 8
    x0 = data[torch.randint(10, (rows,), generator=rng)]
    index = torch.randint(25, (rows,), generator=rng)
    noise = torch.randn(x0.shape, dtype=x0.dtype, generator=rng)
    kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer]
    stepper = kind(network.parameters(), lr=1.0)
    average = [parameter.detach().clone() for parameter in network.parameters()]
    losses = []
    points = torch.rand(6, dtype=torch.float64, generator=generator(settings.seed, 0, 1, "peer-steps")).tolist()
    assert min(points) < 0.25 < max(points)  # both peers are drawn
    for step in range(6):
        rows = slice(8 * step, 8 * step + 8)
        j, xi = index[rows], noise[rows]
        alpha, sigma = expand(process.alpha[j], xi), expand(process.sigma[j], xi)
        x = alpha * x0[rows] + sigma * xi
        target = xi if parametrisation == "noise" else alpha * xi - sigma * x0[rows]
        t = process.times[j]
        output = network(x, t)
        if peers_per_step:
            mean = peers.networks[int(points[step] >= 0.25)](x, t)
        else:
            mean = 0.25 * peers.networks[0](x, t) + 0.75 * peers.networks[1](x, t)
        own = (output - target).square().mean((1, 2, 3)).mean()
        pull = ((t / 25) * (output - mean).square().mean((1, 2, 3))).mean()
        stepper.zero_grad()
        (own + 0.7 * pull).backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), 0.3)
        losses.append((own.item(), pull.item(), norm.item()))
        stepper.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 4) * (1 + math.cos(math.pi * step / 18)) / 2
        stepper.step()
        decay = min(0.9, (1 + step) / (10 + step))
        average = [decay * a + (1 - decay) * p.detach() for a, p in zip(average, network.parameters(), strict=True)]
    for ours, theirs in zip(player.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(player.average, average, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    loss, pull, norm = (sum(column) / 6 for column in zip(*losses, strict=True))
    assert (measured.loss, measured.mutual, measured.gradient_norm) == pytest.approx((loss, pull, norm), rel=1e-9)
    assert player.step == 6


@pytest.mark.parametrize(("weights", "count"), [([0.25, 0.75], 1), ([1 / 9] * 9, 3), ([0.1, 0.2, 0.3, 0.4], 2)])
def test_peers_of_a_step_are_drawn_by_q_in_the_mean(weights, count):
    shares = draw_for_steps(weights, count, 20_000, generator(0))
    q = torch.tensor(weights, dtype=torch.float64)
    torch.testing.assert_close(shares.sum(1), torch.ones(20_000, dtype=torch.float64))
    assert torch.all((shares > 0).sum(1) == count)  # nobody here has more of Q than one draw's share
    spread = (shares.std(0) / math.sqrt(20_000)).clamp(min=1e-12)
    assert torch.all((shares.mean(0) - q).abs() < 4 * spread)


def test_a_peer_with_most_of_q_is_met_more_than_once_in_a_step():
    shares = draw_for_steps([0.8, 0.1, 0.1], 2, 1000, generator(0))
    assert set(shares[:, 0].tolist()) == {0.5, 1.0}


def test_the_gradient_by_a_drawn_peer_is_that_of_all_peers_in_the_mean(data):
    """sum_j Q(j) grad by peer j alone = grad by the mean of the peers, on the same rows."""
    settings = config(dtype="float64")
    data, peers, network = data.double(), peers_of(settings), build(settings, SHAPE, 0)
    t, weight = torch.arange(10, dtype=torch.float64), torch.rand(10, dtype=torch.float64)

    def gradient(shares):
        mean = Peers(peers.networks, peers.weights, torch.tensor([shares], dtype=torch.float64)).mean(data, t)
        pull = mutual_loss(network(data, t), mean, weight).mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(pull, list(network.parameters()))])

    drawn = 0.25 * gradient([1.0, 0.0]) + 0.75 * gradient([0.0, 1.0])
    torch.testing.assert_close(drawn, gradient([0.25, 0.75]), rtol=1e-12, atol=1e-14)
    assert (gradient([1.0, 0.0]) - drawn).norm() > 0.01 * drawn.norm()


def test_as_many_peers_a_step_as_there_are_is_all_of_them_bit_for_bit(data):
    trained = []
    for count in (0, 2, 7, 1):
        settings = config(peers_per_step=count)
        player = player_of(settings)
        local_steps(player, data, peers_of(settings), settings, process_of(settings), 0, 1)
        trained.append(player.published()["outer.weight"])
    assert torch.equal(trained[0], trained[1])
    assert torch.equal(trained[0], trained[2])
    assert not torch.equal(trained[0], trained[3])


def test_a_drawn_peer_runs_on_its_own_steps_alone(data):
    """What a step with one peer costs does not grow with the number of peers: rows that went through networks."""
    rows = []

    class Counting(nn.Module):
        def forward(self, x, t):
            rows.append(len(x))
            return x

    for count, expected in ((1, 6 * 8), (2, 2 * 6 * 8), (0, 9 * 6 * 8)):
        settings = config(peers_per_step=count)
        rows.clear()
        peers = Peers([Counting() for _ in range(9)], [1 / 9] * 9)
        local_steps(player_of(settings), data, peers, settings, process_of(settings), 0, 1)
        assert sum(rows) == expected


def test_bfloat16_runs_networks_alone_in_it(data):
    """Outputs are those of float32 to bfloat16's 3 digits; parameters, averages and losses stay float32."""
    plain, fast = config(), config(autocast="bfloat16")
    peers = peers_of(fast)
    assert {parameter.dtype for parameter in peers.networks[0].parameters()} == {torch.bfloat16}
    t = torch.arange(10.0)
    mean = peers.mean(data, t, "bfloat16")
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean, peers_of(plain).mean(data, t), rtol=0.03, atol=0.03)
    steps = {}
    for settings in (plain, fast):
        player = player_of(settings)
        steps[settings.compute.autocast] = local_steps(
            player, data, peers_of(settings), settings, process_of(settings), 0, 1
        )
        assert {tensor.dtype for tensor in player.published().values()} == {torch.float32}
    assert steps["bfloat16"].loss == pytest.approx(steps["none"].loss, rel=0.02)
    assert steps["bfloat16"].mutual == pytest.approx(steps["none"].mutual, rel=0.05)
    assert steps["bfloat16"] != steps["none"]


def test_nothing_waits_for_the_device_within_a_round(data):
    """Numbers read off the device (`.item()` and the like) are as many for 3 steps as for 12."""

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += function.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
            return function(*args, **(kwargs or {}))

    counts = []
    for steps in (3, 12):
        settings = config(local_steps=steps, peers_per_step=1)
        player, peers, process = player_of(settings), peers_of(settings), process_of(settings)
        with Reads() as reads:
            local_steps(player, data, peers, settings, process, 0, 1)
        counts.append(reads.count)
    assert counts[0] == counts[1] > 0


def test_fixed_draws_descend_the_whole_empirical_loss(data):
    """One noise draw for each (time, sample): with SGD the loss over all pairs falls at every step."""
    settings = config(
        draws="fixed", optimizer="sgd", learning_rate=0.05, schedule="constant", clip=0.0, ema=0.0, local_steps=1
    )
    process, player = process_of(settings), player_of(settings)
    losses = [local_steps(player, data, Peers(), settings, process, 0, round_).loss for round_ in range(1, 8)]
    assert losses == sorted(losses, reverse=True)
    noise = torch.randn(25, *data.shape, generator=generator(settings.seed, 0, 0, "noise"))
    fresh = build(settings, SHAPE, 0)
    by_hand = torch.stack(
        [
            (fresh(process.alpha[j] * data + process.sigma[j] * noise[j], process.times[j].expand(10)) - noise[j])
            .square()
            .mean()
            for j in range(25)
        ]
    ).mean()
    assert losses[0] == pytest.approx(by_hand.item(), rel=1e-5)


@pytest.mark.parametrize("passes", [1, 2**16])
@pytest.mark.parametrize("peers_per_step", [0, 1])
@pytest.mark.parametrize("block", [1, 2 * 8 * 16, 2**18])
def test_blocks_cover_every_step_once_with_its_own_peers(data, monkeypatch, block, peers_per_step, passes):
    """Five steps in blocks of one, of two (the last one short), and all at once; peers on one step or all."""
    monkeypatch.setattr(batches, "BLOCK", block)
    monkeypatch.setattr(peers, "PASS", passes)
    settings, rows = config(local_steps=5), []
    known, process = peers_of(settings), process_of(settings)
    for network in known.networks:
        network.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    shares = draw_for_steps(known.weights, peers_per_step, 5, generator(1))
    steps = list(batches.fresh(data, known, shares, process, settings, generator(0)))
    assert len(steps) == 5
    together = {1: 1, 2 * 8 * 16: 2, 2**18: 5}[block] if passes > 1 else 1
    if not peers_per_step:
        assert max(rows) == 8 * together, "the block, and what goes through a peer at once, are those set here"
    for batch, weights in zip(steps, shares.tolist(), strict=True):
        assert batch.x.shape == (8, *SHAPE)
        mean = sum(w * network(batch.x, batch.t) for w, network in zip(weights, known.networks, strict=True))
        torch.testing.assert_close(batch.peer_mean, mean, rtol=1e-4, atol=1e-6)
    assert len({float(batch.x.sum()) for batch in steps}) == 5


def test_rounds_and_classes_draw_differently(data):
    settings = config()
    process = process_of(settings)
    losses = set()
    for y, round_ in ((0, 1), (0, 2), (1, 1)):
        losses.add(local_steps(player_of(settings), data, Peers(), settings, process, y, round_).loss)
    assert len(losses) == 3


def test_published_network_is_the_average_and_the_iterate_without_one(data):
    for ema in (0.0, 0.9):
        settings = config(ema=ema)
        player = player_of(settings)
        local_steps(player, data, Peers(), settings, process_of(settings), 0, 1)
        same = all(torch.equal(player.published()[name], p) for name, p in player.network.named_parameters())
        assert same == (ema == 0.0)
        assert player.published().keys() == player.network.state_dict().keys()


def test_scarcity_spares_the_head_and_constant_does_not():
    scarce, constant = config(beta=2.0, scarcity=10.0), config(beta=2.0, beta_rule="constant")
    assert effective_beta(scarce.mutual, 10) == pytest.approx(1.0)
    assert effective_beta(scarce.mutual, 990) == pytest.approx(0.02)
    assert effective_beta(constant.mutual, 990) == 2.0
    assert effective_beta(config(beta=0.0).mutual, 5) == 0.0


def test_learning_rate_warms_up_then_falls_to_zero():
    cosine, constant = (config(learning_rate=0.1, warmup=4, schedule=name).optimiser for name in ("cosine", "constant"))
    assert [learning_rate(constant, k, 18) for k in (0, 1, 3, 9)] == pytest.approx([0.025, 0.05, 0.1, 0.1])
    assert learning_rate(cosine, 18, 18) == pytest.approx(0.0)
    assert learning_rate(cosine, 9, 18) == pytest.approx(0.05)


@pytest.mark.parametrize("poison", ["data", "rate"])
def test_divergence_names_class_round_and_step(data, poison):
    settings = config(optimizer="sgd", clip=0.0, learning_rate=1e30 if poison == "rate" else 1e-3)
    if poison == "data":
        data[3] = float("nan")
    with pytest.raises(Diverged, match=r"class 2, round 7, local step [1-6]:"):
        local_steps(player_of(settings), data, Peers(), settings, process_of(settings), 2, 7)


def test_dropout_is_seeded_and_the_global_generator_is_left_alone(data):
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.drop = nn.Linear(16, 16), nn.Dropout(0.5)

        def forward(self, x, t):
            return self.drop(self.layer(x.flatten(1))).view_as(x)

    settings, results = config(), []
    torch.manual_seed(1)
    network, state = Dropping(), torch.get_rng_state()
    for _ in range(2):
        player = Player.start(copy.deepcopy(network), settings.optimiser)
        local_steps(player, data, Peers(), settings, process_of(settings), 0, 1)
        results.append(player.published()["layer.weight"])
        assert torch.equal(state, torch.get_rng_state())
        torch.manual_seed(1)
        state = torch.get_rng_state()
    assert torch.equal(*results)


def test_flips_mirror_about_half_of_the_images():
    settings = config(flips=True, batch=500, local_steps=1)
    image = torch.zeros(1, *SHAPE)
    image[..., 0] = 1
    rng = generator(0, derive(0), device="cpu")
    nobody = draw_for_steps([], 0, 1, rng)
    batch = next(iter(batches.fresh(image, Peers(), nobody, process_of(settings), settings, rng)))
    process = process_of(settings)
    index = batch.t.long()
    x0 = (batch.x - expand(process.sigma[index], batch.x) * batch.target) / expand(process.alpha[index], batch.x)
    sure = process.sigma[index] < 0.9
    left = (x0[sure][..., 0].mean((1, 2)) > 0.5).float().mean()
    assert 0.4 < float(left) < 0.6


def test_held_out_loss_compares_rounds_on_the_same_draws(data):
    settings = config()
    process, network = process_of(settings), build(settings, SHAPE, 0)

    def loss(y):
        return held_out_loss(network, data, settings.diffusion, settings.compute.autocast, process, settings.seed, y)

    first, again = loss(0), loss(0)
    assert first == again
    assert first == pytest.approx(1.0, abs=0.3)  # an untrained network says about nothing of unit noise
    assert loss(1) != first
