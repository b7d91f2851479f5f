"""`lit-prune`: all commands behind one name. No torch until a command computes something."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from lit_prune.cli import compress, cost, dashboard, evaluate, fields, figures, pretrain, report, store, table, teachers
from lit_prune.cli.process import Verb, execute

VERBS: dict[str, Verb[Any]] = {
    verb.name: verb
    for verb in (
        compress.PRUNE, compress.DISTILL, evaluate.VERB, table.VERB, cost.VERB, report.VERB, figures.VERB,
        dashboard.VERB, pretrain.VERB, teachers.VERB, store.VERB, fields.VERB,
    )
}  # fmt: skip
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
