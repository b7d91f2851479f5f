"""Former names: accepted in this version with a hint of the new one, and part of addresses for good. No torch.

Former names of settings stand on their fields (`renamed` and `later` in schema.py); those of flags and columns here.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lit_prune.config.prune import Prune
from lit_prune.config.schema import Cell
from lit_prune.config.sections import changes_cell, section_of

if TYPE_CHECKING:
    import pandas as pd

FLAGS = {
    "--also": "--add-row", "--only": "--filter", "--accumulate": "--grad-accum-steps", "--workers": "--num-workers",
    "--teacher-cache": "--keep-teacher-cache", "--no-teacher-cache": "--no-keep-teacher-cache",
    "--cohort": "--cache-teacher", "--no-cohort": "--no-cache-teacher",
}  # fmt: skip
"""Former flags -> their names now. Folders of reports and older stores know the former ones."""

COLUMNS = {
    "clm": "ce_loss", "logits": "kd_loss", "hidden": "hidden_loss", "teacher_clm": "teacher_ce_loss",
    "second_text": "second_corpus", "source_corpus": "parent_corpus",
}  # fmt: skip
"""Former columns of metrics.csv and of records -> their names now."""


class RenamedField(FutureWarning):
    """A setting was given by its former name."""


def former_name(field: dataclasses.Field[Any]) -> str:
    """Return the first name of a field, which stands in addresses."""
    return field.metadata.get("was", field.name)


def former_value(field: dataclasses.Field[Any], value: Any) -> Any:
    """Return a value of a field by its first name, which stands in addresses."""
    return field.metadata.get("values", {}).get(value, value) if isinstance(value, str) else value


def former_path(path: str, kind: type = Cell) -> str:
    """Return a dotted path by its first names; an unknown one is returned as it is."""
    return _follow(path, kind, former_name)[0]


def former_change(path: str, value: Any, kind: type = Cell) -> tuple[str, Any]:
    """Return a changed field and its value by their first names."""
    _, field, _ = _follow(path, kind, former_name)
    return former_path(path, kind), former_value(field, value) if field else value


def current_path(path: str, kind: type = Cell) -> str:
    """Return a dotted path by its names now; an unknown one is returned as it is."""
    return _follow(path, kind, lambda field: field.name)[0]


def current_value(path: str, value: Any, kind: type = Cell) -> Any:
    """Return the value of the field at a path by its names now, of a section all names and values in it."""
    _, field, section = _follow(path, kind, former_name)
    if section is not None and isinstance(value, Mapping):
        return current(value, section)
    now = {old: new for new, old in field.metadata.get("values", {}).items()} if field else {}
    return now.get(value, value) if isinstance(value, str) else value


def current_change(path: str, value: Any, kind: type = Cell) -> tuple[str, Any]:
    """Return a changed field and its value by their names now, with a `RenamedField` warning if either was a former."""
    new_path, new_value = current_path(path, kind), current_value(path, value, kind)
    if new_path != path:
        hint(path, new_path)
    if isinstance(value, str) and new_value != value:
        hint(f"{new_path}={value}", f"{new_path}={new_value}")
    return new_path, new_value


def current(plain: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Return a section as plain data by its names now, without a warning: for files that were written before."""
    return {current_path(path, kind): current_value(path, value, kind) for path, value in plain.items()}


def current_sizes(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes of a model by their names now."""
    return {current_path(name, Prune): value for name, value in plain.items()}


def former_sizes(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes of a model by their first names."""
    return {former_path(name, Prune): value for name, value in plain.items()}


def current_words(words: Iterable[str]) -> tuple[str, ...]:
    """Return the words of a command by the names of flags and fields now."""
    return tuple(
        f"{current_path(path)}={current_value(path, value)}" if equals else FLAGS.get(path, path)
        for path, equals, value in (word.partition("=") for word in words)
    )


def former_words(words: Iterable[str]) -> tuple[str, ...]:
    """Return the words of a command by the first names of flags and fields."""
    flags = {new: old for old, new in FLAGS.items()}
    return tuple(
        "=".join(former_change(path, value)) if equals else flags.get(path, path)
        for path, equals, value in (word.partition("=") for word in words)
    )


def current_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Return logged or recorded columns by their names now; a run that was resumed later may have both."""
    names = {name: COLUMNS.get(name) or current_path(name) for name in frame}
    if all(new == name and "." not in name for name, new in names.items()):
        return frame
    found: dict[str, pd.Series] = {}
    for name, new in names.items():
        column = frame[name].map(functools.partial(current_value, name)) if "." in name else frame[name]
        found[new] = found[new].combine_first(column) if new in found else column
    return frame[[]].assign(**found)


def hint(former: str, now: str) -> None:
    """Warn about a former name."""
    warnings.warn(f"{former} is now {now}; the old name goes in the next version", RenamedField, stacklevel=3)


def _follow(
    path: str, kind: type, name_of: Callable[[dataclasses.Field[Any]], str]
) -> tuple[str, dataclasses.Field[Any] | None, type | None]:
    """Return a path by other names, the field it leads to, and the section that is, if it is one."""
    first, dot, rest = path.partition(".")
    fields = dataclasses.fields(kind)
    field = next((f for f in fields if f.name == first), None)
    field = field or next((f for f in fields if former_name(f) == first), None)
    if field is None:
        return path, None, None
    section = Cell if changes_cell(kind, field.name) else section_of(kind, field.name)
    if not dot or section is None:
        return name_of(field) + dot + rest, None if dot else field, section
    inside, leaf, below = _follow(rest, section, name_of)
    return f"{name_of(field)}.{inside}", leaf, below
