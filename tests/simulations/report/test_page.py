"""The report, from fabricated run folders: what it must say, show and refuse."""

import base64
import html
import html.parser
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedmutual.config import RunConfig
from fedmutual.errors import UserError
from fedmutual.settings import write_settings
from simulations.report import line_charts, samples
from simulations.report.comparison import comparison
from simulations.report.page import write_report
from tests.support.run_folders import NAMES, fabricate

VOID = {"meta", "link", "img", "br", "hr", "input"}


def page_of(tmp_path: Path, *folders: Path) -> str:
    return write_report(list(folders), tmp_path / "out" / "report.html").read_text()


def text_of(page: str) -> str:
    """What a reader sees, on one line."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


class Balance(html.parser.HTMLParser):
    """Counts tags that are closed out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        pass

    def handle_endtag(self, tag) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [fabricate(tmp_path / "a", "mutual"), fabricate(tmp_path / "b", "isolated")]


def test_the_page_needs_nothing_but_itself(tmp_path: Path, two: list[Path]) -> None:
    page = page_of(tmp_path, *two)
    assert not re.search(r"(src|href)=[\"'](?!#|data:)", page)
    assert "url(" not in page
    assert "@import" not in page
    assert "<script" not in page
    assert str(tmp_path) not in page


def test_the_page_is_well_formed(tmp_path: Path, two: list[Path]) -> None:
    parser = Balance()
    parser.feed(page_of(tmp_path, *two))
    assert parser.wrong == []
    assert parser.open == []


def test_the_answer_names_the_worst_class_and_the_better_arm(tmp_path: Path, two: list[Path]) -> None:
    text = text_of(page_of(tmp_path, *two))
    assert "worst class fares best with mutual: it is class newt (4 training samples), at a distance of 8.27" in text
    assert "With isolated it is class newt (4 training samples), at 10.04: 1.77 higher (21 %)" in text
    assert "one seed proves nothing" in text


def test_the_worst_class_stands_first_and_both_arms_beside_each_other(tmp_path: Path, two: list[Path]) -> None:
    page = page_of(tmp_path, *two)
    body = re.search(r'<div class="first">.*?<tbody>(.*?)</tbody>', page, re.S)[1]
    rows = [text_of(row) for row in re.findall(r"<tr.*?</tr>", body, re.S)]
    assert rows[0] == "worst class 8.27 ★ class newt 10.04 class newt"
    assert rows[1].startswith("mean 4.42 ★ 5.01")
    assert rows[2] == "cat 90 65 2.00 1.50 ★"
    assert rows[4] == "newt 4 65 8.27 ★ 10.04"


def test_seeds_of_one_arm_are_averaged_and_paired(tmp_path: Path) -> None:
    runs = [fabricate(tmp_path / f"m{s}", "mutual", s, shift=0.1 * s) for s in (0, 1, 2)]
    runs += [fabricate(tmp_path / f"i{s}", "isolated", s, shift=0.1 * s) for s in (0, 1, 2)]
    text = text_of(page_of(tmp_path, *runs))
    assert "at a distance of 8.37" in text
    assert "at 10.14: 1.77 higher (21 %); 95 % interval 1.77 to 1.77 over 3 seeds." in text
    assert "one seed proves nothing" not in text


def test_arms_of_one_method_are_told_apart_by_their_settings(tmp_path: Path) -> None:
    first, second = fabricate(tmp_path / "a"), fabricate(tmp_path / "b")
    (second / "config.toml").write_text(write_settings(RunConfig().but(beta=0.25, rounds=3).settings()))
    text = text_of(page_of(tmp_path, first, second))
    assert "mutual, beta 1" in text
    assert "mutual, beta 0.25" in text


def test_images_are_shown_for_every_class_arm_and_the_real_data(tmp_path: Path, two: list[Path]) -> None:
    assert page_of(tmp_path, *two).count('src="data:image/png;base64,') == 3 * 3


@pytest.mark.parametrize(("shape", "mark", "count"), [((1,), 'class="real"', 3), ((2,), 'class="points"', 3 * 2)])
def test_points_are_drawn_against_real_ones(tmp_path: Path, shape: tuple, mark: str, count: int) -> None:
    runs = [fabricate(tmp_path / name, name, shape=shape) for name in ("mutual", "isolated")]
    assert page_of(tmp_path, *runs).count(mark) == count


def test_grids_of_the_run_stand_in_for_samples_that_are_gone(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "a")
    (run / "samples" / "samples.npz").unlink()
    (run / "samples" / "class-001.png").write_bytes(b"picture")
    assert samples.png_address(b"picture") in page_of(tmp_path, run)


def test_mutual_term_without_weight_is_left_out(tmp_path: Path) -> None:
    assert "Mutual term" not in page_of(tmp_path, fabricate(tmp_path / "a", "isolated"))
    assert "Mutual term" in page_of(tmp_path, fabricate(tmp_path / "b", "mutual"))


