"""What each method of averaging does in a round, worked out beside it from what crossed the wire."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.app import hello
from client.averaging import app as client
from client.averaging import train
from fedmutual.diffusion import make_process
from fedmutual.errors import UserError
from fedmutual.learning.averaged import MOMENTS, build_averaged
from fedmutual.learning.control_variates import CONTROL
from fedmutual.learning.igd import local_steps
from fedmutual.learning.peers import Peers
from fedmutual.learning.player import Player
from fedmutual.networks import OfClass, build_conditional
from fedmutual.run_folder import read_history
from server import averages
from server.averaging import ITERATE, serve
from server.roster import RunFailed
from simulations.engine.simulation import App, Simulation
from simulations.runs.networks import class_networks, read_networks
from tests.support.data import load_class
from tests.support.federation import LocalGrid, Stopped, assert_same, stopping_in

SHAPE, CLASSES = (1, 8, 8), 10
PLAIN = {"optimizer": "sgd", "optimizer_state": "kept", "schedule": "constant", "clip": 0.0, "learning_rate": 0.05}


def run(prepare, config, **options):
    """The strategy and the grid after a run of `config` over all ten digits."""
    strategy, grid = prepare(config), LocalGrid(range(CLASSES), client=client, **options)
    serve(grid, strategy)
    return strategy, grid


def iterate(strategy):
    return strategy.model.entries[ITERATE].network


def crossed(messages):
    """What the orders or replies of each round held: [{class or place: {name: array}}]."""
    trained = [message for message in messages if "arrays" in message.content.array_records]
    rounds = [trained[start : start + CLASSES] for start in range(0, len(trained), CLASSES)]
    return [
        {i: message.content["arrays"].to_torch_state_dict() for i, message in enumerate(sorted(of_round, key=_class))}
        for of_round in rounds
    ]


def _class(message):
    return message.content["numbers"]["class"] if "numbers" in message.content else 0


def mean_of(replies, weights):
    total = sum(weights)
    return {name: sum(w * replies[y][name] for y, w in enumerate(weights)) / total for name in replies[0]}


def counts(config):
    """How much each client counts."""
    if config.rivals.averaging_weights == "classes":
        return [1] * CLASSES
    return [len(load_class(config, y).train) for y in range(CLASSES)]


@pytest.mark.parametrize(("state", "weights"), [("fresh", "samples"), ("kept", "classes"), ("averaged", "samples")])
def test_two_rounds_are_those_of_players_that_meet_in_their_mean(small, state, weights):
    config = small(optimizer_state=state, averaging_weights=weights)
    process, data = make_process(config.diffusion), [load_class(config, y).train for y in range(CLASSES)]
    shares = counts(config) if weights == "samples" else [1] * CLASSES
    players = [Player.start(OfClass(build_conditional(config, SHAPE, CLASSES), y), config.optimiser) for y in range(10)]
    for round_ in (1, 2):
        for y, player in enumerate(players):
            if state == "fresh":
                player.optimizer.state.clear()
            local_steps(player, data[y], Peers(), config, process, y, round_)
        with torch.no_grad():
            for same in zip(*(player.network.parameters() for player in players), strict=True):
                mean = sum(w * parameter for w, parameter in zip(shares, same, strict=True)) / sum(shares)
                for parameter in same:
                    parameter.copy_(mean)
            if state == "averaged":
                _meet([player.optimizer.state_dict()["state"] for player in players], shares)
    expected = dict(players[0].network.network.named_parameters())
    now = {name: tensor for name, tensor in iterate(run(averages.prepare_fedavg, config)[0]).items() if "/" not in name}
    assert_same({0: now}, {0: {name: tensor.detach() for name, tensor in expected.items()}}, rtol=1e-4, atol=1e-6)


def _meet(states, shares):
    for index in states[0]:
        for moment in MOMENTS:
            mean = sum(w * state[index][moment] for w, state in zip(shares, states, strict=True)) / sum(shares)
            for state in states:
                state[index][moment].copy_(mean)


def test_a_run_whose_clients_kept_nothing_goes_on_where_nothing_is_needed(small, tmp_path):
    """Earlier versions kept no state at the clients of an average, whose optimisers began each round anew."""
    for state, ends in (("fresh", "whole"), ("kept", "this client's state of round 1 is gone")):
        places = {"out": str(tmp_path / state), "store": str(tmp_path / f"{state}-clients"), "optimizer_state": state}
        with pytest.raises(Stopped):
            run(averages.prepare_fedavg, small(**places), fault=stopping_in(2))
        shutil.rmtree(tmp_path / f"{state}-clients")
        if ends != "whole":
            with pytest.raises(RunFailed, match=ends):
                run(averages.prepare_fedavg, small(**places, resume=True))
            continue
        resumed = iterate(run(averages.prepare_fedavg, small(**places, resume=True))[0])
        through = iterate(run(averages.prepare_fedavg, small(**{**places, "out": str(tmp_path / "whole")}))[0])
        assert_same({0: resumed}, {0: through})


def test_an_optimizer_without_moments_has_none_to_average(small):
    names = set(
        crossed(run(averages.prepare_fedavg, small(**{**PLAIN, "optimizer_state": "averaged"}))[1].replies)[0][0]
    )
    assert names == set(dict(build_conditional(small(), SHAPE, CLASSES).named_parameters()))


def test_what_an_optimizer_keeps_travels_only_where_it_is_averaged_and_no_count_where_classes_count_alike(small):
    for state in ("kept", "averaged"):
        config = small(optimizer_state=state, averaging_weights="classes", out=f"{small().federation.out}-{state}")
        _, grid = run(averages.prepare_fedavg, config)
        names = set(crossed(grid.replies)[0][0])
        assert {name.split("/")[0] for name in names if "/" in name} == (set(MOMENTS) if state == "averaged" else set())
        numbers = [reply.content["numbers"] for reply in grid.replies if "numbers" in reply.content]
        assert {record["weight"] for record in numbers} == {1}


def test_fedavgm_steps_with_momentum(small):
    config = small(rounds=3, server_learning_rate=0.5)
    strategy, grid = run(averages.prepare_fedavgm, config)
    replies, sent = crossed(grid.replies), crossed(grid.orders)
    momentum = {name: torch.zeros_like(tensor) for name, tensor in sent[0][0].items()}
    for round_, now in enumerate([sent[1][0], sent[2][0], iterate(strategy)]):
        before, mean = sent[round_][0], mean_of(replies[round_], counts(config))
        momentum = {name: 0.9 * momentum[name] + before[name] - mean[name] for name in mean}
        expected = {name: before[name] - 0.5 * momentum[name] for name in mean}
        assert_same({0: now}, {0: expected}, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("prepare", "yogi"), [(averages.prepare_fedadam, False), (averages.prepare_fedyogi, True)])
def test_fedadam_and_fedyogi_step_along_moments_of_the_change(small, prepare, yogi):
    config = small(rounds=2, server_learning_rate=0.02)
    strategy, grid = run(prepare, config)
    replies, sent = crossed(grid.replies), crossed(grid.orders)
    m = {name: torch.zeros_like(tensor) for name, tensor in sent[0][0].items()}
    v = {name: torch.zeros_like(tensor) for name, tensor in m.items()}
    for round_, now in ((1, sent[1][0]), (2, iterate(strategy))):
        before, mean = sent[round_ - 1][0], mean_of(replies[round_ - 1], counts(config))
        change = {name: mean[name] - before[name] for name in mean}
        m = {name: 0.9 * m[name] + 0.1 * change[name] for name in m}
        square = {name: part.square() for name, part in change.items()}
        if yogi:
            v = {name: v[name] - 0.01 * square[name] * (v[name] - square[name]).sign() for name in v}
            rate = 0.02
        else:
            v = {name: 0.99 * v[name] + 0.01 * square[name] for name in v}
            rate = 0.02 * (1 - 0.99 ** (round_ + 1)) ** 0.5 / (1 - 0.9 ** (round_ + 1))
        expected = {name: before[name] + rate * m[name] / (v[name].sqrt() + 1e-3) for name in m}
        assert_same({0: now}, {0: expected}, rtol=1e-3, atol=1e-6)
        assert {tensor.dtype for tensor in now.values()} == {torch.float32}


def test_control_variates_are_the_papers_where_steps_are_plain(small):
    """c_y <- c_y - c + (w_server - w_y) / (K eta), and the server takes the plain means of w_y and c_y."""
    config = small(rounds=3, **PLAIN)
    strategy, grid = run(averages.prepare_scaffold, config)
    replies, sent = crossed(grid.replies), crossed(grid.orders)
    names = [name for name in sent[0][0] if "/" not in name]
    own = {y: {name: torch.zeros_like(sent[0][0][name]) for name in names} for y in range(CLASSES)}
    for round_, (orders, answers) in enumerate(zip(sent, replies, strict=True)):
        order, after = orders[0], sent[round_ + 1][0] if round_ < 2 else iterate(strategy)
        for y in range(CLASSES):
            moved = {name: (order[name] - answers[y][name]) / (3 * 0.05) for name in names}
            own[y] = {name: own[y][name] - order[f"{CONTROL}/{name}"] + moved[name] for name in names}
            told = {name: answers[y][f"{CONTROL}/{name}"] for name in names}
            assert_same({y: told}, {y: own[y]}, rtol=1e-3, atol=1e-4)
        assert_same({0: after}, {0: mean_of(answers, [1] * CLASSES)}, rtol=1e-4, atol=1e-6)
    assert max(float(tensor.abs().max()) for tensor in own[3].values()) > 1e-3


def test_first_and_last_layers_never_leave_a_client_of_fedper_but_in_what_it_publishes_at_the_end(small):
    config, published = small(rounds=3), []

    def listen(order: Message, reply: Message) -> Message:
        if "network" in reply.content:
            published.append((reply.content["numbers"]["round"], _class(reply), reply.content["network"]))
        return reply

    strategy, grid = run(averages.prepare_fedper, config, fault=listen)
    bodies = crossed(grid.replies)
    assert len(bodies) == 3
    assert sorted(published[y][:2] for y in range(len(published))) == [(3, y) for y in range(CLASSES)]
    assert {name.split(".")[0] for name in bodies[0][0]} == {"hidden"}
    assert_same({0: iterate(strategy)}, {0: mean_of(bodies[2], counts(config))}, rtol=1e-4, atol=1e-6)
    round_, networks = read_networks(Path(config.federation.out))
    assert round_ == 3
    assert_same(networks, {y: record.to_torch_state_dict() for _, y, record in sorted(published, key=lambda p: p[1])})
    assert not torch.equal(networks[0]["inner.weight"], networks[1]["inner.weight"])
    of_class = class_networks(Path(config.federation.out), "best", torch.device("cpu"))[1]
    assert of_class[0](torch.randn(3, *SHAPE), torch.full((3,), 4.0)).shape == (3, *SHAPE)
    assert strategy.model.parameters == CLASSES * sum(tensor.numel() for tensor in networks[0].values())


def test_a_network_of_one_layer_has_no_body_to_average(small):
    with pytest.raises(UserError, match="fedper needs a network of several layers"):
        averages.prepare_fedper(small(network="random-features"))


def test_finetuned_goes_on_alone_from_the_average(small):
    config = small(rounds=4, ema=0.0, optimizer_state="fresh", finetuning=0.5)
    _, grid = run(averages.prepare_finetuned, config)
    replies, orders = crossed(grid.replies), crossed(grid.orders)
    assert [len(replies), *(len(of_round[0]) > 0 for of_round in orders)] == [2, True, True, True, False]
    mean = mean_of(replies[1], counts(config))
    assert_same({0: orders[2][0]}, {0: mean}, rtol=1e-4, atol=1e-6)
    process, published = make_process(config.diffusion), read_networks(Path(config.federation.out))[1]
    for y in (0, 9):
        network = build_averaged("whole", config, SHAPE, CLASSES)
        network.load_state_dict(orders[2][0], strict=False)
        player = Player.start(network, config.optimiser)
        player.step = 6
        for round_ in (3, 4):
            local_steps(player, load_class(config, y).train, Peers(), config, process, y, round_)
        assert_same({y: published[y]}, {y: dict(network.state_dict())}, rtol=1e-4, atol=1e-6)


METHODS = ["fedavg", "fedavgm", "fedadam", "scaffold", "fedper", "finetuned"]


@pytest.mark.parametrize("method", METHODS)
def test_stopping_and_resuming_equals_running_through(small, tmp_path, method):
    prepare = getattr(averages, f"prepare_{method}")
    expected, _ = run(prepare, small(rounds=5, checkpoint_every=2, out=str(tmp_path / "through")))

    config = small(rounds=5, checkpoint_every=2)
    with pytest.raises(Stopped):
        run(prepare, config, fault=stopping_in(4))
    resumed, _ = run(prepare, config.but(resume=True), seed=1)
    networks = [{name: entry.network for name, entry in s.model.entries.items()} for s in (resumed, expected)]
    assert_same(*networks)


@pytest.mark.parametrize("method", ["fedavg", "scaffold"])
def test_a_client_process_that_dies_costs_an_average_nothing(small, tmp_path, method):
    """Killed once it has saved: its order is sent anew until Ray has started another process, which answers."""
    killing, mark, prepare = ClientApp(), tmp_path / "killed", getattr(averages, f"prepare_{method}")
    killing.query()(hello)

    @killing.train()
    def killed_once(message: Message, context: Context) -> Message:
        reply = train(message, context)
        if (_class(reply), reply.content["numbers"]["round"]) == (4, 2) and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return reply

    config = small(rounds=3, out=str(tmp_path / "ray"), store="")
    folder = Simulation(config, app=App(prepare, serve, killing)).run()
    assert mark.exists()
    assert [line["step"] for line in read_history(folder)] == [3 * line["round"] for line in read_history(folder)]
    expected, _ = run(prepare, small(rounds=3))
    shared = expected.model.entries["shared"].network
    assert_same(read_networks(folder)[1], dict.fromkeys(range(CLASSES), shared))
