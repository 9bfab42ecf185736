"""TensorBoard event files, read back with TensorBoard's own reader."""

import json
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedmutual.config import RunConfig
from fedmutual.errors import UserError
from fedmutual.settings import write_settings
from simulations.runs.tensorboard import write_events
from tests.support.run_folders import fabricate


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def test_curves_metrics_and_samples_come_back_at_their_steps(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "a")
    (run / "config.toml").write_text(write_settings(RunConfig().but(rounds=3, local_steps=200).settings()))
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    for line in lines:
        line["loss"] = line["round"] + line["class"] / 10
    (run / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert write_events([tmp_path]) == [run / "tensorboard"]
    events = read(run / "tensorboard")
    points = [(event.step, event.value) for event in events.Scalars("loss/newt")]
    assert points == [(200, pytest.approx(1.2)), (400, pytest.approx(2.2)), (600, pytest.approx(3.2))]
    assert [(event.step, event.value) for event in events.Scalars("fd/newt")] == [(600, pytest.approx(8.27))]
    assert set(events.Tags()["images"]) == {
        f"{kind}/{name}" for kind in ("generated", "real") for name in ("cat", "<b>dog</b>", "newt")
    }
    assert "held_out/cat" not in events.Tags()["scalars"]
    assert "recall/cat" not in events.Tags()["scalars"]  # nan


def test_a_second_call_replaces_the_first(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "a")
    write_events([run])
    write_events([run])
    assert len(read(run / "tensorboard").Scalars("grad_norm/cat")) == 3


def test_without_the_package_one_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'fedmutual\[tensorboard\]'"):
        write_events([fabricate(tmp_path / "a")])
