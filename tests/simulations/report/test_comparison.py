"""Arms compared, from fabricated run folders: intervals, sentences, leakage, the page and its pictures."""

import io
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from fedmutual import methods
from fedmutual.errors import UserError
from fedmutual.methods import DATA
from simulations.cli.comparison import comparison_table
from simulations.cli.tables import print_metrics
from simulations.report import figures
from simulations.report.answer import by_comparison
from simulations.report.comparison import Comparison, comparison
from simulations.report.page import render, write_report
from simulations.runs.arms import arms_of
from simulations.runs.folder import find_runs, read_runs
from tests.simulations.report.test_page import Balance
from tests.support.run_folders import fabricate

pytestmark = pytest.mark.xdist_group("comparison")  # its fixtures are made once

METHODS = list(methods.METHODS)
SVG = re.compile(r"<svg.*?</svg>", re.S)
WORST = {  # of seeds 0, 1, 2; classes 0 and 1 are always at 2 and 3
    "mutual-scarcity": [8.0, 8.4, 8.2],
    "isolated": [9.1, 9.4, 9.3],
    "fedavg": [8.1, 8.0, 8.6],
    "pooled": [7.0, 7.5, 7.1],
    "reweighted": [6.0, 6.6, 6.1],
    "ridge": [7.8, 8.1, 7.9],
    "memory": [16.0, 16.4, 16.2],
}


def data_of(method: str) -> str:
    return methods.METHODS[method].data


def attack(y: int, value: float, name: str = "loss", t: float | None = 0.1, metric: str = "auc") -> dict[str, Any]:
    row = {"method": "any", "seed": 0, "class": y, "n_train": 4, "attack": name, "t": t, "metric": metric}
    return {**row, "value": value, "low": value - 0.1, "high": value + 0.1, "members": 4, "non_members": 20}


def audit_of(tail: float) -> list[dict[str, Any]]:
    """Class 2 leaks `tail` at the lower of two t; the control with shuffled labels would be stronger."""
    rows = [attack(y, 0.55) for y in (0, 1)] + [attack(2, tail), attack(2, tail - 0.2, t=0.5)]
    rows += [attack(y, 0.5, "control-shuffled") for y in range(3)]
    return [*rows, attack(2, 0.25, "extraction", None, "extracted")]


def compared(folder: Path, worst: dict[str, Sequence[float]]) -> Path:
    """A folder as `compare` leaves it: DIR/<method>/seed-<s>."""
    for method, values in worst.items():
        for seed, value in enumerate(values):
            audit = audit_of(0.9 + 0.01 * seed) if method != "memory" else ()
            facts = {"data": data_of(method), "gradient_steps_per_class": 600, "samples_seen_per_class": 19200}
            facts |= {"bytes_down": 9_000_000, "bytes_up": 1_000_000, "seconds_training": 12.5}
            fd = [2.0, 3.0, value]
            fabricate(folder / method / f"seed-{seed}", method, seed, fd=fd, audit=audit, **facts)
    return folder


def of(folder: Path) -> Comparison:
    return Comparison(arms_of(read_runs([folder])))


def row_of(rows: list[dict[str, Any]], method: str, class_: Any) -> dict[str, Any]:
    return next(row for row in rows if (row["method"], row["class"], row["metric"]) == (method, class_, "fd"))


@pytest.fixture
def seven(tmp_path: Path) -> Path:
    return compared(tmp_path / "all", WORST)


def test_differences_are_paired_and_their_intervals_are_students(seven: Path) -> None:
    ours, isolated = (np.array(WORST[method]) for method in ("mutual-scarcity", "isolated"))
    row = row_of(comparison([seven]), "mutual-scarcity", "worst")
    paired = stats.ttest_rel(ours, isolated).confidence_interval()
    single = stats.ttest_1samp(ours, 0).confidence_interval()
    assert row["seeds"] == 3
    assert (row["mean"] - row["ci95"], row["mean"] + row["ci95"]) == pytest.approx((single.low, single.high))
    low, high = (row["versus_isolated"] + sign * row["versus_isolated_ci95"] for sign in (-1, 1))
    assert (low, high) == pytest.approx((paired.low, paired.high))
    assert row["versus_pooled"] == pytest.approx(np.mean(ours - WORST["pooled"]))


