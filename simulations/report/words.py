"""Numbers as a person reads them."""

import math
from collections.abc import Sequence

from fedmutual.evaluation.intervals import Estimate

NOTHING = "–"


def number(value: float | None) -> str:
    """A measured value in three or four digits; – where there is none."""
    if value is None or math.isnan(value):
        return NOTHING
    size = abs(value)
    if size == 0 or size >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if size >= 1 else f"{value:.3f}" if size >= 1e-3 else f"{value:.1e}"


def interval(value: float, half: float | None) -> str:
    """value ± half: 8.75 ± 0.36; without a half-width the value alone."""
    middle, half_width = interval_parts(value, half)
    return f"{middle} ± {half_width}" if half_width else middle


def interval_parts(value: float, half: float | None) -> tuple[str, str]:
    """(value, half-width) with two digits of the finer of both, and no finer than three of the value.

    Without a half-width the second is empty.
    """
    if half is None or math.isnan(half):
        return number(value), ""
    finest = max(2, _places(value) + 1) if value else _places(half)
    places = min(max(_places(value), _places(half), 0), finest) if half else finest
    return f"{value:,.{places}f}", f"{half:,.{places}f}"


def estimated(value: Estimate | None) -> str:
    """`interval` of an estimate; – where there is none."""
    return NOTHING if value is None else interval(value.mean, value.half)


def spread(half: float) -> str:
    """±0.36, to two digits."""
    return f"±{half:,.{max(_places(half), 0)}f}"


def _places(value: float) -> int:
    """Decimal places that show two digits of a value."""
    return 1 - math.floor(math.log10(abs(value))) if value else 0


def percent(share: float | None) -> str:
    if share is None or math.isnan(share):
        return NOTHING
    digits = 1 if 0 < abs(share) < 0.1 else 0
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def whole(count: float | None) -> str:
    """A count with its thousands apart."""
    return NOTHING if count is None or math.isnan(count) else f"{count:,.0f}"


def size(count: float | None) -> str:
    """Bytes in decimal units: 1.5 MB."""
    if count is None:
        return NOTHING
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: 0.25 s, 42 s, 3 min 20 s, 2 h 5 min."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return (
        f"{seconds // 60:.0f} min {seconds % 60:.0f} s" if seconds < 3600 else f"{minutes // 60} h {minutes % 60} min"
    )


def listing(words: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
