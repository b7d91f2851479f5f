"""`lit-prune`: all commands behind one name. No torch until a command computes something."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tyro

from lit_prune.cli.process import Verb, execute

_PLACES = {"prune": ("compress", "PRUNE"), "distill": ("compress", "DISTILL")} | {
    name: (name, "VERB")
    for name in (
        "evaluate", "table", "cost", "report", "figures", "dashboard", "pretrain", "teachers", "store", "fields",
    )
}  # fmt: skip
"""Name of a command -> the module of lit_prune.cli that defines it and its name there, in the order of the help."""


class _Verbs(Mapping[str, Verb[Any]]):
    """Commands by name; the module of a command is imported when the command is looked up."""

    def __getitem__(self, name: str) -> Verb[Any]:
        module, attribute = _PLACES[name]
        return getattr(importlib.import_module(f"lit_prune.cli.{module}"), attribute)

    def __iter__(self) -> Iterator[str]:
        return iter(_PLACES)

    def __len__(self) -> int:
        return len(_PLACES)


VERBS = _Verbs()
"""Name -> command, in the order of the help text."""

_ABOUT = """Prune and distill language models, evaluate them, and reproduce the tables of the papers.

Results are stored in a folder (--store, default ./store): a command reuses finished results and resumes interrupted
runs. `lit-prune COMMAND --help` lists the flags of a command, `lit-prune fields` lists all settings."""


def parse(words: Sequence[str]) -> tuple[Verb[Any], Any]:
    """Return the command that the words name, and its flags.

    Raises:
        SystemExit: 2 if there is no such command or flag, 0 after printing help.
    """
    if words and words[0] in VERBS:
        return VERBS[words[0]], VERBS[words[0]].parse(words[1:])
    kinds: dict[str, Callable[..., Any]] = {name: verb.flags for name, verb in VERBS.items()}
    flags = tyro.extras.subcommand_cli_from_dict(kinds, args=words, prog="lit-prune", description=_ABOUT)
    return next(verb for verb in VERBS.values() if type(flags) is verb.flags), flags


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    first = (sys.argv[1:] if argv is None else argv)[:1]
    renamed = next((VERBS[word].renamed for word in first if word in VERBS), {})
    return execute(parse, argv, renamed)