def test_only_seeds_of_both_arms_are_paired(tmp_path: Path) -> None:
    folder = compared(tmp_path, {"mutual-scarcity": [8.0, 9.0, 50.0], "isolated": [9.0, 9.0]})
    row = row_of(comparison([folder]), "mutual-scarcity", "worst")
    assert row["versus_isolated"] == pytest.approx(-0.5)
    assert row["versus_pooled"] is None
    assert row_of(comparison([folder]), "isolated", "worst")["versus_isolated"] is None


def test_rows_are_json_and_hold_samples_costs_and_leakage(seven: Path) -> None:
    rows = comparison([seven])
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    row = row_of(rows, "pooled", 2)
    assert (row["data"], row["name"], row["n_train"], row["n_real"]) == ("pooled", "newt", 4, 65)
    assert (row["parameters"], row["bytes"], row["seconds"]) == (1234, 10_000_000, 12.5)
    assert (row["mean"], row["leakage"]) == (pytest.approx(7.2), pytest.approx(0.91))
    assert row_of(rows, "pooled", "largest")["mean"] == 2.0
    assert row_of(rows, "memory", "worst")["leakage"] is None
    assert [row["class"] for row in rows if row["arm"] == "pooled"][:4] == ["worst", "mean", "rarest", "largest"]


def test_measures_of_all_classes_together_have_rows_and_a_table(tmp_path: Path) -> None:
    runs = [fabricate(tmp_path / name, name, fd=[1, 2, 3]) for name in ("mutual-scarcity", "isolated")]
    for run, score in zip(runs, (8.5, 8.0), strict=True):
        with (run / "metrics.csv").open("a") as file:
            file.write(f"any,0,all,,is-features,{score}\nany,0,all,,n_reference,195\n")
    rows = [row for row in comparison(runs) if row["class"] == "all"]
    assert [(row["metric"], row["mean"], row["versus_isolated"]) for row in rows] == [
        ("is-features", 8.5, 0.5),
        ("is-features", 8.0, None),
    ]
    page = write_report(runs, tmp_path / "page.html").read_text()
    assert re.search(r'id="together".*?mutual-scarcity</th><td><b>8.50', page, re.S)


def test_older_runs_lack_some_and_their_history_stands_in(tmp_path: Path) -> None:
    row = row_of(comparison([fabricate(tmp_path / "a")]), "mutual", "worst")
    assert (row["data"], row["bytes"], row["seconds"], row["leakage"]) == ("stays", 27_000_000, 18.0, None)
    assert (row["ci95"], row["seeds"], row["versus_isolated_ci95"]) == (None, 1, None)


def test_the_answer_says_what_it_costs_where_it_loses_and_what_leaks(seven: Path) -> None:
    price, gain, exposure = by_comparison(of(seven))
    assert price.startswith("Keeping the data apart costs the worst class 1.00 ± 0.25 (95 % interval, 3 seeds)")
    assert "against reweighted, the best of the pooled arms, 1.97 ± 0.38 worse" in price
    assert "is better than isolated" in gain
    assert "is worse than ridge (0.27 ± 0.14)" in gain
    assert "differs from fedavg (±1.0) by no more than chance" in gain
    assert "reweighted" not in gain
    assert "AUC of 0.910 ± 0.025 (0.5 is a coin; isolated 0.91, fedavg 0.91, pooled 0.91)" in exposure
    assert "regenerates 25\N{NO-BREAK SPACE}% of them, and the whole training moved 10 MB" in exposure


@pytest.mark.parametrize(
    ("pooled", "words"),
    [
        (
            [8.2, 8.3, 8.2],
            "For the worst class, keeping the data apart makes no difference beyond chance (±0.38; 95 % ",
        ),
        ([9.0, 9.4, 9.2], "costs the worst class nothing, it is 1.00 ± 0.00 better"),
    ],
)
def test_a_cost_within_its_interval_and_none_are_said_as_such(tmp_path: Path, pooled: list, words: str) -> None:
    worst = {method: WORST[method] for method in ("mutual-scarcity", "isolated")} | {"pooled": pooled}
    assert words in by_comparison(of(compared(tmp_path, worst)))[0]


def test_without_pooled_or_audit_the_answer_says_that_it_does_not_know(tmp_path: Path) -> None:
    runs = [fabricate(tmp_path / name, name, fd=[1, 2, 3]) for name in ("mutual-scarcity", "isolated", "ridge")]
    price, gain, exposure = by_comparison(Comparison(arms_of(read_runs(runs))))
    assert "is not known, as no arm was trained on pooled data" in price
    assert "is the same as isolated and ridge" in gain
    assert "has not been measured" in exposure


