"""Minus signs and unbreakable statistics in prose and in notes."""

from __future__ import annotations

import pytest

from lit_prune.render.notes import as_html
from lit_prune.render.typography import unbroken, with_minus_signs


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("MSE (-0.110 nats)", "MSE (−0.110 nats)"),
        ("[-0.022, +0.005]", "[−0.022, +0.005]"),
        ("-.5 and -3", "−.5 and −3"),
        ("a rate of 2e-3 or 1E-10", "a rate of 2e−3 or 1E−10"),
    ],
)
def test_a_negative_number_has_a_minus_sign(text: str, shown: str) -> None:
    assert with_minus_signs(text) == shown


@pytest.mark.parametrize(
    "text",
    ["TinyStories-656K", "layers 3-4", "2026-11-29", "--seeds 3", "one-shot", "(a)-3", "models/-3", "a - b", "1.-2"],
)
def test_other_hyphens_stay(text: str) -> None:
    assert with_minus_signs(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("(p 0.002, n = 3)", "(p\xa00.002, n\xa0=\xa03)"),
        ("p < 0.001", "p\xa0<\xa00.001"),
        ("tau -0.2 or\ntau −0.2", "tau\xa0-0.2 or\ntau\xa0−0.2"),
        ("p\n.5", "p\xa0.5"),
    ],
)
def test_a_statistic_stays_with_its_value(text: str, shown: str) -> None:
    assert unbroken(text) == shown


@pytest.mark.parametrize("text", ["top 3", "p and 0.1", "step 0.002", "n of 3"])
def test_other_spaces_stay(text: str) -> None:
    assert unbroken(text) == text


def test_notes_are_typeset_outside_code_and_addresses() -> None:
    notes = (
        "Lower by -0.066 (p\n0.002), `--set a=-0.5`, **x**-3, `y`-4, **-0.3**, <http://a.org/?b=-1>, -1\n\n"
        "    c = -2\n\n| change | code |\n|---|---|\n| -1.5 | `-1.5` |\n"
    )
    shown = as_html(notes, "quick")
    for words in (
        "by −0.066 (p\xa00.002)", "<code>--set a=-0.5</code>", "<strong>x</strong>-3", "</code>-4",
        "<strong>−0.3</strong>", '<a href="http://a.org/?b=-1">http://a.org/?b=-1</a>, −1', "c = -2", "<td>−1.5</td>",
        "<code>-1.5</code>",
    ):  # fmt: skip
        assert words in shown
