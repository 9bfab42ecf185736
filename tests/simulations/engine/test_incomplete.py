"""A run that ends without a network of every class is no success; the clients are real, their transport is not."""

from pathlib import Path

import pytest
from flwr.app import Message, MessageType

from fedmutual.run_folder import read_facts
from server.roster import RunFailed
from simulations.engine.simulation import Simulation
from simulations.experiments.arm import is_trained, run_arm
from simulations.runs.networks import read_networks, without_network
from tests.support.federation import LocalGrid


def silent_seven(order: Message, reply: Message) -> Message | None:
    """The client of class 7 introduces itself, and then never answers an order."""
    training = order.metadata.message_type == MessageType.TRAIN
    return None if training and order.metadata.dst_node_id == 1007 else reply


def train_here(fault):
    def start(simulation: Simulation, on_round, on_phase) -> None:
        grid = LocalGrid(range(10), fault)
        simulation.app.serve(grid, simulation.prepared, on_round)

    return start


def test_simulate_ends_with_exit_code_1_and_names_the_class(tmp_path: Path, command_line, monkeypatch) -> None:
    monkeypatch.setattr(Simulation, "_start_flower", train_here(silent_seven))
    code, printed, error = command_line("simulate", "smoke", "-s", "samples=4", "--out", tmp_path / "run")
    assert code == 1
    lines = error.strip().splitlines()
    assert lines[-1] == (
        "error: class 7 has no network, so that this run is not complete: its page and history.jsonl say why"
    )
    assert any(line.startswith("class 7 of mutual has no measure: it has no network") for line in lines)
    assert "report:" in printed


def test_an_arm_without_a_network_of_every_class_fails_and_is_tried_again(small, monkeypatch) -> None:
    config = small(samples=0)
    folder = Path(config.federation.out)
    monkeypatch.setattr(Simulation, "_start_flower", train_here(silent_seven))
    with pytest.raises(RunFailed, match="no reply of class 7 was accepted"):
        run_arm("mutual-scarcity", config, folder)
    assert without_network(folder) == ["7"]
    assert not is_trained(folder)
    first = read_facts(folder).run
    monkeypatch.setattr(Simulation, "_start_flower", train_here(lambda order, reply: reply))
    run_arm("mutual-scarcity", config, folder)
    assert is_trained(folder)
    assert without_network(folder) == []
    assert read_facts(folder).run != first
    assert len(read_networks(folder)[1]) == 10


def test_a_store_that_cannot_be_written_is_refused_before_anything_starts(tmp_path: Path, command_line) -> None:
    (tmp_path / "file").touch()
    settings = ("-s", f"store={tmp_path / 'file' / 'store'}", "-s", "samples=0")
    code, printed, error = command_line("simulate", "smoke", *settings, "--out", tmp_path / "run")
    assert (code, printed) == (2, "")
    assert error.splitlines()[-1].endswith("file/store cannot be written to: Not a directory: name another folder")
    assert not (tmp_path / "run").exists()
    code, printed, error = command_line("compare", "smoke", "--methods", "memory", "--out", tmp_path / "file" / "cmp")
    assert (code, printed) == (2, "")
    assert error.splitlines()[-1].endswith("file/cmp cannot be made: Not a directory")
