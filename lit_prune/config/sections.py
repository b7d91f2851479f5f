"""How sections are nested. No torch."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Iterator
from typing import Any

from lit_prune.config.fields import Changes
from lit_prune.config.prune import PruneMethod, default_method


@functools.cache
def section_of(kind: type, name: str) -> type | None:
    """Return the class of a field that is a section, also one that may be None; None of any other field.

    Of the pruning methods it is the default one.
    """
    found = next((one for one in _kinds(kind, name) if isinstance(one, type) and dataclasses.is_dataclass(one)), None)
    return type(default_method()) if found is PruneMethod else found


@functools.cache
def changes_cell(kind: type, name: str) -> bool:
    """Return whether a field holds changes of a cell, by dotted path."""
    return Changes in _kinds(kind, name)


def begin_of(kind: type, name: str) -> Any:
    """Return the section that setting a field of an absent one begins with."""
    field = next(f for f in dataclasses.fields(kind) if f.name == name)
    section = section_of(kind, name)
    assert section is not None
    return field.metadata.get("begin") or section()


def sections(kind: type) -> Iterator[type]:
    """Yield a section and all those in it, at any depth; some twice."""
    yield kind
    for field in dataclasses.fields(kind):
        inside = section_of(kind, field.name)
        if inside is not None:
            yield from sections(inside)


def _kinds(kind: type, name: str) -> tuple[Any, ...]:
    hint = typing.get_type_hints(kind).get(name)
    return (hint, *typing.get_args(hint))
