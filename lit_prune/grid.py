"""A question: the grid of cells that answers it, the rows they belong to, the paper's numbers and claims. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lit_prune.address import key
from lit_prune.config import Cell, ConfigError, Profile, unknown, unknown_field
from lit_prune.settings import BUDGETS, fields_of, override, refuse_two_budgets

Changes = dict[str, Any]
"""Dotted field -> value: what one point of a grid changes in the base cell."""


WHOLE: Changes = {
    "student.layers": None, "student.hidden": None, "student.neurons": None, "student.heads": None,
    "student.kv_groups": None, "student.parameters": None, "student.drop": (), "student.rounds": 1,
    "student.widths": "uniform", "student.head_residual": "off", "student.weights": "teacher", "student.plan": None,
    "student.model": None,
}  # fmt: skip
"""Changes that keep the whole model, whatever a profile or --set prunes of it."""

UNPRUNED: Changes = {"source": None, "distill.steps": 0, **WHOLE}
"""Changes that make a reference row the teacher as it is."""


@dataclass(frozen=True)
class Grid:
    """Points, in the order they are run: `*` combines every point with every other, `+` chains."""

    points: tuple[Changes, ...]

    def __mul__(self, other: Grid) -> Grid:
        return Grid(tuple({**a, **b} for a in self.points for b in other.points))

    def __add__(self, other: Grid) -> Grid:
        return Grid(self.points + other.points)

    def __iter__(self) -> Iterator[Changes]:
        return iter(self.points)

    def axes(self) -> tuple[str, ...]:
        """The fields that are swept."""
        return tuple(dict.fromkeys(path for point in self.points for path in point))


def axis(path: str, *values: Any) -> Grid:
    """One field, several values."""
    return Grid(tuple({path: value} for value in values))


def seeds(count: int, paths: tuple[str, ...] = ("seed",)) -> Grid:
    """Seeds 0 to count - 1, of every field in `paths` at once."""
    return Grid(tuple(dict.fromkeys(paths, number) for number in range(count)))


@dataclass(frozen=True)
class Claim:
    """An ordering the paper states: row `better` has the better metric than row `worse`; or that the two are alike."""

    better: str
    worse: str
    source: str
    metric: str | None = None
    """The metric it is about; None is the table's first."""
    within: float | None = None
    """The paper finds the two alike: they differ by less than this, either way."""
    family: str | None = None
    """Claims of one family are corrected together for their number (Holm), retrained and zero-shot ones apart; None is
    the family of the table's main source."""