def test_a_quantity_that_was_never_recorded_has_no_curves(tmp_path: Path) -> None:
    assert "Loss on samples kept" not in page_of(tmp_path, fabricate(tmp_path / "a"))


def test_bytes_and_seconds_are_added_up(tmp_path: Path) -> None:
    text = text_of(page_of(tmp_path, fabricate(tmp_path / "a")))
    assert "all clients 18 MB 9 MB 18 s cat 6 MB 3 MB 6 s" in text
    # 18 s of compute, three clients at once, 9 s of rounds, 12 s in all.
    assert "clients' compute 6 s (50 %), rest of the rounds 3 s (25 %), outside them 3 s (25 %)" in text


def test_rejected_replies_are_listed_and_their_reasons_cannot_inject(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "a")
    assert "All replies were accepted." in page_of(tmp_path, run)
    line = {"round": 2, "class": 1, "status": "rejected", "reason": "<script>alert(1)</script>", "loss": None}
    with (run / "history.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    page = page_of(tmp_path, run)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page
    assert "<b>dog</b>" not in page
    assert "All replies were accepted." not in page


def test_a_last_line_cut_short_is_left_out_and_no_other(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "a")
    path = run / "history.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-20])
    assert "3 of 3" in page_of(tmp_path, run)
    path.write_text(whole[:-20] + "\n" + whole)
    with pytest.raises(UserError, match="line 9 is not a line of history"):
        page_of(tmp_path, run)


def test_a_run_that_has_just_begun_shows_what_there_is(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "a")
    for name in ("history.jsonl", "metrics.csv", "samples/samples.npz"):
        (run / name).unlink()
    facts = {"name": "animals", "method": "mutual", "class_names": NAMES, "training_counts": None, "status": "running"}
    (run / "run.json").write_text(json.dumps(facts))
    text = text_of(page_of(tmp_path, run))
    assert "No samples have been measured yet" in text
    assert "Not finished, so that numbers may still change: mutual (status: running, 0 of 3 rounds recorded)" in text


def test_settings_away_from_their_defaults_are_listed(tmp_path: Path) -> None:
    page = page_of(tmp_path, fabricate(tmp_path / "a"))
    prominent = page[page.index("differ from their defaults") : page.index("<details>")]
    assert "rounds" in text_of(prominent)
    assert "learning-rate" not in text_of(prominent)
    assert "learning-rate" in text_of(page)


def test_it_warns_of_few_real_samples_and_never_calls_the_distance_fid(tmp_path: Path) -> None:
    page = page_of(tmp_path, fabricate(tmp_path / "a", shape=(3, 8, 8)))
    assert "has 65 of them in 192 dimensions" in text_of(page)
    assert re.findall(r"[^.]*FID[^.]*\.", text_of(page)) == [
        " It is not the FID of the literature, which uses the features of one particular network; "
        "the two must not be compared."
    ]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "run.json").unlink(), "run.json is missing"),
        (lambda run: (run / "config.toml").unlink(), "config.toml is missing"),
        (lambda run: (run / "run.json").write_text("{"), "not valid JSON"),
        (lambda run: (run / "run.json").write_text('{"name": "x"}'), "lacks method, class_names"),
        (lambda run: (run / "metrics.csv").write_text("a,b\n1,2\n"), "not of the form method,seed"),
        (lambda run: (run / "samples" / "samples.npz").write_bytes(b"PK?"), "cannot be read"),
    ],
)
def test_a_damaged_folder_is_reported_in_one_line(tmp_path: Path, damage, message: str) -> None:
    run = fabricate(tmp_path / "a")
    damage(run)
    with pytest.raises(UserError, match=message) as caught:
        page_of(tmp_path, run)
    assert "\n" not in str(caught.value)


def test_no_folder_none_at_all_and_other_classes_are_refused(tmp_path: Path, two: list[Path]) -> None:
    with pytest.raises(UserError, match="no such folder"):
        comparison([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="no run folder"):
        comparison([])
    facts = json.loads((two[1] / "run.json").read_text())
    (two[1] / "run.json").write_text(json.dumps(facts | {"class_names": ["x", "y", "z"]}))
    with pytest.raises(UserError, match="different classes"):
        comparison(two)


def with_features(run: Path, values: dict[int, float]) -> Path:
    """Adds fd-features of some classes, as an extractor would."""
    with (run / "metrics.csv").open("a") as file:
        file.writelines(f"any,0,{y},,fd-features,{value}\n" for y, value in values.items())
    return run


def test_distances_in_features_lead_where_every_measured_arm_has_them(tmp_path: Path, two: list[Path]) -> None:
    with_features(two[0], {0: 0.5, 1: 0.7, 2: 0.6})
    assert "(fd; 0 is best)" in text_of(page_of(tmp_path, *two))
    with_features(two[1], {0: 0.4, 1: 0.3, 2: 0.9})
    page = page_of(tmp_path, *two)
    text = text_of(page)
    assert "best with mutual: it is class <b>dog</b> (20 training samples), at a distance of 0.700" in text
    assert "(fd-features; 0 is best)" in text
    assert page.index("<code>fd-features</code></h3>") < page.index("<code>fd</code></h3>")


def test_the_title_names_the_preset_or_the_data_file_or_the_source(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "a")

    def heading() -> str:
        return re.search(r"<h1>How well each class is generated: (.*?)</h1>", page_of(tmp_path, run))[1]

    assert heading() == "animals"
    settings = RunConfig().settings() | {"data": "npz", "data-path": "/elsewhere/scans.v2.npz"}
    (run / "config.toml").write_text(write_settings(settings))
    assert heading() == "scans.v2"
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"preset": "fashion-14"}))
    assert heading() == "fashion-14: scans.v2"