def test_the_answer_speaks_of_auto_where_it_is_there(tmp_path: Path) -> None:
    names = ("mutual-auto", "mutual-scarcity", "isolated")
    runs = [fabricate(tmp_path / name, name, fd=[1, 2, value]) for name, value in zip(names, (5, 3, 4), strict=True)]
    gain = by_comparison(Comparison(arms_of(read_runs(runs))))[1]
    assert gain == "For the worst class, mutual learning (mutual-auto) is worse than isolated (1.00)."


def test_arms_that_share_no_seed_are_not_compared(tmp_path: Path) -> None:
    runs = [fabricate(tmp_path / "m", "mutual-scarcity", 0, fd=[1, 2, 3])]
    runs += [fabricate(tmp_path / name, name, 1, fd=[1, 2, 3], data=data_of(name)) for name in ("pooled", "reweighted")]
    price, gain, _ = by_comparison(Comparison(arms_of(read_runs(runs))))
    assert "is not known, as mutual-scarcity and pooled share no seed" in price
    assert "no other arm to compare it with" in gain


def test_equal_values_are_the_same_and_one_seed_has_no_interval(tmp_path: Path) -> None:
    arms = of(compared(tmp_path, {"mutual-scarcity": [8.0], "isolated": [8.0], "pooled": [7.0]}))
    ours, isolated, pooled = (arms.arm(name) for name in ("mutual-scarcity", "isolated", "pooled"))
    assert arms.judge(arms.versus(ours, isolated, "fd", "worst"), "fd") == ("same", "")
    assert arms.judge(arms.versus(ours, pooled, "fd", "worst"), "fd") == ("worse", "1.00")
    assert by_comparison(arms)[1] == "For the worst class, mutual learning (mutual-scarcity) is the same as isolated."


def test_leakage_is_the_strongest_attack_by_its_mean_and_never_the_control(tmp_path: Path) -> None:
    def rows(weak: float, strong: float) -> list[dict[str, Any]]:
        return [attack(2, weak), attack(2, strong, "gradient", None), attack(2, 0.99, "control-shuffled")]

    folders = [
        fabricate(tmp_path / str(seed), seed=seed, audit=rows(*aucs))
        for seed, aucs in enumerate([(0.9, 0.7), (0.5, 0.8)])
    ]
    arms = Comparison(arms_of(read_runs(folders)))
    leak = arms.leak(arms.arms[0], 2)
    assert leak.mean == pytest.approx(0.75)  # gradient: .7 and .8, though loss has the highest single value
    assert arms.leak(arms.arms[0], 0) is None
    assert arms.leak(arms.arms[0], "worst").mean == pytest.approx(0.75)


def test_arms_stand_in_order_of_what_is_done_with_the_data(tmp_path: Path) -> None:
    folder = compared(tmp_path, {method: [8.0] for method in reversed(METHODS)})
    assert [arm.label for arm in of(folder).arms] == METHODS


def test_a_folder_of_runs_stands_for_the_runs_in_it_each_once(seven: Path) -> None:
    assert len(find_runs([seven])) == 21
    assert find_runs([seven, seven / "ridge", seven / "ridge/seed-0"]) == find_runs([seven])
    assert find_runs([seven / "ridge/seed-0"]) == [seven / "ridge/seed-0"]


@pytest.mark.parametrize("content", ["{", '{"rows": 3}', '{"rows": [{"class": 0}]}', '{"rows": [{"class": 7}]}', "[]"])
def test_a_damaged_audit_is_reported_in_one_line(tmp_path: Path, content: str) -> None:
    run = fabricate(tmp_path / "a")
    (run / "audit.json").write_text(content)
    with pytest.raises(UserError, match=re.escape(str(run / "audit.json"))) as caught:
        comparison([run])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("published", "a part of each network is sent, for high noise, and that is what was attacked"),
        ("whole", "the owners' whole networks were attacked, which are not sent"),
        (None, ""),
    ],
)
def test_the_page_says_which_part_of_a_network_was_attacked(tmp_path: Path, part: str | None, says: str) -> None:
    rows = [{**row, **({"part": part} if part else {})} for row in audit_of(0.9)]
    page = write_report([fabricate(tmp_path / "run", audit=rows)], tmp_path / "page.html").read_text()
    assert says in page
    assert ("is what was attacked" in page, "which are not sent" in page) == (part == "published", part == "whole")