@dataclass(frozen=True)
class Table:
    """A table of a paper as an experiment. Rows are compared by the first metric, and so are claims that name no
    other; lower is better unless `higher` names it."""

    name: str
    question: str
    source: str
    grid: Grid
    label: Callable[[Changes], str]
    """The row a point belongs to; points that differ in nothing but what the seed sets share one."""
    baseline: str
    """The row all others are compared with."""
    paper: Mapping[str, Mapping[str, float]]
    """Row -> metric -> the paper's value."""
    claims: tuple[Claim, ...]
    metrics: tuple[str, ...] = ("lm_loss", "perplexity")
    higher: tuple[str, ...] = ()
    """Metrics of which more is better."""
    references: Mapping[str, Changes] = field(default_factory=dict)
    """Rows measured once for scale, outside the comparison."""
    caveats: tuple[str, ...] = ()
    """What a reader must know before comparing the columns."""
    seeded: tuple[str, ...] = ("seed",)
    """Fields a seed sets, all to its number; without retraining, noise comes from "importance.seed". A field of a
    section that a row does not have, such as "teacher.correction.seed", is left out there."""
    base: Changes = field(default_factory=dict)
    """What the table changes in the cell of every profile; the grid and --set go over it."""

    for_profile: Callable[[Table, Profile, Path], Table] | None = None
    """(table, profile, store) -> the table at that profile, where its rows or base depend on it."""
    follows: tuple[str, ...] = ()
    """Swept fields whose values `for_profile` takes from the profile's own, which --set may therefore change."""
    different_texts: tuple[tuple[str, str], ...] = ()
    """Pairs of corpora, such as ("corpus", "source.corpus"), that must differ in the rows that have both."""

    def at(self, profile: Profile, store: Path, settings: Mapping[str, Any] | None = None) -> Table:
        """Return the table at a profile, whose `for_profile` sees the base cell of its rows.

        Args:
            store: folder of measurements that decide about rows.
            settings: fields set on the base cell, as in `entries`.

        Raises:
            ConfigError: if the profile lacks something the table needs.
        """
        if self.for_profile is None:
            return self
        cell = override(override(profile.cell, self.base), settings or {})
        return self.for_profile(self, replace(profile, cell=cell), store)

    def measuring(self, cell: Cell) -> Table:
        """The table with what its cells measure beside its own metrics: how fast their students are, where asked."""
        if cell.evaluation.speed is None or "speedup" in self.metrics:
            return self
        return replace(self, metrics=(*self.metrics, "speedup", "memory_share"), higher=(*self.higher, "speedup"))

    def __post_init__(self) -> None:
        if self.for_profile is not None and not self.grid.points:
            return  # its rows are not known yet
        rows = set(map(self.label, self.grid))
        named = {
            self.baseline,
            *self.paper,
            *(row for claim in self.claims for row in (claim.better, claim.worse)),
        }
        if named - rows:
            raise ValueError(f"{self.name}: no point of the grid is labelled {sorted(named - rows)}")
        if twice := rows & set(self.references):
            raise ValueError(f"{self.name}: {sorted(twice)} are rows and references")
        named_metrics = {*self.higher, *(claim.metric for claim in self.claims if claim.metric)}
        if unmeasured := named_metrics - set(self.metrics):
            raise ValueError(f"{self.name}: no metric is named {sorted(unmeasured)}")
        of_row: dict[str, Changes] = {}
        for point in self.grid:
            seedless = {path: value for path, value in point.items() if path not in self.seeded}
            if of_row.setdefault(self.label(point), seedless) != seedless:
                raise ValueError(f"{self.name}: different points of the grid are labelled {self.label(point)!r}")

    def metric_of(self, claim: Claim) -> str:
        """The metric a claim is judged by."""
        return claim.metric or self.metrics[0]

    def stated(self, claim: Claim) -> str:
        """A claim in words: its relation, and its metric where it names one."""
        return self.relation(claim) + (f" ({claim.metric})" if claim.metric else "")

    def relation(self, claim: Claim) -> str:
        """The two rows of a claim and what it says of their metric."""
        if claim.within is not None:
            return f"{claim.better} = {claim.worse} within {claim.within:g}"
        return f"{claim.better} {'>' if self.metric_of(claim) in self.higher else '<'} {claim.worse}"


@dataclass(frozen=True)
class Entry:
    """One cell of a table."""

    row: str
    seed: int
    cell: Cell
    changes: Changes
    reference: bool = False
    source: bool = False
    """Retrained for the sake of a cell that is cut from it, and no row of the table."""

    @property
    def key(self) -> str:
        """The cell's address."""
        return key(self.cell)


def entries(
    table: Table, profile: Profile, *, settings: Mapping[str, Any] | None = None, num_seeds: int | None = None,
    also: Iterable[tuple[str, Any]] | Mapping[str, Any] = (),
    only: Iterable[tuple[str, Any]] | Mapping[str, Any] = (),
) -> list[Entry]:  # fmt: skip
    """Every cell of a table at a profile, references last.

    `settings` change the base cell, which is the profile's with the table's own changes; each of `also` adds a row that
    is the baseline with that one change; `only` keeps the points that have these values, any of them where a field is
    given again. Both may use short names.

    Raises:
        ConfigError: a setting on a swept field, a field that is none, no point left, or two points with the same cell.
    """
    axes = (*table.grid.axes(), *table.seeded)
    refuse_two_budgets(settings or {})
    lengths = {f"distill.{name}" for name in BUDGETS}
    for path in settings or {}:
        if (path in axes and path not in table.follows) or (
            path in lengths and lengths & (set(axes) - set(table.follows))
        ):
            raise ConfigError(f"--set {path}: {table.name} sweeps it; use --only or --also to choose its values")
    base = override(override(profile.cell, table.base), settings or {})
    at_baseline = next(point for point in table.grid if table.label(point) == table.baseline)
    rows = [(table.label(point), point) for point in table.grid]
    for name, value in _pairs(also):
        point = {**at_baseline, _full_path(name, axes): value}
        row = _label_of(table, point)
        rows.append((f"{row}, {name}={value}" if row in dict(rows) else row, point))
    found = [
        Entry(row, number, with_seed(_cell_of(row, base, point), table.seeded, number), point | seed)
        for row, point in rows
        for number, seed in enumerate(seeds(num_seeds or seeds_of(_cell_of(row, base, point), profile), table.seeded))
    ]
    wanted = [(_full_path(name, axes), value) for name, value in _pairs(only)]
    found = _only(found, wanted, table)
    baseline = with_seed(override(base, at_baseline), table.seeded, 0)
    found += [
        Entry(row, 0, _cell_of(row, baseline, changes), changes, reference=True)
        for row, changes in table.references.items()
    ]
    refuse_twins(found)
    return found


