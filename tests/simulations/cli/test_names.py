"""Names of classes are printed as they are, whatever brackets they hold."""

import pytest

from simulations.cli.tables import print_metrics

NAMES = ["lesion [left]", "[red]grade", "<b>x", "肺炎", "[/]"]


def test_brackets_in_a_name_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"arm": "mutual", "metric": "fd", "mean": 1.0, "n_train": 3}
    print_metrics([{**row, "class": y, "name": name} for y, name in enumerate(NAMES)])
    printed = capsys.readouterr().out
    assert [name for name in NAMES if name not in printed] == []
