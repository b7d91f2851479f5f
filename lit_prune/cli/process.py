"""How a command runs as a process: its words, first line, standard input, signals and exit code. No torch."""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NoReturn, TypeVar

import tyro
from rich.console import Console

from lit_prune.cli.flags import documented
from lit_prune.config import ConfigError
from lit_prune.config.renames import RenamedField
from lit_prune.escape import printable
from lit_prune.store import Locked

Flags = TypeVar("Flags")

FIELD_FLAGS = ("--set", "--add-row", "--filter")
"""Flags that take field=value."""


@dataclass(frozen=True)
class Verb(Generic[Flags]):
    """A command: its name, its flags, and the function that carries it out and returns the exit code."""

    name: str
    flags: type[Flags]
    """A dataclass; its docstrings are the help text."""
    run: Callable[[Flags], int]
    begins: str = "reading the request"
    """What the command does first, printed before anything that takes long is imported."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Old flag -> new flag. The old one is accepted with a hint."""
    asks: bool = False
    """Whether it reads answers from standard input."""
    more_help: Callable[[], str] | None = None
    """Returns the second paragraph of the help text, if that takes imports which nothing else needs."""

    def __post_init__(self) -> None:
        documented(self.flags)  # type: ignore[arg-type]

    def main(self, argv: Sequence[str] | None = None, *, prog: str | None = None, about: str | None = None) -> int:
        """Run the command on `argv`, by default the words of this process; return the exit code.

        Args:
            prog: name of the command in its help text.
            about: first paragraph of its help text; the docstring of its flags otherwise.
        """
        return execute(lambda words: (self, self.parse(words, prog=prog, about=about)), argv, self.renamed)

    def parse(self, words: Sequence[str], *, prog: str | None = None, about: str | None = None) -> Flags:
        """Return the flags that the words set; `prog` and `about` are as for `main`.

        Raises:
            SystemExit: 2 if there is no such flag, 0 after printing help.
        """
        if self.more_help is not None and {"-h", "--help"} & set(words):
            about = f"{about or inspect.getdoc(self.flags)}\n\n{self.more_help()}"
        return tyro.cli(self.flags, args=words, prog=prog or f"lit-prune {self.name}", description=about)


def execute(
    parse: Callable[[Sequence[str]], tuple[Verb[Any], Any]], argv: Sequence[str] | None, renamed: Mapping[str, str]
) -> int:
    """Parse the words, carry out their verb, and turn how it ends into an exit code.

    Returns 0 if all is well, 1 if a part of the work failed, 2 if the request cannot be met. SIGINT and SIGTERM leave
    with 130 and 143. A reader that closes the pipe early, such as `head`, is no error.

    Raises:
        ConfigError: only if the flags have `debug` set; so the traceback is shown.
    """
    flags = None
    try:
        with _hints():
            words = with_new_flags(sys.argv[1:] if argv is None else argv, renamed)
            check_field_values(words)
            verb, flags = parse(words)
            begin(f"{verb.name}: {verb.begins}", argv, asks=verb.asks)
            stop_on_signals()
            return verb.run(flags)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ConfigError, Locked, OSError) as error:
        if getattr(flags, "debug", False):
            raise
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return 2


def begin(text: str, words: Sequence[str] | None, *, asks: bool = False) -> None:
    """Print on standard error that a command has begun, and close standard input unless the command `asks`.

    A library that asks a question, such as wandb for a key, then fails at once instead of waiting for an answer. Does
    nothing for a caller in Python, who passes the `words` of the command.
    """
    if words is None:
        print(text, file=sys.stderr, flush=True)
    if words is None and not asks:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)


class Output(Console):
    """The console on standard output. A reader that closes the pipe early reaches `execute` as BrokenPipeError."""

    def on_broken_pipe(self) -> NoReturn:
        """Raise the error that rich would turn into exit code 1."""
        raise BrokenPipeError


def with_new_flags(words: Sequence[str], renamed: Mapping[str, str]) -> list[str]:
    """Return the words with old flags replaced by their new names, and print one hint for each that was used."""
    found = []
    for word in words:
        flag, equals, value = word.partition("=")
        new = renamed.get(flag)
        if new is not None:
            print(f"hint: {flag} is now {new}; the old name goes in the next version", file=sys.stderr)
        found.append(word if new is None else f"{new}{equals}{value}")
    return found


@contextlib.contextmanager
def _hints() -> Iterator[None]:
    """Print each `RenamedField` warning once, as a hint; show other warnings as before."""
    show = warnings.showwarning

    def hint(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, RenamedField):
            print(f"hint: {message}", file=sys.stderr)
        else:
            show(message, category, *place, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("once", RenamedField)
        warnings.showwarning = hint
        yield


def check_field_values(words: Sequence[str]) -> None:
    """Check that the flags that take field=value are not given a field and a value apart.

    Raises:
        ConfigError: if one is.
    """
    for flag, path, value in zip(words, words[1:], words[2:], strict=False):
        if flag in FIELD_FLAGS and "=" not in path and not value.startswith("-"):
            raise ConfigError(f"{flag}: must be field=value, got {path!r} {value!r}; write {flag} {path}={value}")


def stop_on_signals() -> None:
    """Exit with the shell's codes, 130 and 143; Lightning's own handlers exit with 1 and, for SIGTERM, with 0."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


def _stop(number: int, frame: Any) -> NoReturn:
    """Exit at once; finished work is kept and unfinished work resumes from its last checkpoint."""
    signal.signal(number, signal.SIG_IGN)
    print(f"stopped by {signal.Signals(number).name}; run the same command again to resume", file=sys.stderr)
    raise SystemExit(128 + number)
