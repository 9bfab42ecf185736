import pytest

from fedmutual.config import RunConfig
from fedmutual.errors import UserError
from simulations.cli import upkeep as cli
from simulations.upkeep import bench, local_step
from tests.support.federation import SMALL

TINY_UNET = {"network": "unet", "width": 8, "depth": 1, "multipliers": "1,2", "attention": "4"}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(local_step, "TURNS", 2)
    monkeypatch.setattr(local_step, "TURN_SECONDS", 0.01)
    monkeypatch.setattr(bench, "CLASSES", (2,))
    monkeypatch.setattr(bench, "SCALING_PEERS", 1)
    monkeypatch.setattr(bench, "SCALING_CLIENTS", 2)


@pytest.mark.parametrize(
    "settings", [{}, {"parametrisation": "velocity"}, {**TINY_UNET, "autocast": "bfloat16", "flips": True}]
)
def test_a_step_is_timed_with_no_peer_one_and_all(quick, settings):
    done = []
    rows = bench.bench([RunConfig.of(SMALL, settings)], ["step"], done.append)
    assert [row["peers"] for row in rows] == [0, 1, 9]
    for row in rows:
        assert row["ratio"] == row["seconds"] / row["bare_seconds"] > 0
        assert row["images_per_second"] == 8 / row["seconds"]
        assert (row["network"], row["batch"], row["memory"]) == (settings.get("network", "mlp"), 8, None)
        assert 1 <= row["steps"] <= 3
        assert 0 < row["share_of_peak"] < 1
    assert done == sorted(done)
    assert done[-1] == 1


def test_arithmetic_is_that_of_the_matrices(quick):
    """The MLP of 16 units and one hidden layer on 64 numbers and 32 of time: 2 FLOP a weight, row and pass.

    Backward costs two passes, less the gradient to the input; a peer costs one.
    """
    rows = bench.bench([RunConfig.of(SMALL)], ["step"])
    inner, hidden, outer = 96 * 16, 16 * 16, 16 * 64
    own = 2 * 8 * (3 * (inner + hidden + outer) - inner)
    peer = 2 * 8 * (inner + hidden + outer)
    assert [row["gflop"] * 1e9 for row in rows] == pytest.approx([own, own + peer, own + 9 * peer])


def test_rounds_and_their_scaling_are_those_of_real_simulations(quick):
    rows = bench.bench([RunConfig.of(SMALL)], ["round", "scaling", "bytes"])
    assert [(row["name"], row.get("classes"), row["peers"]) for row in rows] == [
        ("round", 10, 9),
        ("scaling", 2, 1),
        ("bytes", None, 9),
    ]
    for row in rows[:2]:
        assert row["ratio"] == pytest.approx(row["seconds"] / row["bare_seconds"])
        assert row["client_seconds"] == pytest.approx(row["seconds"] * row["at_once"] / row["classes"])
        assert 0 < row["client_core"] < 60
        assert 50 < row["server_mb"] < 5000
    # What was counted on the wire is what the networks weigh.
    assert (rows[0]["bytes_down"], rows[0]["bytes_up"]) == (rows[2]["bytes_down"], rows[2]["bytes_up"])
    assert rows[1]["bytes_down"] == rows[1]["bytes_up"]
    assert rows[2]["run_gigabytes"] == pytest.approx(2 * 10 * 10 * rows[2]["bytes_up"] / 1e9)


@pytest.mark.parametrize(
    ("parts", "settings", "says"),
    [
        (["step"], {"draws": "fixed"}, "fresh"),
        (["speed"], {}, "no part 'speed': choose among step, round, scaling, bytes"),
        (["round"], {"rounds": 1}, "rounds to 2"),
    ],
)
def test_what_cannot_be_timed_is_refused(parts, settings, says):
    with pytest.raises(UserError, match=says):
        bench.bench([RunConfig.of(SMALL, settings)], parts)


def test_a_narrow_terminal_cuts_no_column_off(monkeypatch, capsys):
    row = {"name": "scaling", "network": "mlp", "batch": 32, "peers": 4, "classes": 20, "seconds": 4.311}
    row |= {"bare_seconds": 3.714, "ratio": 1.16, "client_seconds": 0.431, "bytes_down": 1286692.5, "bytes_up": 421673}
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(bench, "bench", lambda *_: [row])
    cli.bench(["scaling"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "scaling batch peers classes seconds bare ratio a client bytes down bytes up",
        "mlp 32 4 20 4.311 3.714 1.16 0.431 1,286,692 421,673",
    ]
