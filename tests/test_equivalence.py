"""What must always be true of a federation, whatever its size (design, section 4)."""

import json
from pathlib import Path

import pytest
import torch
from flwr.app import MessageType

from fedmutual.baselines.central_igd import central_igd
from fedmutual.baselines.isolated import train_alone
from fedmutual.data import ClassData
from fedmutual.device import dtype_of
from fedmutual.diffusion import make_process
from fedmutual.learning.igd import local_steps
from fedmutual.learning.objective import mutual_loss
from fedmutual.learning.peers import Peers
from fedmutual.learning.player import Player
from fedmutual.networks import build
from fedmutual.records import HELLO, NUMBERS, OPTIONAL_NUMBERS, ORDER
from fedmutual.run_folder import read_history
from tests.support.data import load_class
from tests.support.federation import LocalGrid, Stopped, assert_same, federate, networks, stopping_in

OVERFIT = {"keep": "best", "schedule": "constant", "learning_rate": 0.05, "rounds": 7}
"""Settings beside those of `small` under which several classes publish an earlier round."""

AUTO = {"beta_rule": "auto", "batch": 64, "local_steps": 6, "caution": 0.0}
"""Settings beside those of `small` under which peers are weighed in every fourth round."""


@pytest.mark.parametrize(("kind", "keep"), [("mlp", "last"), ("random-features", "last"), ("mlp", "best")])
def test_one_local_step_with_everyone_equals_simultaneous_igd_in_one_process(small, kind, keep):
    config = small(rounds=4, local_steps=1, beta_rule="constant", network=kind, dtype="float64", keep=keep)
    data = [load_class(config, y) for y in range(10)]
    doubled = [ClassData(part.train.double(), part.held_out.double()) for part in data]
    central = central_igd(config, doubled).networks
    assert_same(networks(federate(config)), central, rtol=1e-12, atol=1e-14)


def test_beta_zero_equals_isolated_training_also_where_a_class_chooses_its_round(small):
    config = small(beta=0.0, **OVERFIT)
    players = {y: train_alone(config, load_class(config, y), y)[0] for y in range(10)}
    assert {player.kept.newest for player in players.values()} == {True, False}
    assert_same(networks(federate(config)), {y: player.published() for y, player in players.items()})


def test_beta_zero_equals_isolated_training(small):
    config = small(beta=0.0)
    isolated, process = {}, make_process(config.diffusion, dtype=dtype_of(config.compute))
    for y in range(10):
        data = load_class(config, y).train
        player = Player.start(build(config, (1, 8, 8), y), config.optimiser)
        for round_ in (1, 2):
            local_steps(player, data, Peers(), config, process, y, round_)
        isolated[y] = player.published()
    assert_same(networks(federate(config)), isolated)


def test_beta_zero_ignores_the_peers_it_is_given(small):
    config = small(beta=0.0)
    data, process = load_class(config, 0).train, make_process(config.diffusion)
    alone, accompanied = (Player.start(build(config, (1, 8, 8), 0), config.optimiser) for _ in range(2))
    local_steps(alone, data, Peers(), config, process, 0, 1)
    local_steps(accompanied, data, Peers([build(config, (1, 8, 8), 1)], [1.0]), config, process, 0, 1)
    assert_same({0: alone.published()}, {0: accompanied.published()})


def test_drawing_all_peers_equals_having_all_peers(small, tmp_path):
    all_peers = networks(federate(small()))
    drawn = networks(federate(small(peers_per_round=9, out=str(tmp_path / "b"), store=str(tmp_path / "c"))))
    assert_same(all_peers, drawn)
    fewer = networks(federate(small(peers_per_round=2, out=str(tmp_path / "d"), store=str(tmp_path / "e"))))
    assert not torch.equal(all_peers[0]["outer.weight"], fewer[0]["outer.weight"])


def test_mean_peer_has_the_gradient_of_all_peers(small):
    config = small(dtype="float64")
    shape, weights = (1, 8, 8), [0.5, 0.3, 0.2]
    own, *others = (build(config, shape, y) for y in range(4))
    x, t = torch.randn(6, *shape, dtype=torch.float64), torch.rand(6, dtype=torch.float64) * 25
    weight = torch.rand(6, dtype=torch.float64)

    def gradient(loss):
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss.mean(), list(own.parameters()))])

    by_mean = gradient(mutual_loss(own(x, t), Peers(others, weights).mean(x, t), weight))
    output = own(x, t)
    by_all = gradient(sum(w * mutual_loss(output, z(x, t), weight) for w, z in zip(weights, others, strict=True)))
    torch.testing.assert_close(by_mean, by_all, rtol=1e-12, atol=1e-15)


def test_one_averaged_network_equals_all_networks_where_features_are_shared(small, tmp_path):
    shared = {"network": "random-features", "shared_init": True, "dtype": "float64", "rounds": 3}
    one_each = networks(federate(small(**shared)))
    averaged = networks(federate(small(**shared, exchange="mean", out=str(tmp_path / "b"), store=str(tmp_path / "c"))))
    assert_same(one_each, averaged, rtol=1e-11, atol=1e-13)


