"""Notes on a table, Markdown, as a piece of a page."""

from __future__ import annotations

from collections.abc import Collection

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from lit_prune.config.profiles import profiles_folder


def as_html(text: str, profile: str, below: int = 3) -> Markup:
    """The notes on one profile: without what stands under the name of another, headings below level `below`.

    Nothing in it is fetched: HTML is shown as text, and a picture as a link to it.
    """
    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    others = {path.stem for path in profiles_folder().glob("*.yaml")} - {profile}
    tokens = _of_profile(reader.parse(text), others)
    for token in tokens:
        if token.type.startswith("heading"):
            token.tag = f"h{min(6, int(token.tag[1]) + below - 1)}"
    return Markup(reader.renderer.render(tokens, reader.options, {}))


def _of_profile(tokens: list[Token], others: Collection[str]) -> list[Token]:
    """Without the title, and without the sections that another profile's name is the heading of."""
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