def without_class(run: Path, y: int) -> None:
    """As a run whose client of class y always failed leaves its folder."""
    lines = (run / "metrics.csv").read_text().splitlines()
    (run / "metrics.csv").write_text("\n".join(line for line in lines if line.split(",")[2] != str(y)) + "\n")
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    failed = {"status": "error", "reason": "truncated image", "loss": None, "mutual": None, "grad_norm": None}
    lines = [json.dumps(line | failed if line["class"] == y else line) for line in history]
    (run / "history.jsonl").write_text("\n".join(lines) + "\n")
    with np.load(run / "samples" / "samples.npz") as store:
        arrays = {key: store[key] for key in store.files if key != f"generated_{y}"}
    np.savez(run / "samples" / "samples.npz", **arrays)


def test_a_class_without_a_network_is_shown_as_missing_with_its_reason(tmp_path: Path, two: list[Path]) -> None:
    without_class(two[1], 2)
    page = page_of(tmp_path, *two)
    text = text_of(page)
    assert "class newt of isolated: it has no network, as no reply of its client was accepted; " in text
    assert "the last is recorded as error (truncated image)" in text
    assert page.count('<div class="absent">missing</div>') == 1
    body = re.search(r'<div class="first">.*?<tbody>(.*?)</tbody>', page, re.S)[1]
    rows = [text_of(row) for row in re.findall(r"<tr.*?</tr>", body, re.S)]
    assert rows[4] == "newt 4 65 8.27 – missing"
    # Its worst class would be the worst of two, and must not beat the worst of three.
    assert rows[0] == "worst class 8.27 class newt – a class is missing"
    assert "The worst class with mutual is class newt (4 training samples), at a distance of 8.27" in text


def test_a_lone_run_that_lacks_a_class_says_what_its_worst_class_is_of(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "a")
    without_class(run, 2)
    text = text_of(page_of(tmp_path, run))
    assert "Classes without a measure; the worst class and the mean are of the others: class newt : it has no" in text
    assert "The worst class with mutual is class <b>dog</b> (20 training samples), at a distance of 3.00" in text


def test_a_measure_without_a_value_says_so_instead_of_a_table(tmp_path: Path) -> None:
    text = text_of(page_of(tmp_path, fabricate(tmp_path / "a")))
    assert "Higher is better: little variety is lost. No class has a value of this measure." in text


def test_extractors_that_differ_are_not_comparable(tmp_path: Path) -> None:
    facts = [{"file": f"{k}.safetensors", "sha256": str(k), "accuracy": 0.9} for k in (1, 2)]
    runs = [
        fabricate(tmp_path / method, method, extractor=fact)
        for method, fact in zip(("mutual", "isolated"), facts, strict=True)
    ]
    assert "1.safetensors (classifies 90.0 % of its test images correctly)" in text_of(page_of(tmp_path, runs[0]))
    assert "measured with different ones" not in page_of(tmp_path, runs[0])
    assert "measured with different ones" in page_of(tmp_path, *runs)


def test_axis_ticks_are_round_and_inside() -> None:
    assert line_charts.Axis(0.0, 1.0, 0, 100).ticks() == [0.0, 0.5, 1.0]
    assert line_charts.Axis.over([0.02, 5.0], 0, 100, may_log=True).ticks() == [0.1, 1.0]
    assert line_charts.Axis(1.0, 100.0, 0, 50, log=True).place(10.0) == 25.0


def test_tiles_hold_the_first_images_in_reading_order() -> None:
    images = np.full((3, 1, 24, 24), -1.0)
    images[1] = 1.0
    content = base64.b64decode(samples.tiles(images, columns=2).partition(",")[2])
    pixels = np.asarray(Image.open(io.BytesIO(content)))
    assert pixels.shape == (50, 50, 3)
    assert (pixels[0, 0, 0], pixels[0, 30, 0], pixels[30, 0, 0]) == (0, 255, 0)
