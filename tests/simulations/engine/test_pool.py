import pytest

from simulations.engine.pool import ClientProcesses, Shelf, room


def node(alive=True, **resources):
    return {"Alive": alive, "Resources": resources}


@pytest.mark.parametrize(
    ("nodes", "resources", "fits"),
    [
        ([node(CPU=2.0), node(CPU=3.0)], {"num_cpus": 1}, 5),
        ([node(CPU=3.0), node(CPU=3.0)], {"num_cpus": 2}, 2),
        ([node(CPU=2.0), node(alive=False, CPU=8.0), node()], {"num_cpus": 1, "num_gpus": 0.0}, 2),
        ([node(CPU=8.0, GPU=1.0), node(CPU=8.0)], {"num_cpus": 1, "num_gpus": 0.25}, 4),
        ([node(CPU=8.0)], {"num_cpus": 1, "num_gpus": 0.5}, 0),
    ],
)
def test_a_process_has_to_fit_on_one_node_that_lives(nodes, resources, fits):
    assert room(nodes, resources) == fits


def test_processes_for_which_no_node_has_room_are_refused(monkeypatch):
    monkeypatch.setattr("simulations.engine.pool.ray.nodes", lambda: [node(CPU=1.0)])
    with pytest.raises(ValueError, match="no node has the 2 cores and 0 of a GPU that a client needs"):
        ClientProcesses(1, Shelf(), None, {"num_cpus": 2}, {})
