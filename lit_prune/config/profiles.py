"""Load profiles: the scale at which a table is run, one YAML file each. No torch."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lit_prune.config.fields import ConfigError, unknown
from lit_prune.config.overrides import flatten, override, refuse_two_budgets
from lit_prune.config.renames import current_change, current_path
from lit_prune.config.schema import Cell, Profile
from lit_prune.config.yaml_loader import read_yaml


def _folder(in_checkout: str, in_wheel: str) -> Path:
    """Return a folder of data: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parents[1]
    beside, inside = package.parent / in_checkout, package / in_wheel
    return beside if beside.is_dir() and not inside.is_dir() else inside


RECORDS = _folder("experiments", "records")
"""Folder of the records of finished tables."""


def profiles_folder() -> Path:
    """Return where the profiles lie."""
    return _folder("configs", "configs")


_OF_PROFILE = tuple(field.name for field in dataclasses.fields(Profile) if field.name != "cell")
"""Fields of a profile beside its cell."""


def is_file(profile: str) -> bool:
    """Return whether a profile is given as a file instead of a name."""
    return profile.endswith((".yaml", ".yml"))


def load_profile(name: str, table: str | None = None, known: Iterable[str] | None = None) -> Profile:
    """Return a profile by name or path of a YAML file, with the changes under `tables` for one table applied.

    `known` are the names that `tables` may have; None does not check them.

    Raises:
        ConfigError: if there is no such profile, or a field or value is invalid, also one for another table.
    """
    path = Path(name) if is_file(name) else profiles_folder() / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(unknown("profile", name, (p.stem for p in profiles_folder().glob("*.yaml"))))
    plain = read_yaml(path.read_text(), str(path))
    if not isinstance(plain, dict):
        raise ConfigError(f"{path}: a profile is a mapping of sections, not {plain!r}")
    by_table = plain.pop("tables", {})
    if not isinstance(by_table, dict) or not all(isinstance(fields, dict) for fields in by_table.values()):
        raise ConfigError(f"{path}: tables: must map names of tables to sections, got {by_table!r}")
    changes = _unique(map(_current, flatten(plain)), path)
    profiles: dict[str | None, Profile] = {None: _build(changes)}
    for one, fields in by_table.items():
        if known is not None and one not in known:
            raise ConfigError(f"{path}: {unknown('tables', one, known)}")
        with _errors_under(f"tables.{one}"):
            profiles[one] = _build(changes | _unique(map(_current, flatten(fields)), path))
    return profiles.get(table, profiles[None])


def _build(changes: dict[str, Any]) -> Profile:
    changes = dict(changes)
    own = {field: changes.pop(field) for field in list(changes) if field.partition(".")[0] in _OF_PROFILE}
    refuse_two_budgets(changes)
    cell = override(Cell(), changes)
    new_text = {field: own.pop(field) for field in list(own) if field.partition(".")[0] == "new_text"}
    if new_text:
        if "new_text" in new_text:
            raise ConfigError(f"new_text: must be sections of a cell, got {new_text['new_text']!r}")
        fields = {field.removeprefix("new_text."): value for field, value in new_text.items()}
        override(cell, fields)  # raises for an unknown field
        own["new_text"] = list(fields.items())
    return override(Profile(cell), own)


@contextlib.contextmanager
def _errors_under(place: str) -> Iterator[None]:
    """Let errors name the place in the file."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{place}.{error}" if error.field else f"{place}: {error}") from None


def _current(change: tuple[str, Any]) -> tuple[str, Any]:
    """Return a field of a profile file and its value by their names now."""
    section = current_path(change[0], Profile).partition(".")[0]
    return current_change(*change, Profile if section in _OF_PROFILE else Cell)


def _unique(changes: Iterable[tuple[str, Any]], where: Path) -> dict[str, Any]:
    """Changes by field, each of which a profile may set once, as a section or by its dotted path."""
    found: dict[str, Any] = {}
    for field, value in changes:
        if field in found:
            raise ConfigError(f"{where}: {field}: must be set once, got {found[field]!r} and {value!r}")
        found[field] = value
    return found
