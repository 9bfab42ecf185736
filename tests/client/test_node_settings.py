"""What a client's own machine decides, and one line on each mistake there; and what a run's log says of its rounds."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from fedmutual.config import RunConfig
from fedmutual.course import Course
from fedmutual.errors import UserError
from fedmutual.run_folder import read_history
from server.app import refuse_relative, round_in_words
from server.strategy import RunFailed
from tests.support.federation import LocalGrid, federate


@pytest.fixture
def private(tmp_path):
    """A .npz of one class."""
    path = tmp_path / "private.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8))
    return path


@pytest.fixture
def dataless(small):
    """Settings of a server that has no data."""

    def make(**changes):
        own = {"classes": 1, "shape": "1,8,8", "test": 0, "held_out": 5, "imbalance": "none", "head_count": 0}
        return small(data="npz", **own, **changes)

    return make


def alone(**node_config):
    grid = LocalGrid([])
    grid.contexts[1] = Context(1, 1, {key.replace("_", "-"): v for key, v in node_config.items()}, RecordDict(), {})
    return grid


def test_the_servers_word_on_paths_gives_way_to_the_clients(dataless, private, tmp_path):
    config = dataless(data_path="/nowhere", store=str(tmp_path / "servers"))
    federate(config, alone(partition_id=0, data_path=str(private), store=str(tmp_path / "own")))
    assert {line["status"] for line in read_history(Path(config.federation.out))} == {"ok"}
    assert not (tmp_path / "servers").exists()
    assert list((tmp_path / "own").glob("*/class-000"))


@pytest.mark.parametrize(
    ("node_config", "says"),
    [
        ({"partition_id": 0}, 'this client has no data: start it with data-path="/path/to/them"'),
        ({"partition_id": 0, "data_path": "/nowhere.npz"}, "its own log says why"),
        ({"partition_id": 0, "data_path": "/nowhere", "data": "folder"}, "its own log says why"),
        ({"partition_id": 0, "data_path": "/nowhere", "data": "files"}, "setting data = 'files'"),
        ({"partition_id": 0, "device": "tpu"}, "setting device = 'tpu'"),
    ],
)
def test_a_mistake_at_a_client_reaches_the_history_as_one_line(dataless, node_config, says):
    config = dataless()
    with pytest.raises(RunFailed, match="no client got through"):
        federate(config, alone(**node_config))
    (line,) = read_history(Path(config.federation.out))
    assert line["status"] == "error"
    assert says in line["reason"]
    assert "\n" not in line["reason"]


def test_a_class_that_is_no_number_is_told(dataless, private, caplog):
    with pytest.raises(RunFailed, match="0 of 1 clients joined"):
        federate(dataless(timeout=0.5), alone(partition_id="zero", data_path=str(private)))
    assert "partition-id = 'zero': give the number of this client's class, from 0" in caplog.text


def row(y, status="ok", loss=0.5, seconds=4.0):
    return {"round": 3, "class": y, "status": status, "loss": loss, "seconds": seconds, "round_seconds": 10.0}


def test_the_log_names_the_worst_class_and_the_steps_that_outweigh_start_up():
    config = RunConfig().but(rounds=9, local_steps=100)
    words = round_in_words([row(0), row(1, loss=0.7, seconds=5.0), row(2, "missing", None, None)], config)
    # 5 s of steps beside 5 s of start-up: 19 times as many steps make 95 s beside 5 s.
    assert words == (
        "round 3 of 9: 2 of 3 classes, worst loss 0.7 (class 1), 10.0 s, 50% of it gradient steps: "
        "local-steps = 1900 would make it 95%"
    )


def test_the_log_has_no_advice_for_rounds_that_are_long_enough_or_fruitless():
    config = RunConfig().but(rounds=9)
    assert round_in_words([row(0, seconds=9.8)], config).endswith("10.0 s, 98% of it gradient steps")
    assert round_in_words([row(0, "error", None, None)], config) == "round 3 of 9: 0 of 1 classes"


def test_the_log_tells_the_time_left_and_the_worst_held_out_loss():
    config, course = RunConfig().but(rounds=9, local_steps=100), Course(9)
    rows = [row(0, seconds=9.8) | {"held_out": 0.25}, row(1, seconds=9.8) | {"held_out": 0.125}]
    course.add(rows)
    assert round_in_words(rows, config, course) == (
        "round 3 of 9: 2 of 2 classes, worst loss 0.5 (class 0), worst held-out loss 0.25 (class 0), "
        "about 1 min left, 10.0 s, 98% of it gradient steps"
    )


def test_the_log_of_a_run_tells_them_round_after_round(dataless, private, caplog):
    caplog.set_level("INFO", logger="flwr")
    federate(dataless(rounds=3), alone(partition_id=0, data_path=str(private)))
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("round ")]
    assert len(told) == 3
    assert all("worst held-out loss" in line for line in told)
    assert ["left" in line for line in told] == [True, True, False]


def test_simulated_clients_share_cores_and_get_no_advice():
    assert round_in_words([row(0)], RunConfig().but(rounds=9), simulated=True).endswith("10.0 s")


@pytest.mark.parametrize("key", ["data-path", "out", "store", "extractor"])
def test_a_relative_path_of_flwr_run_is_refused(key):
    """The server of a run works in the folder where the SuperLink was started, not where the user stands."""
    config = RunConfig.of({"data": "npz", "out": "/tmp/run", key: "some/where"})
    with pytest.raises(UserError, match=f"{key} = some/where is relative"):
        refuse_relative(config)
