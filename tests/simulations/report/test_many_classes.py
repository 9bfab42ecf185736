"""A thousand classes: the page, the rows and the terminal stay readable, and take time in proportion."""

import json
import re
import time
from pathlib import Path

import pytest

from simulations.cli.tables import print_metrics
from simulations.report.comparison import QUANTILES, comparison
from simulations.report.page import write_report
from tests.simulations.report.test_page import Balance
from tests.support.run_folders import many_classes

THOUSAND = 1000


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return many_classes(tmp_path_factory.mktemp("many") / "run", THOUSAND, audited=True)


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report([run], run / "report.html").read_text()


def test_the_page_shows_quantiles_and_no_panel_a_class(page: str) -> None:
    assert len(page) < 700_000
    assert page.count("<svg") < 40
    text = re.sub(r"<[^>]+>", " ", page)
    assert [name for name in QUANTILES if name not in text] == []
    assert "highest of any class" in page
    assert "and 1 more" not in text
    parser = Balance()
    parser.feed(page)
    assert parser.wrong == []


def test_every_class_is_in_the_table_that_is_searched_and_the_worst_stand_in_the_page(page: str) -> None:
    table = page[page.index('id="class-table"') : page.index("(function ()")]
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', table, re.S)[1])
    assert sorted(row[0] for row in data["cells"]) == sorted(
        [f"kind {y}" for y in range(THOUSAND) if y != 7] + ["</script><b>kind 7"]
    )
    heads = [re.sub("<.*?>", "", head) for head in re.findall(r"<th scope=\"col\">(.*?)</th>", table)]
    assert heads[:3] == ["class", "fd", "kid"]
    assert {"AUC", "held-out loss", "received", "sent", "own compute", "training samples"} == set(heads[3:])
    first = re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td>', table)
    assert len(first) == 20
    assert first[0] == ("kind 1", "1,000")
    assert first[6][0] == "&lt;/script&gt;&lt;b&gt;kind 7"
    keys = {row[0]: key for row, key in zip(data["cells"], data["keys"], strict=True)}
    assert keys["kind 4"][:2] == [250.0, 250.0]
    assert keys["kind 0"][0] is None
    assert keys["kind 999"][heads.index("training samples") - 1] == 1


def test_quantiles_say_how_many_classes_are_worse(run: Path) -> None:
    rows = {row["class"]: row["mean"] for row in comparison([run]) if row["metric"] == "fd"}
    values = sorted((THOUSAND / y for y in range(1, THOUSAND)), reverse=True)
    for name, share in QUANTILES.items():
        assert sum(value > rows[name] for value in values) / len(values) == pytest.approx(share, abs=2e-3)
    assert sum(isinstance(of, int) for of in rows) == THOUSAND - 1


def test_the_terminal_shows_the_worst_the_quantiles_and_the_rarest(run: Path, capsys) -> None:
    print_metrics(comparison([run]))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 22
    assert lines[1].split()[0] == "worst"
    assert [name for name in ("kind 1 (worst)", "kind 999 (rare)") if not any(name in line for line in lines)] == []
    assert lines[-1] == "and 989 more classes: the report, metrics.csv and --json have all"


def test_a_page_of_four_times_the_classes_takes_about_four_times_as_long(tmp_path: Path) -> None:
    """The least of three: eight times would be a cost that grows with the square of the classes."""
    seconds = {}
    for classes in (500, 2000):
        run = many_classes(tmp_path / str(classes), classes, rounds=2, audited=True)
        taken = []
        for _ in range(3):
            began = time.process_time()
            comparison([run])
            write_report([run], run / "report.html")
            taken.append(time.process_time() - began)
        seconds[classes] = min(taken)
    assert seconds[2000] < 8 * seconds[500], seconds
