"""The run folder: what is written is read, old folders are read, and damage is one line."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fedmutual.checkpoint import CheckpointError
from fedmutual.config import RunConfig
from fedmutual.errors import UserError
from fedmutual.run_folder import (
    AuditRow,
    HistoryLine,
    MetricRow,
    RunFacts,
    RunWriter,
    change_facts,
    read_audit,
    read_facts,
    read_history,
    read_metrics,
    read_samples,
    write_arrays,
    write_audit,
    write_metrics,
)
from fedmutual.saved_networks import (
    NetworkOfRound,
    checkpoint_path,
    checkpoints,
    newest_checkpoint,
    read_checkpoint,
)
from simulations.report.comparison import comparison
from simulations.runs.folder import read_run
from simulations.runs.measuring import evaluate
from simulations.runs.membership import audit_run
from simulations.runs.networks import read_networks

OLD = Path(__file__).parent.parent / "data" / "old_runs"
"""`mutual`, a smoke run of simulate, and `pooled`, an arm of compare, as the first layout of the code wrote them."""

ROWS = [MetricRow("mutual", 3, 0, 9, "fd", 1.5), MetricRow("mutual", 3, "worst", None, "recall", math.nan)]


@pytest.fixture
def writer(tmp_path):
    """The writer of a run that has just begun."""
    writer = RunWriter(tmp_path / "run")
    writer.create(RunConfig(), "pooled", (1, 8, 8), 12)
    return writer


def line(round_, y, **values):
    return HistoryLine(round=round_, class_=y, **values)


# What is written is read


def test_what_is_appended_is_read_and_has_the_keys_of_every_history(writer):
    lines = [line(1, 0, loss=0.5), line(1, 1, status="missing", reason="no reply in time", step=4, count=7)]
    writer.append(lines)
    assert read_history(writer.folder) == lines
    first, second = (json.loads(text) for text in (writer.folder / "history.jsonl").read_text().splitlines())
    common = ["round", "class", "status", "reason", "loss", "mutual", "grad_norm", "held_out", "seconds"]
    assert list(first) == [*common, "bytes_down", "bytes_up", "round_seconds"]
    assert set(second) - set(first) == {"step", "count"}


def test_a_record_is_a_mapping_by_its_names_on_disk():
    record = HistoryLine.of({"round": 2, "class": 1, "bytes_up": 5, "beta": 0.25})
    assert (record.class_, record["class"], record.bytes_up, record["beta"]) == (1, 1, 5, 0.25)
    assert record.get("loss") is None
    assert "step" not in record
    assert record == {**record}
    assert {**record}["beta"] == 0.25
    with pytest.raises(AttributeError):
        record.round = 3


def test_facts_that_are_not_known_stay_when_others_change(writer):
    change_facts(writer.folder, weight_decay={"0": 0.1})
    change_facts(writer.folder, status="done")
    facts = read_facts(writer.folder)
    assert (facts.status, facts.method, facts["weight_decay"], facts.data) == ("done", "pooled", {"0": 0.1}, None)
    assert json.loads((writer.folder / "run.json").read_text())["training_counts"] is None


def test_metrics_audit_and_samples_come_back(writer):
    write_metrics(writer.folder, ROWS)
    assert (writer.folder / "metrics.csv").read_text() == (
        "method,seed,class,n_train,metric,value\nmutual,3,0,9,fd,1.5\nmutual,3,worst,,recall,nan\n"
    )
    first, second = read_metrics(writer.folder, 10)
    assert first == ROWS[0]
    assert math.isnan(second.value)
    rows = [AuditRow(2, "pia", "auc", 0.75, "mutual", 3, 9, 0.1, 0.7, 0.8, 2, 20, 30)]
    write_audit(writer.folder, 5, rows)
    assert read_audit(writer.folder, 10) == rows
    written = json.loads((writer.folder / "audit.json").read_text())
    keys = ["method", "seed", "class", "n_train", "attack", "t", "metric", "value", "low", "high", "queries"]
    assert (written["round"], list(written["rows"][0])) == (5, [*keys, "members", "non_members"])
    arrays = {0: np.ones((3, 2)), 1: np.zeros((2, 2))}
    write_arrays(writer.folder / "samples", arrays, {0: np.empty((0, 2)), 1: np.ones((1, 2))})
    assert sorted(read_samples(writer.folder)) == ["generated_0", "generated_1", "real_1"]
    np.testing.assert_array_equal(read_samples(writer.folder)["generated_0"], arrays[0])


def test_checkpoints_come_back_and_the_newest_and_the_best_stay(writer):
    for round_, norm in enumerate([3.0, 1.0, 2.0, math.inf], 1):
        networks = {0: NetworkOfRound({"w": torch.full((2,), float(round_))}, round_)}
        writer.write_checkpoint({**networks, "shared": NetworkOfRound({"w": torch.zeros(1)}, 0)}, round_, norm)
    assert (writer.round, writer.best) == (4, (2, 1.0))
    assert list(checkpoints(writer.folder)) == [2, 3, 4]
    newest = newest_checkpoint(writer.folder)
    assert (newest.round, newest.best, newest.networks["shared"].round) == (4, (2, 1.0), 0)
    torch.testing.assert_close(newest.networks[0].network["w"], torch.full((2,), 4.0))
    checkpoint_path(writer.folder, 4).write_bytes(b"cut")
    assert newest_checkpoint(writer.folder).round == 3
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(checkpoint_path(writer.folder, 4))


def test_a_taken_folder_is_not_begun_again(writer):
    writer.write_settings(RunConfig())
    with pytest.raises(UserError, match="already holds a run"):
        RunWriter(writer.folder).create(RunConfig(), "pooled", (1, 8, 8), 12)


# Damage


def test_a_last_line_of_the_history_that_was_cut_is_left_out_and_no_other(writer):
    writer.append([line(1, 0), line(1, 1)])
    path = writer.folder / "history.jsonl"
    whole = path.read_text()
    for cut in range(1, len(whole.splitlines()[1])):
        path.write_text(whole[: -1 - cut])
        assert read_history(writer.folder) == [line(1, 0)]
    writer.keep_history_until(1)
    assert path.read_text() == whole.splitlines()[0] + "\n"
    path.write_text(whole[3:])
    with pytest.raises(UserError, match=re.escape(f"{path}, line 1 is not a line of history")):
        read_history(writer.folder)


@pytest.mark.parametrize(
    "text",
    ["[]", "3", '"x"', "null", '{"round": 1}', '{"round": "1", "class": 0}', '{"round": 1, "class": 0, "loss": "x"}'],
)
def test_a_line_that_is_none_names_file_and_line(writer, text):
    writer.append([line(1, 0)])
    with (writer.folder / "history.jsonl").open("a") as file:
        file.write(text + "\n")
    with pytest.raises(UserError, match=r"history\.jsonl, line 2 is not a line of history"):
        read_history(writer.folder)


def test_a_class_that_the_run_does_not_have_names_file_and_line(writer):
    writer.append([line(1, 0), line(1, 12)])
    with pytest.raises(UserError, match=r"history\.jsonl, line 2: class 12 of 10 classes"):
        read_history(writer.folder, 10)
    write_metrics(writer.folder, [ROWS[0], MetricRow("mutual", 3, 12, 9, "fd", 1.5)])
    with pytest.raises(UserError, match=r"metrics\.csv, line 3: class 12 of 10 classes"):
        read_metrics(writer.folder, 10)
    write_metrics(writer.folder, [ROWS[0], ROWS[0]])
    with pytest.raises(UserError, match="gives fd of class 0 twice"):
        read_metrics(writer.folder, 10)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[]", "holds no object"),
        (b"{}", "lacks name, method, class_names"),
        (b'{"name": "x", "method": "y", "class_names": 3}', "class_names is 3, not a list"),
    ],
)
def test_damaged_facts_are_one_line(writer, content, says):
    (writer.folder / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=f"run.json.*{says}") as caught:
        read_facts(writer.folder)
    assert "\n" not in str(caught.value)


def test_samples_that_are_damaged_inside_are_one_line(writer):
    write_arrays(writer.folder / "samples", {0: np.random.default_rng(0).normal(size=(50, 50))}, {})
    path = writer.folder / "samples" / "samples.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"samples\.npz cannot be read"):
        read_samples(writer.folder)["generated_0"]


# Folders that an older version wrote


@pytest.fixture(params=["mutual", "pooled"])
def old(request, tmp_path):
    return Path(shutil.copytree(OLD / request.param, tmp_path / request.param))


def test_an_old_folder_is_read(old):
    run = read_run(old)
    assert (run.method, run.facts.status, run.rounds_done, len(run.history)) == (old.name, "done", 2, 20)
    assert run.facts.training_counts == [89, 63, 45, 32, 23, 16, 12, 8, 6, 4]
    assert {line.status for line in run.history} == {"ok"}
    assert [line.step for line in run.history] == ([5] * 10 + [10] * 10 if old.name == "mutual" else [None] * 20)
    assert len(run.scores("fd")) == 10
    assert bool(run.audit) == (old.name == "pooled")
    round_, networks = read_networks(old)
    assert (round_, sorted(networks)) == (2, list(range(10)))
    assert set(read_samples(old)) == {f"{kind}_{y}" for kind in ("generated", "real") for y in range(10)}


def test_an_old_folder_is_reported(old, command_line):
    before = {row["class"]: row["mean"] for row in comparison([old]) if row["metric"] == "fd"}
    code, out, _ = command_line("report", old, "--json")
    assert code == 0
    rows = json.loads(out)["rows"]
    assert {row["class"]: row["mean"] for row in rows if row["metric"] == "fd"} == before
    expected = {"mutual": 95.96826, "pooled": 102.11247}[old.name]
    assert before["worst"] == pytest.approx(expected, abs=1e-4)
    assert (old / "report.html").stat().st_size > 10_000


def test_an_old_folder_is_evaluated_and_audited_anew(old):
    before = {(row.class_, row.metric): row.value for row in read_run(old).rows}
    evaluate(old)
    after = {(row.class_, row.metric): row.value for row in read_run(old).rows}
    assert after == pytest.approx(before, rel=1e-3, abs=1e-3, nan_ok=True)
    audited = audit_run(old)
    assert read_run(old).audit == audited


def test_optional_values_that_are_missing_take_their_defaults_and_unknown_ones_are_kept(old):
    facts = json.loads((old / "run.json").read_text())
    required = {key: facts[key] for key in ("name", "method", "class_names")}
    (old / "run.json").write_text(json.dumps({**required, "mood": "fine"}))
    (old / "history.jsonl").write_text('{"round": 1, "class": 0, "beta": 0.5}\n')
    (old / "metrics.csv").write_text("mood,method,seed,class,metric,value\nfine,mutual,0,0,fd,2.5\n")
    (old / "audit.json").write_text(
        '{"rows": [{"class": 0, "attack": "pia", "metric": "auc", "value": 0.5, "mood": 1}]}'
    )
    run = read_run(old)
    assert isinstance(run.facts, RunFacts)
    assert (run.facts["mood"], run.facts.parameters, run.data, run.seconds) == ("fine", None, "stays", 0)
    assert (run.history[0].status, run.history[0].bytes_up, run.history[0]["beta"]) == ("ok", 0, 0.5)
    assert (run.scores("fd"), run.rows[0].n_train) == ({0: 2.5}, None)
    assert (run.audit[0].t, run.audit[0].low, run.audit[0]["mood"]) == (None, None, 1)