@pytest.mark.parametrize(
    ("bound", "says"),
    [(1.25, "The run claims 5.46."), (7.0, "That refutes the epsilon of 5.46 that the run claims: do not trust")],
)
def test_page_and_terminal_say_what_is_proved_and_what_an_audit_refutes(tmp_path, command_line, bound, says) -> None:
    row = {"class": "all", "attack": "pia", "metric": "epsilon", "value": bound, "t": 0.73, "members": 298}
    run = fabricate(tmp_path / "run", audit=[{**row, "right": 170}], epsilon=5.455, delta=1e-5)
    other = fabricate(tmp_path / "other", "isolated")
    settings = (run / "config.toml").read_text().replace('publish = "network"', 'publish = "noise-budget"')
    settings = settings.replace('keep = "best"', 'keep = "last"').replace("evaluate-every = 1", "evaluate-every = 0")
    (run / "config.toml").write_text(settings)
    code, out, _ = command_line("report", run, other, "--out", tmp_path / "page.html")
    page = " ".join((tmp_path / "page.html").read_text().split())
    claimed = "All that a client sends in this run, but the seconds, has epsilon = 5.46 at delta = 1e-05: it changes"
    assert code == 0
    assert out.count(claimed) == 1
    assert page.count(claimed) == 1
    assert "by a factor of 234 at most. Samples are drawn from the owners' private parts as well" in out
    assert "Epsilon is at least" in page
    assert f"with 95% confidence: of 298 pairs PIA told 170 apart. {says}" in page
    assert "What is proved" not in render(arms_of(read_runs([other])))


def test_a_use_of_data_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data must be one of stays, pooled, control"):
        comparison([fabricate(tmp_path / "a", data="elsewhere")])


def test_the_terminal_table_has_an_arm_a_line_under_what_is_done_with_the_data(seven: Path) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(comparison_table(comparison([seven])))
    lines = [re.split(r"\s{2,}", line.strip()) for line in console.export_text().splitlines() if line.strip()]
    by_arm = {line[0]: line[1:] for line in lines}
    assert [name for name in by_arm if name in DATA.values()] == list(DATA.values())
    ours = ["8.20 ±0.50", "4.40 ±0.17", "8.20 ±0.50", "2.00 ±0.00", "-1.07 ±0.14", "+1.00 ±0.25", "0.910 ±0.025"]
    assert by_arm["mutual-scarcity"] == [*ours, "10 MB"]
    assert by_arm["fedavg"][4:6] == ["-1.03 ±0.87", "chance (±1.3)"]
    assert by_arm["memory"][6] == "–"


def test_the_terminal_leads_with_features_and_says_where_nothing_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fabricate(tmp_path / "a")
    with (run / "metrics.csv").open("a") as file:
        file.writelines(f"any,0,{y},,fd-features,{y}.5\n" for y in range(3))
    print_metrics(comparison([run]))
    head = capsys.readouterr().out.splitlines()[0].split()
    assert head[:4] == ["class", "training", "images", "fd-features"]
    (run / "metrics.csv").unlink()
    print_metrics(comparison([run]))
    assert capsys.readouterr().out == "No class has a measure: no samples have been measured.\n"


# The page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("all")
    random = np.random.default_rng(0)
    worst = {method: list(random.uniform(7, 12, 2)) for method in METHODS if method != "mutual"}
    return write_report([compared(folder, worst)], folder / "report.html").read_text()


def test_all_arms_make_a_small_page_that_needs_nothing_else(page: str) -> None:
    assert not re.search(r"(src|href)=[\"'](?!#|data:)", page)
    assert "http" not in page
    assert "<script" not in page
    parser = Balance()
    parser.feed(page)
    assert (parser.wrong, parser.open) == ([], [])
    assert len(page) < 1_000_000
    for method in METHODS[1:]:
        assert page.count(f'<th scope="row">{method}</th>') > 3


def test_every_figure_is_described_in_words(page: str) -> None:
    drawings = SVG.findall(page)
    assert len(drawings) > 20
    for figure in drawings:
        head = figure[: figure.index(">")]
        assert 'aria-hidden="true"' in head or re.search(r'role="img" aria-label="[^"]+"', head)
    assert all(re.search(r'alt="[^"]+"', image) for image in re.findall(r"<img[^>]*>", page))


def numbers_in(path: str) -> tuple[list[float], list[float]]:
    """x and y of a path's points, control points included."""
    values = [float(value) for value in re.findall(r"-?[\d.]+(?:e-?\d+)?", path)]
    return values[::2], values[1::2]


