"""What declares the fields of a cell, and the errors about them. No torch."""

from __future__ import annotations

import contextlib
import difflib
import numbers
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

Size = int | float | Literal["auto"] | None
"""Target of one axis: a whole number is a count, a fraction in (0, 1] a share of the teacher, None keeps it, and
"auto" is whatever share meets a number of parameters."""

Scalar = bool | int | float | str | None
Changes = tuple[tuple[str, Scalar | tuple[Scalar, ...]], ...]
"""Dotted field and value, in the order they are made."""


Count = Annotated[int, Ge(1)]
"""A number of things of which there is one at least."""
Natural = Annotated[int, Ge(0)]
"""A number of things, or a seed."""
SeqLen = Annotated[int, Ge(2)]
"""Tokens of a sequence: one predicts the next."""
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Lt(1)]
Proportion = Annotated[float, Gt(0), Le(1)]
"""A share of a whole, but not none of it."""


class ConfigError(ValueError):
    """A request that cannot be met, in one line: what is wrong and what is allowed, after the field if it is one's."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        field, colon, problem = message.partition(": ")
        self.field, self.problem = (field, problem) if colon and " " not in field else ("", message)


@contextlib.contextmanager
def errors_of(fields: Mapping[str, str]) -> Iterator[None]:
    """Let errors name other fields: those of a section that is read in the place of another, or flags.

    `fields` maps sections or fields to what stands in their place, such as corpus -> evaluation.second_corpus.
    """
    try:
        yield
    except ConfigError as error:
        for old, new in fields.items():
            if error.field == old or error.field.startswith(f"{old}."):
                raise ConfigError(f"{new}{error.field.removeprefix(old)}: {error.problem}") from None
        raise


@contextlib.contextmanager
def of_parent(depth: int = 1) -> Iterator[None]:
    """Let errors name fields of the parent, or with a `depth` above 1 of the parent's parent and so on."""
    try:
        yield
    except ConfigError as error:
        if not depth:
            raise
        place = ".".join(["parent"] * depth)
        raise ConfigError(f"{place}.{error}" if error.field else f"{place}: {error}") from None


def renamed(default: Any, was: str, values: Mapping[str, str] = MappingProxyType({})) -> Any:
    """Declare a field that had another name, or values with other names (new -> old): addresses keep the old ones."""
    return field(default=default, metadata={"was": was, "values": values})


def later(
    default: Any, noop: Any, was: str | None = None, values: Mapping[str, str] = MappingProxyType({}), begin: Any = None
) -> Any:
    """Declare a field added after results exist: left out of the address while it holds `noop`, so old ones stand.

    `was` and `values` are as for `renamed`. `begin` is the section that setting one of its fields begins with where
    the field is None; by default that of all defaults.
    """
    metadata = {"noop": noop, "values": values, "begin": begin} | ({"was": was} if was else {})
    return field(default=default, metadata=metadata)


def unknown(what: str, name: str, allowed: Iterable[str]) -> str:
    """Return one line for a name that `what`, a field or a kind, does not have: all that it has, and the nearest."""
    names = sorted(allowed)
    return f"{what}: must be one of {', '.join(names)}, got {name!r}; perhaps you meant {_nearest(name, names)}"


def unknown_field(path: str, fields: Iterable[str]) -> str:
    """Return one line for a field that does not exist, with the nearest ones and the command that lists all."""
    return f"{path}: unknown field; perhaps you meant {_nearest(path, fields)}; `lit-prune fields` lists all"


def _nearest(path: str, names: Iterable[str]) -> str:
    """Return the three names most like a dotted path or a name, as alternatives."""

    def distance(name: str) -> float:
        wanted, last = path.rpartition(".")[2], name.rpartition(".")[2]
        return -_alike(path, name) - max(_alike(wanted, word) for word in (last, *last.split("_")))

    *first, last = (repr(name) for name in sorted(names, key=distance)[:3])
    return f"{', '.join(first)} or {last}" if first else last


def _alike(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def expand(path: str | os.PathLike[str]) -> Path:
    """Return a path as the shell would read it."""
    return Path(os.path.expandvars(path)).expanduser()


def plain_scalar(value: Any) -> Any:
    """Return a path, or a number of another library such as numpy, as a value of JSON.

    Raises:
        ConfigError: if it is neither.
    """
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise ConfigError(f"settings: must be numbers, strings and lists of them, got {value!r}")
