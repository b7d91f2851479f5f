"""Convert figures to inline SVG with the colours and the font of their page. No torch."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

# Colours of a file; the page replaces each with that of its light or dark theme, so nothing else may use them.
INK, LINE, DIM = "#010203", "#14507b", "#6e7072"
# Emphasised lines: readable on light and dark pages, and for readers who cannot tell red from green.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")
_FONT_SIZE, _DPI = 9, 200
# Most pixels of a point. It never shrinks below one pixel: figures wider than the page scroll.
_LARGEST = 1.65
_THEME = {INK: "currentColor", LINE: "var(--accent)", DIM: "var(--dim)"}


def style(salt: str) -> dict[str, Any]:
    """Return the matplotlib settings of all figures; `salt` makes the ids in an SVG reproducible."""
    return {
        "svg.fonttype": "none", "svg.hashsalt": salt, "text.parse_math": False, "axes.unicode_minus": True,
        "savefig.dpi": _DPI, "font.size": _FONT_SIZE, "axes.titlesize": _FONT_SIZE,
        "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": DIM, "axes.labelcolor": INK,
        "xtick.color": DIM, "ytick.color": DIM, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    }  # fmt: skip


def inline(figure: Figure, name: str, label: str) -> Markup:
    """Return inline SVG with `label` for screen readers; its ids begin with `name`, which is unique in the page."""
    from markupsafe import Markup

    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    head, _, body = stream.getvalue().partition("<svg")[2].partition(">")
    # HTML needs neither namespaces, fixed sizes nor metadata.
    box = re.findall(r'viewBox="[^"]*"', head)[0]
    body = _slim(re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL))
    body = _in_tags(body, lambda tag: _themed(re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", tag)))
    points = figure.get_figwidth() * 72
    size = f'style="min-width: {points:.0f}px; max-width: {_LARGEST * points:.0f}px"'
    return Markup(f'<svg role="img" aria-label="{html.escape(label)}" {box} {size}>{body}')


def _in_tags(body: str, change: Callable[[str], str]) -> str:
    """Return the SVG with each tag changed; the text between tags, such as names of rows, is unchanged."""
    return re.sub(r"<[^>]*>", lambda tag: change(tag[0]), body)


def _themed(tag: str) -> str:
    for placeholder, colour in _THEME.items():
        tag = tag.replace(placeholder, colour)
    return tag


def _slim(body: str) -> str:
    """Return the same picture in less than half the characters, in the font of its page."""
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', body))

    def slim(tag: str) -> str:
        tag = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", tag)
        tag = re.sub(r" font-family: [^;\"]*;?|font-family: [^;\"]*; ?", "", tag)
        tag = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", tag)
        tag = re.sub(r' transform="rotate\(-?0 [^"]*"', "", tag)
        # A hundredth of a point is finer than a screen resolves.
        return re.sub(r"\d+\.\d{3,}", lambda n: f"{float(n[0]):.2f}", tag)

    body = _in_tags(body, slim)
    return re.sub(r"\s*\n\s*", lambda found: _break(body, *found.span()), body)


def _break(body: str, start: int, end: int) -> str:
    """Return the replacement of a line break: nothing between tags, a space within one."""
    return "" if body[start - 1 : start] == ">" and body[end : end + 1] == "<" else " "
