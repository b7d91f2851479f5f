"""Text from users and files, made safe for one output format each. Every writer passes its strings through here.

A row label, path, model name or corpus name can hold anything: markup, line breaks, terminal escape sequences.
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
    | (?<!\w)_ | _(?!\w)                # emphasis; within a word an underscore is one
    | \](?=[(\[:])                      # a link or the definition of one
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
    """Return text for a rich console, where square brackets are brackets and escape sequences have no effect."""
    from rich.text import Text

    return Text(printable(text, keep), style)


def html_text(value: Any) -> Any:
    """Return a value of a template without invisible characters; the template escapes ``<``, ``>``, ``&`` and quotes.

    Line breaks stay, since some values are preformatted. Markup and what is no string is returned as it is.
    """
    return printable(value, keep="\n") if isinstance(value, str) and not hasattr(value, "__html__") else value


def markdown_text(text: str) -> str:
    """Return text for a Markdown paragraph, list item or table cell; a reader sees the same characters.

    Only what a CommonMark or GitHub reader would interpret is escaped, so that numbers and plain names stay readable
    in the source.
    """
    escaped = _MARKDOWN.sub(lambda found: f"\\{found[0]}", printable(text).strip())
    escaped = _NUMBERED.sub(r"\1\\\2", escaped)
    return _HTML_IN_MARKDOWN.sub(lambda found: {"<": "&lt;", "&": "&amp;"}[found[0]], escaped)


def markdown_code(text: str) -> str:
    """Return text as a fenced code block, whose fence is longer than any run of backticks within."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{printable(text, keep=chr(10))}\n{fence}"


def latex_text(text: str) -> str:
    r"""Return text for a LaTeX paragraph, caption or table cell.

    A bracket or star that begins a cell would be an argument of the ``\\`` before it, so it is put in braces.
    """
    escaped = printable(text).translate(_LATEX)
    return re.sub(r"^(\s*)([\[*])", r"\1{\2}", escaped)
