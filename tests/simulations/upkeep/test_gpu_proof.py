"""The proof that is run on the day when there is a card: its whole path at toy size, on a machine without one."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedmutual.data import open_source
from fedmutual.errors import UserError
from simulations.upkeep.gpu_proof import __main__ as command
from simulations.upkeep.gpu_proof import needs
from simulations.upkeep.gpu_proof.device_paths import CHECKS
from simulations.upkeep.gpu_proof.findings import Findings, Piece
from simulations.upkeep.gpu_proof.images import cut, make_up
from simulations.upkeep.gpu_proof.sizes import CARD, TOY

ROOT = Path(__file__).parents[3]

NOT_THERE = ("flwr", "ray", "torchvision", "sklearn", "typer", "rich", "matplotlib", "jinja2", "cryptography", "click")
"""What a machine that has only PyTorch, NumPy, SciPy, Pillow and the carried wheels lacks; click for good measure."""

BARE = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({NOT_THERE!r}))
sys.argv[0] = "gpu_proof"
if __name__ == "__main__":
    runpy.run_module("simulations.upkeep.gpu_proof", run_name="__main__")
"""


def test_the_whole_path_runs_at_toy_size_without_flower_ray_and_a_card_and_is_not_run_twice(tmp_path):
    script = tmp_path / "bare.py"
    script.write_text(BARE)
    run = [sys.executable, str(script), str(tmp_path / "out")]
    environment = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [line["part"] for line in lines] == (
        ["device paths"] * len(CHECKS) + ["local steps"] + ["options"] * 6 + ["clients"] * 2 + ["CIFAR10-LT"] * 3
    )
    rows = {(line["part"], line["name"]): line["rows"] for line in lines}
    assert [row["peers"] for row in rows["options", "channels_last at batch 2"]] == [0, 1, 2]
    assert rows["options", "CUDA graphs at batch 2"] == [
        {"option": "CUDA graphs", "batch": 2, "left_out": "it needs a card"}
    ]
    assert rows["clients", "1 plain processes"][0]["overhead"] > 1
    for preset in ("cifar10", "cifar10-paper"):
        first, *measured = rows["CIFAR10-LT", preset]
        assert first["extrapolated_hours_of_60000"] == pytest.approx(first["seconds_an_iteration"] * 60_000 / 3600)
        assert first["data"] == "made-up images"
        assert {row["measure"] for row in measured} >= {"fd", "kid-features"}
        assert len(list((tmp_path / "out" / preset / "samples").glob("class-*.png"))) == 3
    assert not list((tmp_path / "out").rglob("work"))
    tables = (tmp_path / "out" / "tables.md").read_text()
    assert tables.startswith("# none: toy sizes on the CPU\n")
    assert "| cifar10 | made-up images | 3 |" in tables
    again = subprocess.run([*run, "--minutes", "0"], env=environment, capture_output=True, text=True, timeout=300)
    assert (again.returncode, again.stdout.splitlines()[-1]) == (0, f"tables: {tmp_path / 'out' / 'tables.md'}")


def test_a_piece_that_fails_is_told_leaves_the_others_be_and_is_tried_again(tmp_path, monkeypatch, capsys):
    broken = [True]

    def fail():
        if broken[0]:
            raise RuntimeError("this card\nhas no such thing")
        return [{"a": 1}]

    pieces = [Piece("options", "one", fail), Piece("options", "two", lambda: [{"a": 2}])]
    monkeypatch.setattr(command, "_pieces", lambda *_: pieces)
    assert not command.prove(tmp_path, 1.0, command.PARTS)
    assert "options, one: RuntimeError: this card has no such thing" in capsys.readouterr().out
    assert "- failed: options, one: RuntimeError: this card has no such thing" in (tmp_path / "tables.md").read_text()
    broken.clear()
    broken.append(False)
    assert command.prove(tmp_path, 1.0, command.PARTS)
    assert "failed" not in (tmp_path / "tables.md").read_text()
    assert "two" not in capsys.readouterr().out


def test_no_piece_begins_once_the_time_is_up_and_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    pieces = [Piece("options", name, lambda: [{"a": 1}]) for name in ("one", "two")]
    monkeypatch.setattr(command, "_pieces", lambda *_: pieces)
    assert not command.prove(tmp_path, -1.0, command.PARTS)
    assert "2 pieces are left, and the same command goes on with them: options, one first" in capsys.readouterr().out
    assert command.prove(tmp_path, 1.0, command.PARTS)


def test_a_folder_is_of_one_card(tmp_path):
    Findings(tmp_path, {"card": "A", "torch": "2"})
    Findings(tmp_path, {"card": "A", "torch": "2"})
    with pytest.raises(UserError, match="holds what was found on A with torch 2: choose another folder"):
        Findings(tmp_path, {"card": "B", "torch": "2"})


def test_a_line_that_was_cut_short_is_measured_again(tmp_path):
    findings = Findings(tmp_path, {"card": "A", "torch": "2"})
    pieces = [Piece("options", name, list) for name in ("one", "two")]
    for piece in pieces:
        findings.add(piece, 1.0, rows=[])
    path = tmp_path / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    again = Findings(tmp_path, {"card": "A", "torch": "2"})
    assert [again.has(piece) for piece in pieces] == [True, False]


def test_a_long_tail_that_was_cut_to_be_carried_is_the_one_that_the_preset_trains_on(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (90, 8, 8, 3), np.uint8)
    labels = np.repeat(np.arange(3), 30)
    whole, carried = tmp_path / "whole.npz", tmp_path / "carried.npz"
    np.savez(whole, train_images=images, train_labels=labels, test_images=images[::-1], test_labels=labels)
    config = TOY.preset("cifar10", data_path=str(whole), imbalance_ratio=0.1)
    assert cut(config, carried, 5) == [30, 9, 3]
    there = TOY.preset("cifar10", data_path=str(carried), imbalance="none")
    before, after = open_source(config.data, config.seed), open_source(there.data, there.seed)
    for y in range(3):
        assert sorted(map(content, before.train(y))) == sorted(map(content, after.train(y)))
        assert sorted(map(content, before.test(y)[:5])) == sorted(map(content, after.test(y)))


def content(image):
    return image.numpy().tobytes()


def test_made_up_images_have_a_long_tail_and_classes_that_differ(tmp_path):
    make_up(TOY.preset("cifar10", imbalance="none"), tmp_path / "made-up.npz", 400)
    config = TOY.preset("cifar10", data_path=str(tmp_path / "made-up.npz"), imbalance="none")
    source = open_source(config.data, config.seed)
    assert source.counts == [400, 40, 8]
    assert float((source.train(0).mean(0) - source.train(1).mean(0)).abs().mean()) > 0.2


def test_what_is_carried_is_all_that_the_projects_code_needs_beside_pytorchs_own():
    names = {wheel.partition("==")[0] for wheel in needs.wheels()}
    assert names > {"diffusers", "pydantic", "pydantic-core", "safetensors", "tomli-w", "huggingface-hub"}
    assert names.isdisjoint({"torch", "numpy", "scipy", "pillow", "flwr", "ray"})
    assert needs.missing() == []


def test_the_card_has_the_papers_sizes():
    config = CARD.preset("cifar10")
    assert (config.network.kind, CARD.batches, CARD.round_seconds) == ("unet-large", (5, 48, 128), 60)


def test_a_machine_without_the_wheels_is_told_how_to_get_them(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_proof", "out"])
    monkeypatch.setitem(needs.IMPORTED, "a_module_that_is_nowhere", "a-package")
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: a-package is missing: --wheels, where the project is installed")
