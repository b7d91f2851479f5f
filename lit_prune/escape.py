"""Escape text from users and files for each output format. Every writer passes its strings through this module.

A row label, path, model or corpus name can contain anything: markup, line breaks, terminal escape sequences.
`printable` is the base of all formats. No torch.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

# Control, format (bidirectional overrides) and surrogate characters, line and paragraph separators.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})

_MARKDOWN = re.compile(
    r"""
    [\\`*|$~]                           # always markup, or the end of a table cell
    | (?<!\w)_ | _(?!\w)                # emphasis; an underscore within a word is literal
    | \](?=[(\[:])                      # a link or a link definition
    | ^[#>] | ^[-+=](?![\d.])           # heading, quotation, list item, rule
    """,
    re.VERBOSE,
)
_HTML_IN_MARKDOWN = re.compile(r"<(?=[A-Za-z/!?])|&(?=#|\w+;)")
_NUMBERED = re.compile(r"^(\d+)([.)])(?=\s|$)")

_LATEX = str.maketrans(
    {character: "\\" + character for character in "&%$#_{}"}
    | {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    | {"±": "$\\pm$", "Δ": "$\\Delta$", "<": "$<$", ">": "$>$", "·": "$\\cdot$", "×": "$\\times$"}
    | {"−": "$-$", "—": "---"}
)  # fmt: skip


def printable(text: str, keep: str = "") -> str:
    r"""Return the text on one line: line breaks and tabs as spaces, other invisible characters as codes (``\x1b``).

    Characters in `keep` stay as they are.
    """
    return "".join(
        character if character in keep or unicodedata.category(character) not in _INVISIBLE
        else " " if character.isspace()
        else f"\\x{ord(character):02x}" if character < "\u0100" else f"\\u{ord(character):04x}"
        for character in text
    )  # fmt: skip


def terminal_text(text: str, style: str = "", keep: str = "") -> Text:
    """Return text for a rich console; square brackets are literal and escape sequences have no effect."""
    from rich.text import Text

    return Text(printable(text, keep), style)


def html_text(value: Any) -> Any:
    """Return a value of a template without invisible characters; the template escapes ``<``, ``>``, ``&`` and quotes.

    Line breaks stay, since some values are preformatted. Markup objects and non-strings are returned unchanged.
    """
    return printable(value, keep="\n") if isinstance(value, str) and not hasattr(value, "__html__") else value


def markdown_text(text: str) -> str:
    """Return text for a Markdown paragraph, list item or table cell that renders as the same characters.

    Only characters that CommonMark or GitHub would interpret are escaped, so numbers and plain names stay readable in
    the source.
    """
    escaped = _MARKDOWN.sub(lambda found: f"\\{found[0]}", printable(text).strip())
    escaped = _NUMBERED.sub(r"\1\\\2", escaped)
    return _HTML_IN_MARKDOWN.sub(lambda found: {"<": "&lt;", "&": "&amp;"}[found[0]], escaped)


def markdown_code(text: str) -> str:
    """Return text as a fenced code block with a fence longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{printable(text, keep=chr(10))}\n{fence}"


def latex_text(text: str) -> str:
    r"""Return text for a LaTeX paragraph, caption or table cell.

    A bracket or star at the beginning of a cell is put in braces: LaTeX would read it as an argument of the ``\\``
    before it.
    """
    escaped = printable(text).translate(_LATEX)
    return re.sub(r"^(\s*)([\[*])", r"\1{\2}", escaped)
