"""A process of a simulation that serves more classes than it holds the samples of."""

import numpy as np

from client.app import HELD, own_data
from fedmutual.data import npz
from tests.support.federation import LocalGrid, federate


def test_an_archive_is_read_once_for_all_classes_and_rounds(small, tmp_path, monkeypatch):
    classes = HELD + 4
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), 6)
    np.savez_compressed(tmp_path / "many.npz", images=rng.random((len(labels), 8, 8), np.float32), labels=labels)
    settings = {"data": "npz", "data_path": str(tmp_path / "many.npz"), "imbalance": "none", "head_count": 0}
    config = small(**settings, held_out=1, test=1, peers_per_round=2, local_steps=1)
    read = npz._read_rows
    reads = []
    monkeypatch.setattr(npz, "_read_rows", lambda path, key, rows: reads.append(key) or read(path, key, rows))
    before = own_data.cache_info().misses
    bank = federate(config, LocalGrid(range(classes)))
    assert [bank.entries[y].round for y in range(classes)] == [2] * classes
    assert own_data.cache_info().misses - before > classes, "the second round asks for data that are not held"
    assert reads.count("images") == 1
