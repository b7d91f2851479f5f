"""What is asked of a table: the words of a command that choose its cells, and the cells they come to. No torch."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from lit_prune.config import Cell, ConfigError
from lit_prune.config.overrides import parse_setting, sources_of
from lit_prune.config.profiles import is_file, load_profile
from lit_prune.config.table import Table
from lit_prune.pipeline.expand import Entry, entries, refuse_twins
from lit_prune.store import Store
from lit_prune.store.address import digest

if TYPE_CHECKING:
    from lit_prune.pipeline.resolve import Resolver

Settings = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@dataclasses.dataclass(frozen=True)
class TableRequest:
    """Flags of every command about one table."""

    profile: str = "quick"
    """Scale: quick (2 cores, minutes), laptop (about an hour), h200 (one GPU), paper (the papers' own), or a file."""
    set: Settings = ()
    """field=value of the base cell, e.g. teacher.model=./my-llama or distill.steps=50; may be given several times."""
    also: Settings = ()
    """field=value: one more row, the baseline with that one change, e.g. logit_loss=mse_logits."""
    only: Settings = ()
    """field=value: only the rows that have it, e.g. logit_loss=kld."""
    seeds: int | None = None
    """Seeds of every row; the profile says how many otherwise."""

    @property
    def settings(self) -> dict[str, Any]:
        """What is set away from the profile."""
        return dict(map(parse_setting, self.set))

    @property
    def selection(self) -> list[str]:
        """The words that choose rows and seeds."""
        words = [] if self.seeds is None else ["--seeds", str(self.seeds)]
        for name, texts in (("--also", self.also), ("--only", self.only)):
            words += [word for text in texts for word in (name, text)]
        return words

    @property
    def changes(self) -> tuple[str, ...]:
        """All that is asked away from a table at a profile as both are, as words of a command."""
        return (*(word for text in self.set for word in ("--set", text)), *self.selection)

    def folder(self, table: Table, store: Store) -> Path:
        """Where the answer is written. Every question has its own: other settings or other rows are another one."""
        asked = [*sorted(f"{path}={value}" for path, value in self.settings.items()), *self.selection]
        scale = Path(self.profile).stem
        if is_file(self.profile):  # another may have its name
            asked.insert(0, str(Path(self.profile).resolve()))
        return store.root / "reports" / table.name / (f"{scale}-{digest(asked)}" if asked else scale)


def check_words(words: Sequence[str] | None) -> None:
    """Check that the flags that take field=value are not given a field and a value apart.

    `words` are those of the command, by default of this process.

    Raises:
        ConfigError: one is.
    """
    words = sys.argv[1:] if words is None else words
    for flag, path, value in zip(words, words[1:], words[2:], strict=False):
        if flag in ("--set", "--also", "--only") and "=" not in path and not value.startswith("-"):
            raise ConfigError(f"{flag}: must be field=value, got {path!r} {value!r}; write {flag} {path}={value}")


def asked_entries(table: Table, question: TableRequest, store: Store) -> tuple[Table, list[Entry]]:
    """The table at the profile, and the cells asked for, pinned by the content of what they read.

    Raises:
        ConfigError: the question cannot be asked of the table, or what it names is not there.
    """
    from lit_prune.pipeline.resolve import Resolver

    if question.seeds is not None and question.seeds < 1:
        raise ConfigError(f"--seeds: {question.seeds} asked for, at least 1 is needed")
    settings, profile = question.settings, load_profile(question.profile)
    table = table.at(profile, store.root, settings)
    found = entries(
        table,
        profile,
        num_seeds=question.seeds,
        settings=settings,
        also=[parse_setting(text, "--also") for text in question.also],
        only=[parse_setting(text, "--only") for text in question.only],
    )
    _check_names((*question.set, *question.also), found)
    pins = Resolver()
    pinned = [dataclasses.replace(entry, cell=cell) for entry, cell in _pinned(pins, found)]
    refuse_twins(pinned)  # budgets may come to the same steps
    return table, pinned


def _pinned(pins: Resolver, found: list[Entry]) -> Iterator[tuple[Entry, Cell]]:
    """Yield every entry with its pinned cell; an error that the first row does not raise names its row."""
    for entry in found:
        try:
            cell = pins.pin(entry.cell)
        except ConfigError as error:
            raise error if entry.row == found[0].row else ConfigError(f"{error} (row {entry.row!r})") from None
        yield entry, cell


def _check_names(texts: Iterable[str], found: list[Entry]) -> None:
    """See that the names a person typed exist, also where nothing is computed."""
    from lit_prune.pipeline.validate import NAMED, check_names

    typed = [parse_setting(text)[0] for text in texts]
    if any(path.endswith(name) for path in NAMED for name in typed):
        for cell in (c for entry in found for c in (entry.cell, *sources_of(entry.cell))):
            check_names(cell)