def test_bfloat16_on_the_wire_rounds_what_is_sent_and_halves_it_and_changes_no_client(small, tmp_path):
    """Without peers nothing comes back to a client, so that only what the server holds is rounded."""
    isolated = {"beta": 0.0, "rounds": 2}
    whole = networks(federate(small(**isolated)))
    grid = LocalGrid(range(10))
    config = small(**isolated, wire_dtype="bfloat16", out=str(tmp_path / "b"), store=str(tmp_path / "c"))
    sent = networks(federate(config, grid))
    rounded = {y: {n: t if n == "rates" else t.bfloat16().float() for n, t in whole[y].items()} for y in whole}
    assert_same(sent, rounded)
    lines = [line["bytes_up"] for line in read_history(Path(config.federation.out))]
    before = [line["bytes_up"] for line in read_history(tmp_path / "run")]
    assert max(lines) < 0.6 * min(before)
    with_peers = small(wire_dtype="bfloat16", out=str(tmp_path / "d"), store=str(tmp_path / "e"))
    near = networks(federate(with_peers))
    exact = networks(federate(small(out=str(tmp_path / "f"), store=str(tmp_path / "g"))))
    assert_same(near, exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("own", [{}, OVERFIT, AUTO], ids=["last", "best", "auto"])
@pytest.mark.parametrize("checkpoint_every", [1, 3])
def test_stopping_and_resuming_equals_running_through(small, tmp_path, checkpoint_every, own):
    """With checkpoints every 3 rounds the clients' stores are ahead of the server when it resumes."""
    settings = {"schedule": "constant", "rounds": 7, "checkpoint_every": checkpoint_every, **own}
    through = small(**settings, out=str(tmp_path / "through"), store=str(tmp_path / "b"))
    expected = networks(federate(through))

    config = small(**settings)
    with pytest.raises(Stopped):
        federate(config, LocalGrid(range(10), stopping_in(5)))
    resumed = federate(config.but(resume=True), LocalGrid(range(10), seed=1))
    assert_same(networks(resumed), expected)
    lines = [(line["round"], line["class"]) for line in read_history(Path(config.federation.out))]
    assert lines == [(round_, y) for round_ in range(1, 8) for y in range(10)]


@pytest.mark.parametrize("own", [{}, {**AUTO, "rounds": 5}], ids=["scarcity", "auto"])
def test_result_does_not_depend_on_the_order_of_clients(small, tmp_path, own):
    first = networks(federate(small(**own), LocalGrid(range(10), seed=1)))
    other = small(**own, out=str(tmp_path / "b"), store=str(tmp_path / "c"))
    assert_same(first, networks(federate(other, LocalGrid(reversed(range(10)), seed=2))))


@pytest.mark.parametrize("own", [{}, {"keep": "best"}, {"beta_rule": "auto"}], ids=["last", "best", "auto"])
def test_nothing_but_networks_and_listed_numbers_leaves_a_client(small, own):
    """Every array and scalar of every reply, by name and shape; none of them has the size of a sample or of a count."""
    config = small(**own)
    grid = LocalGrid(range(10))
    bank = federate(config, grid)
    parameters = {name: tuple(tensor.shape) for name, tensor in bank.like.items()}
    for reply in grid.replies:
        arrays, numbers = reply.content.array_records, reply.content.metric_records
        assert not reply.content.config_records
        if reply.metadata.message_type == MessageType.QUERY:
            assert not arrays
            assert set(numbers) == {"hello"}
            assert set(numbers["hello"]) == set(HELLO)
            continue
        assert set(arrays) == {"network"}
        assert {name: tuple(array.shape) for name, array in arrays["network"].items()} == parameters
        assert set(numbers) == {"numbers"}
        assert set(NUMBERS) <= set(numbers["numbers"]) <= set(NUMBERS) | set(OPTIONAL_NUMBERS) - {"count"}
        assert all(isinstance(value, int | float) for value in numbers["numbers"].values())
    assert len(grid.replies) == 10 + 2 * 10


def test_counts_are_told_only_on_request(small):
    grid = LocalGrid(range(10))
    federate(small(share_counts=True), grid)
    stated = {r.content["numbers"]["class"]: r.content["numbers"]["count"] for r in grid.replies[10:20]}
    assert stated == {y: len(load_class(small(), y).train) for y in range(10)}


def test_nothing_but_orders_and_peers_reaches_a_client(small):
    grid = LocalGrid(range(10))
    federate(small(), grid)
    for order in (order for order in grid.orders if order.metadata.message_type == MessageType.TRAIN):
        assert set(order.content.config_records["order"]) == set(ORDER)
        assert not order.content.metric_records
        y = grid.contexts[order.metadata.dst_node_id].node_config["partition-id"]
        assert set(order.content.array_records) == {f"peer-{z}" for z in range(10) if z != y}
        assert json.loads(order.content["order"]["settings"])["seed"] == 0
