import os

import pytest
import torch

from fedmutual.checkpoint import CheckpointError, Unwritable, load, load_newest, save, write_atomic

TENSORS = {
    "a": torch.randn(3, 4),
    "b/c": torch.tensor(7.0),
    "d": torch.arange(4, dtype=torch.int64),
    "e": torch.empty(0),
}
META = {"round": 3, "best": [2, 0.5], "text": "ä"}


@pytest.fixture
def path(tmp_path):
    save(tmp_path / "deep" / "x.safetensors", TENSORS, META)
    return tmp_path / "deep" / "x.safetensors"


def test_what_is_saved_is_loaded(path):
    tensors, meta = load(path)
    torch.testing.assert_close(tensors, TENSORS, rtol=0, atol=0)
    assert meta == META
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_every_cut_is_noticed(path):
    content = path.read_bytes()
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"x\.safetensors is damaged"):
            load(path)


def test_every_flipped_bit_is_noticed(path):
    content = path.read_bytes()
    for position in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            load(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(CheckpointError, match="missing"):
        load(tmp_path / "none.safetensors")


def test_the_newest_whole_file_is_found(tmp_path):
    files = [tmp_path / f"{index}.safetensors" for index in range(3)]
    for index, file in enumerate(files):
        save(file, TENSORS, {"index": index})
    files[2].write_bytes(files[2].read_bytes()[:-1])
    assert load_newest(files)[2] == {"index": 1}
    assert load_newest([]) is None
    assert load_newest([files[2]]) is None


def test_a_full_disk_leaves_the_old_file_and_no_rubbish(path):
    """The kernel's own word on a full disk: /dev/full stands where the new file is to be written."""
    before = path.read_bytes()
    path.with_name(f".{path.name}.{os.getpid()}.partial").symlink_to("/dev/full")
    with pytest.raises(Unwritable, match=r"x\.safetensors cannot be written: No space left on device"):
        write_atomic(path, b"new")
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
