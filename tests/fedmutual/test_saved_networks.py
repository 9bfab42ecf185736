"""Checkpoints: each file holds what has changed, and neither a kill nor a damaged file costs more than it should."""

import contextlib
import shutil
from pathlib import Path

import pytest
import torch

from fedmutual.checkpoint import load
from fedmutual.run_folder import RunWriter
from fedmutual.saved_networks import NetworkOfRound, checkpoint_path, checkpoints, newest_checkpoint, read_checkpoint

CLASSES, SHARE = 60, 6
"""Classes, and how many of them take part in a round."""


class Federation:
    """Made-up rounds in which `share` classes get a network, each telling its class and round."""

    def __init__(self, folder: Path, share: int = SHARE):
        self.writer, self.share = RunWriter(folder), share
        self.networks: dict[int | str, NetworkOfRound] = {}
        self.states: dict[int, dict[int | str, float]] = {}

    def play(self, first: int, last: int) -> None:
        for round_ in range(first, last + 1):
            part = range(CLASSES) if round_ == 1 else [(round_ * self.share + k) % CLASSES for k in range(self.share)]
            self.networks |= {y: NetworkOfRound({"w": torch.tensor([y + round_ / 100])}, round_) for y in part}
            self.states[round_] = {y: float(entry.network["w"]) for y, entry in self.networks.items()}
            self.writer.write_checkpoint(self.networks, round_, float(first == 1 and round_ == 1) or float("inf"))

    def written(self, round_: int) -> int:
        """How many networks the file of a round holds."""
        return len(load(checkpoint_path(self.writer.folder, round_))[0])

    def assert_newest(self, round_: int) -> None:
        newest = newest_checkpoint(self.writer.folder)
        assert newest.round == round_
        assert {y: float(entry.network["w"]) for y, entry in newest.networks.items()} == self.states[round_]


def files(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("*.safetensors"))


def test_a_checkpoint_holds_what_has_changed_and_comes_back_whole(tmp_path):
    federation = Federation(tmp_path)
    sizes = []
    for round_ in range(1, 41):
        federation.play(round_, round_)
        federation.assert_newest(round_)
        sizes.append(federation.written(round_))
    assert sizes[:3] == [CLASSES, CLASSES, 2 * SHARE]
    assert sum(sizes[2:]) / 38 <= 4 * SHARE
    held = sum(len(load(path)[0]) for path in files(tmp_path))
    assert held <= (2 * 2 + 1) * CLASSES, "twice the networks for each of two checkpoints, and the best one"
    assert list(checkpoints(tmp_path)) == [1, 39, 40]


def test_where_every_class_takes_part_a_checkpoint_is_one_file(tmp_path):
    federation = Federation(tmp_path, share=CLASSES)
    federation.play(1, 9)
    assert [path.name for path in files(tmp_path)] == [f"round-00000{k}.safetensors" for k in (1, 8, 9)]
    assert federation.written(9) == CLASSES


@pytest.mark.parametrize("rounds", [6, 21, 22])
def test_any_one_damaged_file_costs_no_more_than_a_round(tmp_path, rounds):
    federation = Federation(tmp_path / "run")
    federation.play(1, rounds)
    for number, path in enumerate(files(tmp_path / "run")):
        copy = tmp_path / f"damaged-{number}"
        shutil.copytree(tmp_path / "run", copy)
        (copy / "checkpoints" / path.name).write_bytes(path.read_bytes()[:-3])
        newest = newest_checkpoint(copy)
        assert newest.round >= rounds - 1
        assert {y: float(entry.network["w"]) for y, entry in newest.networks.items()} == federation.states[newest.round]


@pytest.mark.parametrize("left", range(5))
def test_a_kill_while_old_files_are_dropped_loses_nothing(tmp_path, left, monkeypatch):
    """After the new file is in place, `left` more files are renamed or deleted, and then the process is gone."""
    federation = Federation(tmp_path)
    federation.play(1, 12)
    remaining = iter(range(left))

    def until_the_kill(act):
        def do(path, *to, **options):
            if next(remaining, None) is None:
                raise KeyboardInterrupt
            return act(path, *to, **options)

        return do

    save = federation.writer.checkpoints._drop
    with monkeypatch.context() as killed:

        def drop(best):
            killed.setattr(Path, "rename", until_the_kill(Path.rename))
            killed.setattr(Path, "unlink", until_the_kill(Path.unlink))
            save(best)

        killed.setattr(federation.writer.checkpoints, "_drop", drop)
        with contextlib.suppress(KeyboardInterrupt):
            federation.play(13, 13)
    federation.assert_newest(13)
    again = federation.writer = RunWriter(tmp_path)
    again.best = (1, 1.0)
    again.checkpoints.reopen(13)
    federation.play(14, 30)
    federation.assert_newest(30)
    assert list(checkpoints(tmp_path)) == [1, 29, 30]
    federation.networks = dict(read_checkpoint(checkpoint_path(tmp_path, 1)).networks)
    assert {float(entry.network["w"]) for entry in federation.networks.values()} == set(federation.states[1].values())


def test_a_run_that_goes_on_saves_as_little_as_one_that_was_never_stopped(tmp_path):
    unbroken, broken = Federation(tmp_path / "a"), Federation(tmp_path / "b")
    unbroken.play(1, 20)
    broken.play(1, 12)
    broken.writer = RunWriter(tmp_path / "b")
    broken.writer.best = (1, 1.0)
    broken.writer.checkpoints.reopen(12)
    broken.play(13, 20)
    assert {path.name: path.read_bytes() for path in files(tmp_path / "a")} == {
        path.name: path.read_bytes() for path in files(tmp_path / "b")
    }
    broken.assert_newest(20)


def test_a_run_that_goes_back_forgets_what_came_later(tmp_path):
    federation = Federation(tmp_path)
    federation.play(1, 12)
    newest = checkpoint_path(tmp_path, 12)
    newest.write_bytes(b"cut")
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint.round == 11
    federation.networks = dict(checkpoint.networks)
    federation.writer = RunWriter(tmp_path)
    federation.writer.checkpoints.reopen(11)
    assert not newest.exists()
    federation.play(12, 16)
    federation.assert_newest(16)
