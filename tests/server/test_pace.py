"""How many local steps outweigh a client's start-up: tried out before round 1, the same for all ever after."""

import json
from pathlib import Path

import pytest
from flwr.app import MessageType

import server.pace
from fedmutual.errors import UserError
from fedmutual.run_folder import read_history
from fedmutual.settings import read_settings
from server.app import prepare, serve
from server.pace import worthwhile_steps
from server.roster import RunFailed
from tests.support.federation import LocalGrid, assert_same, federate, networks


@pytest.fixture
def hasty(monkeypatch):
    """One trial is enough, and rounds need not be long, however slow this machine is."""
    monkeypatch.setattr(server.pace, "TRIAL_SECONDS", 1e-9)
    monkeypatch.setattr(server.pace, "worthwhile_steps", lambda start_up, step: 4)


def steps_ordered(grid):
    """{(attempt, round): local steps} of the orders that crossed; all clients of a round have the same."""
    result = {}
    for order in (order.content["order"] for order in grid.orders if order.metadata.message_type == MessageType.TRAIN):
        steps = json.loads(order["settings"])["local-steps"]
        assert result.setdefault((order["attempt"], order["round"]), steps) == steps
    return result


@pytest.mark.parametrize(("start_up", "step", "least"), [(5.0, 0.05, 1900), (1.0, 10.0, 2), (0.0, 1.0, 1)])
def test_worthwhile_steps_are_the_fewest_that_make_start_up_a_twentieth(start_up, step, least):
    assert worthwhile_steps(start_up, step) == least
    for steps, enough in ((least, True), (least - 1, False)):
        assert steps == 0 or (steps * step >= 0.95 * (start_up + steps * step) - 1e-9) is enough


def test_the_run_equals_one_with_that_number_in_its_settings(small, tmp_path, hasty):
    config, grid = small(local_steps=0, schedule="cosine"), LocalGrid(range(10))
    result = networks(federate(config, grid))
    settled = read_settings(Path(config.federation.out) / "config.toml")["local-steps"]
    assert steps_ordered(grid) == {(1, 1): server.pace.TRIAL_STEPS, (2, 1): settled, (2, 2): settled}
    fixed = small(local_steps=settled, out=str(tmp_path / "b"), store=str(tmp_path / "c"))
    assert_same(result, networks(federate(fixed)))
    assert [line["round"] for line in read_history(Path(config.federation.out))] == [1] * 10 + [2] * 10


@pytest.mark.parametrize("killed_in", ["trial", "round 2"])
def test_a_resumed_run_goes_on_with_the_number_it_settled_on(small, tmp_path, hasty, killed_in):
    class Kill(BaseException):
        pass

    def fault(order, reply):
        if order.metadata.message_type == MessageType.TRAIN:
            number = order.content["order"]["round"] if order.content["order"]["attempt"] > 1 else 0
            if number == {"trial": 0, "round 2": 2}[killed_in]:
                raise Kill
        return reply

    config = small(local_steps=0, rounds=3)
    with pytest.raises(Kill):
        federate(config, LocalGrid(range(10), fault))
    before = read_settings(Path(config.federation.out) / "config.toml")["local-steps"]
    grid = LocalGrid(range(10))
    result = networks(federate(config.but(resume=True), grid))
    settled = read_settings(Path(config.federation.out) / "config.toml")["local-steps"]
    assert before == (0 if killed_in == "trial" else settled)
    assert {steps for (_, round_), steps in steps_ordered(grid).items() if round_ > 1} == {settled}
    fixed = small(local_steps=settled, rounds=3, out=str(tmp_path / "b"), store=str(tmp_path / "c"))
    assert_same(result, networks(federate(fixed)))


def test_a_round_stays_within_the_timeout(small, hasty, caplog):
    config = small(local_steps=0, timeout=1e-3, rounds=1)
    federate(config)
    assert read_settings(Path(config.federation.out) / "config.toml")["local-steps"] == 1
    assert "a higher one would let 4 local steps make that" in caplog.text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda reply: reply.content["numbers"].update({"seconds": 1e6}), "do not fit in a round"),
        (lambda reply: reply.content["numbers"].update({"seconds": 0.0}), "do not fit in a round"),
        (lambda reply: reply.content.pop("numbers"), "holds no numbers"),
    ],
)
def test_seconds_that_cannot_be_are_left_aside(small, hasty, change, says):
    def fault(order, reply):
        if reply.has_content() and "numbers" in reply.content and order.content["order"]["attempt"] == 1:
            change(reply)
        return reply

    with pytest.raises(RunFailed, match=says):
        federate(small(local_steps=0), LocalGrid(range(10), fault))


def test_a_client_that_never_answers_a_trial_is_told(small, hasty):
    def fault(order, reply):
        lost = order.metadata.message_type == MessageType.TRAIN and reply.content["numbers"]["class"] == 3
        return None if lost else reply

    with pytest.raises(RunFailed, match="3 trials without a reply of every client"):
        federate(small(local_steps=0), LocalGrid(range(10), fault))


def test_simulated_clients_need_a_number(small):
    strategy, grid = prepare(small(local_steps=0)), LocalGrid([])
    for y in range(10):
        grid.join(y, **{"num-partitions": 10})
    with pytest.raises(UserError, match="local-steps = 0 is for separate machines"):
        serve(grid, strategy)
