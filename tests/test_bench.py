import pytest
from conftest import SMALL

from fedmutual.config import RunConfig, UserError
from simulations import bench


def test_a_bench_times_both_loops_with_no_peer_one_and_all(monkeypatch):
    monkeypatch.setattr(bench, "REPEATS", 2)
    done = []
    rows = bench.bench(RunConfig.of(SMALL), done.append)
    assert [row["peers"] for row in rows] == [0, 1, 9]
    for row in rows:
        assert row["ratio"] == row["seconds"] / row["bare_seconds"] > 0
        assert (row["network"], row["batch"], row["steps"]) == ("mlp", 8, 3)
    assert done[-1] == 100
    assert done == sorted(done)


def test_what_is_not_timed_is_refused():
    with pytest.raises(UserError, match="fresh"):
        bench.bench(RunConfig.of(SMALL, {"draws": "fixed"}))
