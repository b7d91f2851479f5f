"""Select cells of a table and locate the report of a request. No torch until cells are resolved."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_prune import registry
from lit_prune.config import Cell, ConfigError
from lit_prune.config.overrides import parents_of, parse_setting
from lit_prune.config.profiles import is_file, load_profile
from lit_prune.config.renames import former_change, former_words
from lit_prune.config.table import Table
from lit_prune.pipeline.expand import Entry, entries, refuse_twins
from lit_prune.store import Store
from lit_prune.store.address import digest

if TYPE_CHECKING:
    from lit_prune.pipeline.resolve import Resolver


_NAMED = (
    "prune.width_criterion", "prune.layer_criterion", "prune.layer_selection", "prune.width_allocation",
    "distill.logit_loss",
    "distill.hidden_loss",
)  # fmt: skip
"""Fields that name a registered part."""


@dataclasses.dataclass(frozen=True)
class TableRequest:
    """Choose the cells of a table."""

    profile: str = "quick"
    """Scale: quick (2 CPU cores, minutes), laptop (about an hour), smollm2 (135M parameters, hours),
    h200 (one GPU), paper (the papers' scale), or a YAML file."""
    set: tuple[str, ...] = ()
    """FIELD=VALUE for every row, e.g. teacher.model=./my-llama or distill.max_steps=50. `lit-prune fields` lists
    the fields."""
    add_row: tuple[str, ...] = ()
    """FIELD=VALUE: add a row, the baseline with this one change, e.g. logit_loss=mse_logits."""
    filter: tuple[str, ...] = ()
    """FIELD=VALUE: keep only the rows with this value, e.g. logit_loss=kld. If given several times, values of one field
    are alternatives, and different fields must all match."""
    seeds: int | None = None
    """Number of seeds of every row; default: that of the profile."""

    @property
    def settings(self) -> dict[str, Any]:
        """Field -> value, as given by `set`."""
        return dict(map(parse_setting, self.set))

    @property
    def selection(self) -> list[str]:
        """The arguments that choose rows and seeds."""
        words = [] if self.seeds is None else ["--seeds", str(self.seeds)]
        for name, texts in (("--add-row", self.add_row), ("--filter", self.filter)):
            words += [word for text in texts for word in (name, text)]
        return words

    @property
    def changes(self) -> tuple[str, ...]:
        """The arguments in which the request differs from the table at its profile."""
        return (*(word for text in self.set for word in ("--set", text)), *self.selection)

    def folder(self, table: Table, store: Store) -> Path:
        """Return where the report is written. Every request has its own folder."""
        selection = former_words(self.selection)
        settings = (former_change(*change) for change in self.settings.items())
        requested = [*sorted(f"{path}={value}" for path, value in settings), *selection]
        scale = Path(self.profile).stem
        if is_file(self.profile):  # another file may have the same name
            requested.insert(0, str(Path(self.profile).resolve()))
        return store.root / "reports" / table.name / (f"{scale}-{digest(requested)}" if requested else scale)


def requested_entries(
    table: Table, request: TableRequest, store: Store, *, measure: bool = False
) -> tuple[Table, list[Entry]]:
    """Return the table at the profile, and the requested cells with fingerprints and steps filled in.

    With `measure`, first measure the speeds on which the rows of some tables depend; without, nothing is computed.

    Raises:
        ConfigError: if the table has no such rows, or a named text or model does not exist.
    """
    from lit_prune.pipeline.resolve import Resolver

    if request.seeds is not None and request.seeds < 1:
        raise ConfigError(f"--seeds: must be at least 1, got {request.seeds}")
    settings, profile = request.settings, load_profile(request.profile, table.name, registry.tables())
    if measure:
        table.measure(profile, store.root, settings)
    table = table.at(profile, store.root, settings)
    found = entries(
        table,
        profile,
        num_seeds=request.seeds,
        settings=settings,
        add_rows=[parse_setting(text, "--add-row") for text in request.add_row],
        filters=[parse_setting(text, "--filter") for text in request.filter],
    )
    _check_names((*request.set, *request.add_row), found)
    resolver = Resolver()
    resolved = [dataclasses.replace(entry, cell=cell) for entry, cell in _resolved(resolver, found)]
    refuse_twins(resolved)  # two budgets may equal the same steps
    return table, resolved


def _resolved(resolver: Resolver, found: list[Entry]) -> Iterator[tuple[Entry, Cell]]:
    """Yield every entry with its resolved cell; an error that the first row does not have names its row."""
    for entry in found:
        try:
            cell = resolver.pin(entry.cell)
        except ConfigError as error:
            raise error if entry.row == found[0].row else ConfigError(f"{error} (row {entry.row!r})") from None
        yield entry, cell


def _check_names(texts: Iterable[str], found: list[Entry]) -> None:
    """Check the names of registered parts in the request, also if every cell is already done."""
    typed = [parse_setting(text)[0] for text in texts]
    if any(path.endswith(name) for path in _NAMED for name in typed):
        from lit_prune.pipeline.validate import check_names  # it imports torch

        for cell in (c for entry in found for c in (entry.cell, *parents_of(entry.cell))):
            check_names(cell)