def shift(xs: Sequence[float], ys: Sequence[float], x: float = 0.0, y: float = 0.0) -> figures.Box:
    return figures.Box(x + min(xs), y + min(ys), x + max(xs), y + max(ys))


def text_box(element: ET.Element) -> figures.Box:
    """Where a text lies, on the safe side: at 10.5 points a letter of a sans-serif typeface takes 5.6 on average."""
    style, names = element.get("style", ""), set(element.get("class", "").split())
    wide, x, y = 5.6 * len(element.text or ""), float(element.get("x", 0)), float(element.get("y", 0))
    before = "text-anchor: end" in style or "y" in names
    left = x - wide if before else x - wide / 2 if "middle" in style or "x" in names else x
    return figures.Box(left, y - 9, left + wide, y + 2)


def boxes(figure: str) -> list[figures.Box]:
    """Where the elements of an SVG lie."""
    root = ET.fromstring(figure)
    shapes = {path.get("id"): path for defs in root.iter("defs") for path in defs}
    placed = []
    for element in root.iter():
        kind, get = element.tag, lambda name, element=element: float(element.get(name))
        if kind == "circle":
            placed.append(shift((-get("r"), get("r")), (-get("r"), get("r")), get("cx"), get("cy")))
        elif kind == "line":
            placed.append(shift((get("x1"), get("x2")), (get("y1"), get("y2"))))
        elif kind == "polyline":
            placed.append(shift(*numbers_in(element.get("points"))))
        elif kind == "path" and element not in shapes.values():
            placed.append(shift(*numbers_in(element.get("d"))))
        elif kind == "use":
            shape = shapes[element.get("href").removeprefix("#")]
            placed.append(shift(*numbers_in(shape.get("d")), get("x"), get("y")))
        elif kind == "text":
            placed.append(text_box(element))
    return placed


def test_no_figure_draws_outside_its_box(page: str) -> None:
    for figure in SVG.findall(page):
        _, _, width, height = map(float, re.search(r'viewBox="([^"]+)"', figure)[1].split())
        room = figures.Box(-1, -1, width + 1, height + 1)
        assert all(box.inside(room) for box in boxes(figure)), figure[:300]


@pytest.mark.parametrize(("width", "height"), [(720, 430), (350, 400)])
@pytest.mark.parametrize("spread", [0.0, 0.02, 1.0])
def test_names_in_the_picture_meet_neither_each_other_nor_a_circle(width: int, height: int, spread: float) -> None:
    random = np.random.default_rng(1)
    points = [
        figures.Bubble(name, 0, 0.5 + 0.5 * x * spread, 0.01, 8 + 4 * y * spread, 9.0, 1e6 * k, "in words")
        for k, (name, (x, y)) in enumerate(zip(METHODS[1:], random.uniform(size=(len(METHODS) - 1, 2)), strict=True))
    ]
    drawn = figures.bubbles(points, "across", "up", "label", width, height)
    groups = [group for group in ET.fromstring(drawn).iter("g") if group.get("class")]
    names = [text for group in groups if group.get("class") == "name" for text in group.iter("text")]
    assert sorted(name.text for name in names) == sorted(METHODS[1:])
    circles = [group for group in groups if group.get("class").startswith("bubble-")]
    assert sorted(group.find("title").text for group in circles) == sorted(f"{name}: in words" for name in METHODS[1:])
    labels = [text_box(name) for name in names]
    shown = labels + [box for group in circles for box in boxes(ET.tostring(group, "unicode"))]
    assert len(shown) == 2 * len(points)
    for label in labels:
        assert sum(label.meets(other) for other in shown) == 1  # itself


def test_the_page_has_answer_table_picture_and_folded_details_in_this_order(page: str) -> None:
    marks = [
        'class="answer"',
        'id="arms"',
        'class="wide"',
        'class="dot-panels"',
        "<details>",
        'id="samples"',
        'id="leakage"',
    ]
    places = [page.index(mark) for mark in marks]
    assert places == sorted(places)
    assert "<details>" not in page[: page.index('id="classes"')]
    assert "Not audited, so not shown: memory" in page
    assert "Not equal here" not in page


def test_unequal_budgets_are_named(tmp_path: Path) -> None:
    runs = [
        fabricate(tmp_path / str(n), fd=[1, 2, n], gradient_steps_per_class=n, data=data)
        for n, data in ((3, "stays"), (4, "pooled"))
    ]
    assert "Not equal here: gradient steps." in write_report(runs, tmp_path / "page.html").read_text()
