"""matplotlib figures as inline SVG that takes its colours and its typeface from the page around it.

A figure is drawn in stand-in colours. When the SVG is written, `INK` becomes CSS `currentColor`, and a page may
replace more stand-ins by CSS variables of its own, so that one drawing serves light mode, dark mode and print.
"""

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK = "#818283"
"""Stands for the page's text colour until the SVG is written; a colour that no map or line has."""

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "fedmutual",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 9,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
}

NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@contextmanager
def style(**changes: Any) -> Iterator[None]:
    """matplotlib's settings while a figure is drawn and written: `STYLE`, and `changes` with _ for a full stop."""
    own: dict[Any, Any] = {name.replace("_", "."): value for name, value in changes.items()}
    with rc_context({**STYLE, **own}):
        yield


def svg(
    figure: Figure,
    label: str,
    colours: Mapping[str, str] | None = None,
    titles: Mapping[str, str] | None = None,
    rem_per_inch: float = 7.5,
) -> Markup:
    """The figure as an <svg> element that fills its place, up to a width of `rem_per_inch`; `label` is read aloud.

    `colours` maps further stand-in colours to CSS colours. An artist whose gid is `.name` becomes a group of the
    CSS class `name`, and `titles` maps such a gid to the text that is shown when the pointer rests on it. Text
    stays text, in the page's typeface. Output is deterministic within `style`.
    """
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata=NO_METADATA)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    for stand_in, colour in {INK: "currentColor", **(colours or {})}.items():
        text = text.replace(stand_in, colour)
    text = _without_ballast(text)
    for gid, title in (titles or {}).items():
        text = text.replace(f'<g id="{gid}">', f'<g id="{gid}"><title>{escape(title)}</title>')
    text = _without_identifiers(text)
    width, height = (72 * inches for inches in figure.get_size_inches())
    head = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}"'
    head += f' style="max-width: {figure.get_figwidth() * rem_per_inch:.1f}rem; stroke-linejoin: round">'
    return Markup(re.sub(r"<svg[^>]*>", lambda _: head, text, count=1))


def _without_ballast(text: str) -> str:
    """Without what the page provides (typeface, namespaces) or what would reach beyond the figure (its style sheet)."""
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.S)
    text = text.replace("xlink:href", "href")
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r"font: (?:(\d+) )?([\d.]+px) [^;\"]*", _font_size, text)
    text = re.sub(r' transform="rotate\(-?0 [^"]*"', "", text)
    text = re.sub(r' (d|x|y)="([^"]*)"', _rounded, text)
    return re.sub(r">\s+<", "><", text).replace("<g/>", "")


def _font_size(match: re.Match[str]) -> str:
    weight = f"; font-weight: {match[1]}" if match[1] else ""
    return f"font-size: {match[2]}{weight}"


def _rounded(match: re.Match[str]) -> str:
    """Coordinates to a hundredth of a point."""
    numbers = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), match[2])
    return f' {match[1]}="{" ".join(numbers.split())}"'


def _without_identifiers(text: str) -> str:
    """Classes in place of gids that begin with a full stop; other identifiers only where something refers to them.

    Pages hold several figures, and matplotlib numbers the groups of each from one.
    """
    referred = set(re.findall(r"#([\w.-]+)", text))

    def attribute(match: re.Match[str]) -> str:
        if match[1].startswith("."):
            return f' class="{match[1][1:]}"'
        return match[0] if match[1] in referred else ""

    return re.sub(r' id="([^"]*)"', attribute, text)
