"""A deployed client keeps a fingerprint of what it trains on, and trains no further on anything else."""

import json
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from client.app import opened_source, own_data, own_fingerprint
from fedmutual.data.fingerprint import FILE
from fedmutual.run_folder import read_history
from server.strategy import RunFailed
from tests.support.federation import LocalGrid, federate


def alone(place: Path, store: Path) -> LocalGrid:
    grid = LocalGrid([])
    node = {"partition-id": 0, "data-path": str(place), "store": str(store)}
    grid.contexts[1] = Context(1, 1, node, RecordDict(), {})
    opened_source.cache_clear()  # as a fresh process would
    own_data.cache_clear()
    own_fingerprint.cache_clear()
    return grid


def test_a_client_whose_data_have_changed_says_so_and_no_more(small, tmp_path, caplog):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    path, store = tmp_path / "private.npz", tmp_path / "own"
    np.savez(path, images=images)
    own = {"classes": 1, "shape": "1,8,8", "test": 0, "held_out": 5, "head_count": 0, "schedule": "constant"}
    config = small(data="npz", imbalance="none", **own)
    federate(config, alone(path, store))
    (kept,) = store.glob(f"*/class-000/{FILE}")
    assert json.loads(kept.read_text())["0"]["size"] == 15

    again = config.but(resume=True, rounds=config.rounds + 1)
    np.savez(path, images=images[:-1])
    with pytest.raises(RunFailed):
        federate(again, alone(path, store))
    last = read_history(Path(config.federation.out))[-1]
    assert "data have changed since the run began: its own log says more" in last["reason"]
    assert "14" not in last["reason"]
    assert "class 0 has 14 training samples and had 15" in caplog.text

    np.savez(path, images=images)
    federate(again, alone(path, store))
    assert read_history(Path(config.federation.out))[-1]["status"] == "ok"
