"""Convert the Markdown notes on a table to HTML for a page."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from lit_prune.config.profiles import profiles_folder
from lit_prune.render.typography import unbroken, with_minus_signs


def as_html(text: str, profile: str, below: int = 3) -> Markup:
    """Return the notes on one profile, without the sections of other profiles and with headings below level `below`.

    Numbers get real minus signs, except in code. Nothing is fetched: HTML is shown as text, and an image as a link.
    """
    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    others = {path.stem for path in profiles_folder().glob("*.yaml")} - {profile}
    tokens = _of_profile(reader.parse(text), others)
    for token in tokens:
        if token.type.startswith("heading"):
            token.tag = f"h{min(6, int(token.tag[1]) + below - 1)}"
        if token.children:
            token.children = _typeset(token.children)
    return Markup(reader.renderer.render(tokens, reader.options, {}))


def _of_profile(tokens: list[Token], others: Collection[str]) -> list[Token]:
    """Return the tokens without the title and without sections whose heading is the name of another profile."""
    kept: list[Token] = []
    skipping = title = False
    for place, token in enumerate(tokens):
        if token.type == "heading_open":
            title = token.tag == "h1"
            if token.tag in ("h1", "h2"):
                skipping = tokens[place + 1].content in others
        if not skipping and not title:
            kept.append(token)
        title = title and token.type != "heading_close"
    return kept


def _typeset(children: Iterable[Token]) -> list[Token]:
    """Return the pieces of a paragraph or table cell with their text typeset; code and URLs are unchanged."""
    kept: list[Token] = []
    for is_text, run in itertools.groupby(children, lambda token: token.type in ("text", "softbreak")):
        pieces = list(run)
        if is_text and not (kept and kept[-1].markup == "autolink" and kept[-1].nesting == 1):
            text = "".join("\n" if piece.type == "softbreak" else piece.content for piece in pieces)
            # Text after code or emphasis continues a word.
            joined = bool(kept) and (kept[-1].nesting == -1 or kept[-1].type == "code_inline")
            found = unbroken(with_minus_signs(f"_{text}")[1:] if joined else with_minus_signs(text))
            pieces = [Token("text", "", 0, content=found)]
        kept += pieces
    return kept
