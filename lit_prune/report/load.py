"""Load all results as Reports and frames: those of a store, and the records of finished tables.

from lit_prune.report.load import frame; cells = frame()      # in a notebook, from the checkout
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from lit_prune.config import ConfigError, expand
from lit_prune.config.profiles import RECORDS
from lit_prune.models.sources import SHIPPED
from lit_prune.registry import table_of
from lit_prune.report import Report, record, reread
from lit_prune.report.command import extra_flags
from lit_prune.store import DEFAULT_ROOT, Store


@dataclass(frozen=True, eq=False)
class Answer:
    """The report of a table and its origin."""

    report: Report
    origin: str
    """store or record."""
    notes: str
    """NOTES.md of the table, as Markdown; empty if missing."""
    notices: tuple[str, ...] = ()
    """Descriptions of other answers to the same question that are not shown."""

    @property
    def question(self) -> tuple[str, str, str]:
        """Table, profile, and flags that change them."""
        return self.report.table.name, self.report.profile, extra_flags(self.report)

    @property
    def plain(self) -> bool:
        """Whether table and profile are unmodified."""
        return not extra_flags(self.report)

    @property
    def is_small(self) -> bool:
        """Whether its teacher is a small one of this project: shipped with it, or pretrained by its recipe."""
        teacher = self.report.cell.teacher
        return teacher.pretraining is not None or (SHIPPED / str(teacher.model)).is_dir()

    @property
    def num_done(self) -> int:
        """Number of finished cells."""
        return int((self.report.tidy["state"] == "done").sum())


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Print warnings as one line each, without their source line."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        yield


def gather(
    store: Store, records: Path = RECORDS, profiles: Collection[str] | None = None,
    tables: Collection[str] | None = None,
) -> list[Answer]:  # fmt: skip
    """Return the report of every request in a store, from its current cells, and every record, sorted.

    Results on public models come first, then those on small models of this project; the order is then by table, profile
    and settings. If store and record answer the same question, the one with more
    finished cells wins, at a tie the store's. `profiles` and `tables` filter by name.

    Raises:
        ConfigError: if a record cannot be read.
    """
    records = expand(records)
    questions: dict[object, list[Answer]] = {}
    for answer in [*stored(store, records, tables), *recorded(records, tables)]:
        if profiles is None or answer.report.profile in profiles:
            questions.setdefault(answer.question, []).append(answer)
    chosen = [_fuller(answers) for answers in questions.values()]
    return sorted(chosen, key=lambda answer: (answer.is_small, answer.question))


def frame(store: str | Path = DEFAULT_ROOT, records: str | Path = RECORDS) -> pd.DataFrame:
    """Return a line per cell of all tables: table, profile, settings, and the columns of `report.results_frame.tidy`.

    Columns that a table lacks are NaN.

    Raises:
        ConfigError: if a record cannot be read.
    """
    return frame_of(gather(Store(store), Path(records)))


def frame_of(answers: Iterable[Answer]) -> pd.DataFrame:
    """Return the frame of `frame` for given answers."""
    return _joined(answers, lambda report: report.tidy)


def ledger(answers: Iterable[Answer]) -> pd.DataFrame:
    """Return a line per claim: table, profile, settings, and the columns of `report.verdicts.judge`."""
    return _joined(answers, lambda report: report.verdicts)


def _joined(answers: Iterable[Answer], part: Callable[[Report], pd.DataFrame]) -> pd.DataFrame:
    parts = []
    for report in (answer.report for answer in answers):
        lines = part(report)
        request = {"table": report.table.name, "profile": report.profile, "settings": extra_flags(report)}
        parts.append(pd.concat([pd.DataFrame(request, index=lines.index), lines], axis="columns"))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["table", "profile", "settings"])


def _fuller(answers: list[Answer]) -> Answer:
    """Return the answer with more finished cells, at a tie the store's, with descriptions of the others."""
    best, *others = sorted(answers, key=lambda answer: (-answer.num_done, answer.origin != "store"))
    beside = (f"the {other.origin} has {other.num_done} of its {len(other.report.tidy)} cells" for other in others)
    failed = tuple(
        f"failed in the {other.origin}: {row}, seed {seed}: {error}"
        for other in others
        for row, seed, error in other.report.failures
    )
    return replace(best, notices=(*beside, *failed) if best.origin == "record" else ())


def stored(store: Store, records: Path = RECORDS, tables: Collection[str] | None = None) -> list[Answer]:
    """Return the report of every request in a store, from its current cells; warn of one that cannot be read and skip
    it."""
    found = []
    for folder in _folders(store.root / "reports", tables):
        try:
            found.append(Answer(reread(_read(folder), store), "store", _notes(records, folder.parent.name)))
        except ConfigError as error:  # of a removed table or field; the others can be read
            warnings.warn(f"left out: {error}", stacklevel=2)
    return found


def recorded(records: Path = RECORDS, tables: Collection[str] | None = None) -> list[Answer]:
    """Return every record in a folder.

    Raises:
        ConfigError: if a record cannot be read.
    """
    folders = _folders(records, tables)
    return [Answer(_read(folder), "record", _notes(records, folder.parent.name)) for folder in folders]


def _folders(root: Path, tables: Collection[str] | None) -> list[Path]:
    folders = sorted(path.parent for path in root.glob(f"*/*/{record.RECORD}"))
    return [folder for folder in folders if tables is None or folder.parent.name in tables]


def _read(folder: Path) -> Report:
    return record.read(folder, table_of(folder.parent.name))


def _notes(records: Path, table: str) -> str:
    path = records / table / "NOTES.md"
    return path.read_text(errors="replace") if path.exists() else ""
