"""SVG for a page: in its colours and typeface, the same each time, and without anything that reaches beyond it."""

import re
import xml.etree.ElementTree as ET

from markupsafe import Markup
from matplotlib.figure import Figure

from simulations.drawing.svg import INK, style, svg

STAND_IN = "#a1b2c3"


def drawn(label: str = "a line") -> Markup:
    with style(font_size=11.0):
        figure = Figure(figsize=(3, 2))
        axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
        (line,) = axes.plot([0, 1, 2], [0.125, 1, 0.5], color=STAND_IN)
        line.set_gid(".line-0")
        axes.text(1, 0.5, "0.123456 & more", color=INK)
        return svg(figure, label, {STAND_IN: "var(--s0)"}, {".line-0": "three points <of> mine"})


def test_stand_in_colours_become_the_colours_of_the_page() -> None:
    text = drawn()
    assert INK not in text
    assert STAND_IN not in text
    assert "fill: currentColor" in text
    assert "stroke: var(--s0)" in text


def test_a_figure_is_the_same_each_time() -> None:
    assert drawn() == drawn()


def test_text_stays_text_in_the_typeface_of_the_page() -> None:
    texts = [element.text for element in ET.fromstring(drawn()).iter("text")]
    assert "0.123456 & more" in texts
    assert "font-family" not in drawn()
    assert "font-size: 11px" in drawn()


def test_nothing_reaches_beyond_the_figure() -> None:
    text = drawn()
    assert "<style" not in text
    assert "http" not in text
    identifiers = re.findall(r' id="([^"]*)"', text)
    assert all(f"#{identifier}" in text for identifier in identifiers)


def test_the_label_and_titles_are_words_and_cannot_inject() -> None:
    root = ET.fromstring(drawn('a "line" <b>'))
    assert (root.get("role"), root.get("aria-label")) == ("img", 'a "line" <b>')
    group = next(group for group in root.iter("g") if group.get("class") == "line-0")
    assert group.find("title").text == "three points <of> mine"


def test_it_fills_its_place_up_to_a_width() -> None:
    root = ET.fromstring(drawn())
    assert root.get("viewBox") == "0 0 216 144"
    assert root.get("width") is None
    assert "max-width: 22.5rem" in root.get("style")