def with_seed(cell: Cell, paths: Iterable[str], number: int) -> Cell:
    """Return the cell with the fields at `paths` set to a seed; a field of a section it does not have is left out."""
    return override(cell, {path: number for path in paths if _has(cell, path)})


def _has(cell: Cell, path: str) -> bool:
    node: Any = cell
    for name in path.split(".")[:-1]:
        node = getattr(node, name, None)
    return node is not None


def _cell_of(row: str, base: Cell, changes: Changes) -> Cell:
    """The cell of a row; the base cell itself is valid, so an error is about what the row changes."""
    try:
        return override(base, changes)
    except ConfigError as error:
        raise ConfigError(f"{error} (row {row!r})") from None


def _label_of(table: Table, point: Changes) -> str:
    """The row of a point the table may not have a name for; then that of the baseline."""
    try:
        return table.label(point)
    except (KeyError, StopIteration, TypeError):
        return table.baseline


def seeds_of(cell: Cell, profile: Profile) -> int:
    """How often a profile measures the row of a cell."""
    return profile.seeds if cell.distill.steps else profile.draws


def _pairs(given: Iterable[tuple[str, Any]] | Mapping[str, Any]) -> list[tuple[str, Any]]:
    return list(given.items() if isinstance(given, Mapping) else given)


def _only(found: list[Entry], wanted: list[tuple[str, Any]], table: Table) -> list[Entry]:
    """The entries that have, of each field in `wanted`, one of the values it is given there.

    Raises:
        ConfigError: a value that no row has, or values that no row has together.
    """
    allowed: dict[str, list[Any]] = {}
    for path, value in wanted:
        there = [e.changes[path] for e in found if path in e.changes]
        if not there:
            swept = ", ".join(table.grid.axes())
            raise ConfigError(f"--only {path}: no row of {table.name} sets it (swept: {swept})")
        if value not in there:
            values = ", ".join(dict.fromkeys(map(_shown, there)))
            raise ConfigError(f"--only {path}: must be one of {values}, got {_shown(value)}")
        allowed.setdefault(path, []).append(value)
    kept = [e for e in found if all(p in e.changes and e.changes[p] in allowed[p] for p in allowed)]
    if not kept:
        asked = " and ".join(f"{path}={_shown(value)}" for path, value in wanted)
        raise ConfigError(f"--only: no row of {table.name} has {asked} together")
    return kept


def _shown(value: Any) -> str:
    """A value as --only takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _full_path(name: str, axes: tuple[str, ...]) -> str:
    """The dotted path a short name stands for: a swept field, or any field of a cell; one of a source has no other."""
    fields = fields_of(Cell)
    if name.removeprefix("source." * name.count("source.")) in fields:
        return name
    candidates = [path for path in axes if path.endswith(f".{name}") and not path.startswith("source.")]
    candidates = candidates or [path for path in fields if path.endswith(f".{name}")]
    if len(candidates) != 1:
        raise ConfigError(unknown("field", name, candidates) if candidates else unknown_field(name, fields))
    return candidates[0]


def refuse_twins(found: list[Entry]) -> None:
    """See that no two entries are the same cell.

    Raises:
        ConfigError: two are.
    """
    seen: dict[str, Entry] = {}
    for entry in found:
        twin = seen.setdefault(entry.key, entry)
        if twin is not entry:
            rows = f"{twin.row!r} and {entry.row!r}, seed {entry.seed}"
            raise ConfigError(f"two points of the grid are the same cell: {rows}")
