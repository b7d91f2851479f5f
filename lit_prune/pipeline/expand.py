"""Expand a table at a profile into its cells: rows x seeds, references last. No torch."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lit_prune.config import Cell, ConfigError, Profile, unknown_field
from lit_prune.config.overrides import BUDGETS, fields_of, override, refuse_two_budgets
from lit_prune.config.renames import current_change, former_path, hint
from lit_prune.config.table import Changes, Table
from lit_prune.store import Node, Store
from lit_prune.store.address import key


@dataclass(frozen=True)
class Entry:
    """One cell of a table."""

    row: str
    seed: int
    cell: Cell
    changes: Changes
    reference: bool = False
    parent: bool = False
    """Whether it is only the parent of a cell, retrained for it and not a row of the table."""

    @functools.cached_property
    def key(self) -> str:
        """The cell's address."""
        return key(self.cell)

    def node(self, store: Store) -> Node:
        """Return the node of the cell's result."""
        return store.at("cell", self.key)


def entries(
    table: Table, profile: Profile, *, settings: Mapping[str, Any] | None = None, num_seeds: int | None = None,
    add_rows: Iterable[tuple[str, Any]] | Mapping[str, Any] = (),
    filters: Iterable[tuple[str, Any]] | Mapping[str, Any] = (),
) -> list[Entry]:  # fmt: skip
    """Return every cell of a table at a profile, references last.

    `settings` change the base cell, which is the profile's with the table's own changes. Each of `add_rows` adds a row
    that is the baseline with that one change. `filters` keeps the rows with these values; several values of one field
    are alternatives. Both accept short names.

    Raises:
        ConfigError: if a setting names a swept or an unknown field, no row is left, or two rows have the same cell.
    """
    axes = (*table.swept, *table.seed_fields)
    refuse_two_budgets(settings or {})
    lengths = {f"distill.{name}" for name in BUDGETS}
    for path in settings or {}:
        if (path in axes and path not in table.profile_fields) or (
            path in lengths and lengths & (set(axes) - set(table.profile_fields))
        ):
            raise ConfigError(f"--set {path}: {table.name} sweeps it; use --filter or --add-row to choose its values")
    base = override(override(profile.cell, table.base_overrides), settings or {})
    override(base, {path: 0 for path in table.seed_fields if _has(base, path)})  # validates the paths
    at_baseline = table.rows[table.baseline]
    rows = dict(table.rows)
    for name, value in _pairs(add_rows):
        rows[f"{table.baseline}, {name}={_shown(value)}"] = at_baseline | dict([_full_change(name, value, axes)])
    found = []
    for row, changes in rows.items():
        cell = _cell_of(row, base, changes)
        for number in range(num_seeds or seeds_of(cell, profile)):
            seed = dict.fromkeys(table.seed_fields, number)
            found.append(Entry(row, number, with_seed(cell, table.seed_fields, number), changes | seed))
    wanted = [_full_change(name, value, axes) for name, value in _pairs(filters)]
    found = _only(found, wanted, table)
    baseline = with_seed(override(base, at_baseline), table.seed_fields, 0)
    found += [
        Entry(row, 0, _cell_of(row, baseline, changes), changes, reference=True)
        for row, changes in table.reference_rows.items()
    ]
    refuse_twins(found)
    return found


def with_seed(cell: Cell, paths: Iterable[str], number: int) -> Cell:
    """Return the cell with the fields at `paths` set to a seed; skip fields of sections it does not have."""
    found = [path for path in paths if _has(cell, path)]
    if any(path.startswith("parent.") for path in found):
        return override(cell, dict.fromkeys(found, number))
    for path in found:  # a seed is valid, and `override` would validate the whole cell once more
        cell = _with_value(cell, path.split("."), number)
    return cell


def _has(cell: Cell, path: str) -> bool:
    node: Any = cell
    for name in path.split(".")[:-1]:
        node = getattr(node, name, None)
    return node is not None


def _with_value(node: Any, path: list[str], value: int) -> Any:
    name, *rest = path
    return dataclasses.replace(node, **{name: _with_value(getattr(node, name), rest, value) if rest else value})


def _cell_of(row: str, base: Cell, changes: Changes) -> Cell:
    """Return the cell of a row. The base cell is valid, so an error names a change of the row."""
    try:
        return override(base, changes)
    except ConfigError as error:
        raise ConfigError(f"{error} (row {row!r})") from None


def seeds_of(cell: Cell, profile: Profile) -> int:
    """Return the number of seeds at which a profile measures the row of a cell."""
    return profile.seeds if cell.distill.max_steps else profile.calibration_seeds


def _pairs(given: Iterable[tuple[str, Any]] | Mapping[str, Any]) -> list[tuple[str, Any]]:
    return list(given.items() if isinstance(given, Mapping) else given)


def _only(found: list[Entry], wanted: list[tuple[str, Any]], table: Table) -> list[Entry]:
    """Return the entries that match one of the values of every field in `wanted`.

    Raises:
        ConfigError: if no row has a value, or none has the values of all fields.
    """
    allowed: dict[str, list[Any]] = {}
    for path, value in wanted:
        there = [e.changes[path] for e in found if path in e.changes]
        if not there:
            swept = ", ".join(table.swept)
            raise ConfigError(f"--filter {path}: no row of {table.name} sets it (swept: {swept})")
        if value not in there:
            values = ", ".join(dict.fromkeys(map(_shown, there)))
            raise ConfigError(f"--filter {path}: must be one of {values}, got {_shown(value)}")
        allowed.setdefault(path, []).append(value)
    kept = [e for e in found if all(p in e.changes and e.changes[p] in allowed[p] for p in allowed)]
    if not kept:
        requested = " and ".join(f"{path}={_shown(value)}" for path, value in wanted)
        raise ConfigError(f"--filter: no row of {table.name} has {requested} together")
    return kept


def _shown(value: Any) -> str:
    """Format a value as `--filter` accepts it."""
    return value if isinstance(value, str) else json.dumps(value)


def _full_change(name: str, value: Any, axes: tuple[str, ...]) -> tuple[str, Any]:
    """Return the dotted path a short name stands for, and its value."""
    return current_change(_full_path(name, axes), value)


def _full_path(name: str, axes: tuple[str, ...]) -> str:
    """Return the dotted path of a short name: a swept field or any field of a cell. Fields of a parent have no short
    name."""
    fields = fields_of(Cell)
    if name.removeprefix("parent." * name.count("parent.")) in fields:
        return name
    candidates = [path for path in axes if path.endswith(f".{name}") and not path.startswith("parent.")]
    candidates = candidates or [path for path in fields if path.endswith(f".{name}")]
    if not candidates:
        former = [path for path in axes if former_path(path).endswith(f".{name}") and not path.startswith("parent.")]
        candidates = former or [path for path in fields if former_path(path).endswith(f".{name}")]
        if len(candidates) == 1:
            hint(name, candidates[0].rpartition(".")[2])
    if not candidates:
        raise ConfigError(unknown_field(name, fields))
    if len(candidates) > 1:
        raise ConfigError(f"{name}: must name one field, got {len(candidates)}: {', '.join(sorted(candidates))}")
    return candidates[0]


def refuse_twins(found: list[Entry]) -> None:
    """Check that no two entries are the same cell.

    Raises:
        ConfigError: if two are the same.
    """
    seen: dict[str, Entry] = {}
    for entry in found:
        twin = seen.setdefault(entry.key, entry)
        if twin is not entry:
            rows = f"{twin.row!r} and {entry.row!r}, seed {entry.seed}"
            raise ConfigError(f"two rows are the same cell: {rows}")
