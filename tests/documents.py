"""The code in README.md, CONTRIBUTING.md and the other READMEs: every block, and every command within a sentence."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "README.md", "CONTRIBUTING.md", "analysis/README.md", "experiments/README.md", "lit_prune/teachers/README.md",
)  # fmt: skip
OURS = ("lit_prune", "analysis", "benchmarks")
FOREIGN = ("vllm", "llama-quantize", "llama-bench", "llama.cpp/convert_hf_to_gguf.py")
"""Programs of others that the documents show; they are not installed for the tests."""
COMMANDS = ("python", "make", "pip", *FOREIGN)
LISTING = re.compile(r"(\S+/\S* +\S.*|\S+/ +\S.*| {8,}\S.*)")
"""A line of a list of folders: a path and what it is, or what goes on from the line before."""


@dataclass(frozen=True)
class Block:
    """A block of code."""

    document: str
    line: int
    text: str
    module: str | None
    """The module that a block of Python is added to: the section begins with "In `file`"."""

    @property
    def kind(self) -> str:
        """Return "python", "shell" or "listing".

        Raises:
            ValueError: the block is none of them.
        """
        lines = self.lines
        if all(line.split()[0] in COMMANDS for line in lines):
            return "shell"
        if all(LISTING.fullmatch(line) for line in lines):
            return "listing"
        try:
            ast.parse(self.text)
        except SyntaxError:
            raise ValueError(f"{self}: must be Python, commands or a list of folders, got {self.text!r}") from None
        return "python"

    @property
    def lines(self) -> list[str]:
        """Lines with what goes on after a backslash, empty ones left out."""
        return [line for line in re.sub(r"\\\n\s*", "", self.text).splitlines() if line.strip()]

    def execute(self, **given: Any) -> dict[str, Any]:
        """Run a block of Python as if it were written at the end of its module; return all names it then has."""
        module = importlib.import_module(self.module) if self.module else None
        names = {**(vars(module) if module else {}), "__name__": "documented", **given}
        exec(compile(self.text, str(self), "exec"), names)
        return names

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks() -> Iterator[Block]:
    """Yield every block of every document."""
    for document in DOCUMENTS:
        module = None
        for token in _tokens(document):
            if token.type == "heading_open":
                module = None
            elif token.type == "inline" and token.content.startswith("In `"):
                module = _module(_code(token)[0])
            elif token.type in ("fence", "code_block"):
                yield Block(document, token.map[0] + 1, token.content, module)  # type: ignore[index]


def commands() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield every command with its place, and the flags of a table as commands."""
    for block in blocks():
        if block.kind == "shell":
            for line in block.lines:
                yield from ((str(block), words) for words in _parted(line))
    for document in DOCUMENTS:
        in_table = False
        for token in _tokens(document):
            in_table = token.type == "td_open" or (in_table and token.type != "td_close")
            for text in _code(token):
                place = f"{document}:{token.map[0] + 1}"  # type: ignore[index]
                if text.split()[:1] and text.split()[0] in COMMANDS and " " in text:
                    yield place, tuple(shlex.split(text))
                elif in_table and text.startswith("--"):
                    yield place, ("python", "-m", "lit_prune.experiments.loss_ablation", *shlex.split(text))


def settings() -> Iterator[tuple[str, str]]:
    """Yield every `section.field=value` with its place."""
    for document in DOCUMENTS:
        for token in _tokens(document):
            for text in _code(token):
                for setting in re.findall(r"(?:^|\s)((?:[a-z]\w*\.)+\w+=[^\s,]+(?:,\w+\])?)", text):
                    yield f"{document}:{token.map[0] + 1}", setting  # type: ignore[index]


def _tokens(document: str) -> list[Token]:
    return MarkdownIt().enable("table").parse((ROOT / document).read_text())


def _code(token: Token) -> list[str]:
    return [child.content for child in token.children or [] if child.type == "code_inline"]


def _module(text: str) -> str | None:
    is_module = text.endswith(".py") and (ROOT / text).is_file()
    return text.removesuffix(".py").replace("/", ".") if is_module else None


def _parted(line: str) -> Iterator[tuple[str, ...]]:
    """Yield the commands of a line, which `&&` parts."""
    words: list[str] = []
    for word in [*shlex.split(line, comments=True), "&&"]:
        if word == "&&":
            yield tuple(words)
            words = []
        else:
            words.append(word)
