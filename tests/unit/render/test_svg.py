"""Figures in a page: small, in its colours and font, with unique ids and all numbers."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from lit_prune.render import svg


@pytest.fixture(scope="module")
def drawn() -> str:
    with mpl.rc_context(svg.style("salt")):
        figure = Figure(figsize=(4, 2))
        axes = figure.add_subplot(xlabel="exactly 3.14159265")
        axes.plot([1, 2, 3], [0.5, 0.25, 0.125], color=svg.LINE, marker="o")
        return str(svg.inline(figure, "first", 'a "line" & dots'))


def test_it_is_whole_and_says_what_it_shows(drawn: str) -> None:
    # HTML knows the prefix that XML must be told.
    root = ElementTree.fromstring(drawn.replace("<svg", '<svg xmlns:xlink="x"', 1))
    assert root.get("aria-label") == 'a "line" & dots'
    assert [text.text for text in root.iter("text") if "exactly" in (text.text or "")] == ["exactly 3.14159265"]
    assert len(root.findall(".//use")) >= 3


def test_it_has_the_colours_and_the_font_of_the_page(drawn: str) -> None:
    assert "var(--accent)" in drawn
    assert "font-size" in drawn
    assert "font-family" not in drawn
    assert "<style" not in drawn


def test_it_holds_no_id_that_nothing_asks_for_and_no_digit_that_nobody_sees(drawn: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', drawn)
    assert len(ids) == len(set(ids))
    assert set(ids) == set(re.findall(r'(?:url\(#|href="#)([^")]+)', drawn))
    assert all(name.startswith("first-") for name in ids)
    assert not re.search(r"\d\.\d{3}", re.sub(r">[^<]*<", "><", drawn))
    assert "\n" not in drawn
