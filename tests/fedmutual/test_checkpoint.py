import json
import os
import subprocess
import sys

import pytest
import safetensors.torch
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


def test_a_file_is_one_that_the_library_reads_and_announces_types_and_shapes_as_the_library_does(path):
    types = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
    tensors = {str(kind): torch.arange(5).to(kind) for kind in (*types, torch.int8, torch.uint8, torch.bool)}
    save(path, tensors | TENSORS, META)
    torch.testing.assert_close(safetensors.torch.load_file(path), tensors | TENSORS, rtol=0, atol=0)
    ours, theirs = announced(path.read_bytes()), announced(safetensors.torch.save(tensors | TENSORS))
    assert {name: ours[name] for name in theirs} == theirs
    assert set(ours) - set(theirs) == {"__metadata__"}


def announced(content):
    """{name: (type, shape)} by the head of a file."""
    head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return {name: (entry.get("dtype"), entry.get("shape")) for name, entry in head.items()}


def test_saving_takes_no_second_copy_of_the_tensors(tmp_path):
    """32 MB of them in a fresh process, whose peak of memory hardly rises."""
    script = """
import resource, sys, torch
from pathlib import Path
from fedmutual.checkpoint import save
small, large = ({str(n): torch.ones(size) for n in range(8)} for size in (10, 1_000_000))
save(Path(sys.argv[1]) / "small", small, {})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
save(Path(sys.argv[1]) / "large", large, {})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 8_000, "kilobytes"


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
