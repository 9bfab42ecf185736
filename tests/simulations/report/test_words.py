"""Numbers as a person reads them."""

import pytest

from simulations.report.words import duration, interval, listing, number, percent, size, spread


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [
        (8.754, 0.3612, "8.75 ± 0.36"),
        (26.53, 11.2, "27 ± 11"),
        (7.0, 14.0, "7.0 ± 14.0"),
        (0.957, 0.0029, "0.957 ± 0.003"),
        (-1.0667, 0.143, "-1.07 ± 0.14"),
        (0.0012, 0.00043, "0.00120 ± 0.00043"),
        (2.0, 0.0, "2.00 ± 0.00"),
        (0.0, 0.0, "0 ± 0"),
        (1234.5, 20.0, "1,234 ± 20"),
        (8.754, None, "8.75"),
    ],
)
def test_an_interval_has_the_digits_that_it_supports(value: float, half: float | None, text: str) -> None:
    assert interval(value, half) == text


def test_numbers_shares_sizes_times_and_lists() -> None:
    assert [number(x) for x in (None, float("nan"), 12345.6, 8.754, 0.0123, 0.00012)] == [
        "–",
        "–",
        "12,346",
        "8.75",
        "0.012",
        "1.2e-04",
    ]
    assert [percent(x).replace("\N{NO-BREAK SPACE}", " ") for x in (0, 0.0123, 0.25, None)] == [
        "0 %",
        "1.2 %",
        "25 %",
        "–",
    ]
    assert [size(x) for x in (999, 1500, 2.53e8, None)] == ["999 B", "1.5 kB", "253 MB", "–"]
    assert [duration(x) for x in (0.25, 42, 200, 7500)] == ["0.25 s", "42 s", "3 min 20 s", "2 h 5 min"]
    assert [listing(x) for x in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    assert [spread(x) for x in (0.3612, 14.0, 2.52)] == ["±0.36", "±14", "±2.5"]
