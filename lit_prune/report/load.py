"""Everything that was found, as Reports and as frames: what a store holds, and the records of finished tables.

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
from lit_prune.registry import table_of
from lit_prune.report import Report, record, reread
from lit_prune.report.command import extra_flags
from lit_prune.store import DEFAULT_ROOT, Store
from lit_prune.store.environment import environment, machine


@dataclass(frozen=True, eq=False)
class Answer:
    """The report of a table, and where it was found."""

    report: Report
    origin: str
    """store or record."""
    notes: str
    """NOTES.md of the table, as Markdown; empty where there is none."""
    notices: tuple[str, ...] = ()
    """What was found beside it and is not shown."""

    @property
    def question(self) -> tuple[str, str, str]:
        """Table, profile, and what was set away from them."""
        return self.report.table.name, self.report.profile, extra_flags(self.report)

    @property
    def plain(self) -> bool:
        """Whether it is a table at a profile as both are, nothing set away."""
        return not extra_flags(self.report)

    @property
    def num_done(self) -> int:
        """Cells that are done."""
        return int((self.report.tidy["state"] == "done").sum())


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings as one line each, without the code that raised them."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        yield


def gather(
    store: Store, records: Path = RECORDS, profiles: Collection[str] | None = None,
    tables: Collection[str] | None = None,
) -> list[Answer]:  # fmt: skip
    """Every question that was asked of a store, as it stands now, and every record; by table, profile and settings.

    Of one question that both have, that with more cells done is taken, the store's where they are equal. `profiles` and
    `tables` keep those.

    Raises:
        ConfigError: a record cannot be read.
    """
    records = expand(records)
    questions: dict[object, list[Answer]] = {}
    for answer in [*stored(store, records, tables), *recorded(records, tables)]:
        if profiles is None or answer.report.profile in profiles:
            questions.setdefault(answer.question, []).append(answer)
    chosen = [_fuller(answers) for answers in questions.values()]
    return sorted(chosen, key=lambda answer: answer.question)


def frame(store: str | Path = DEFAULT_ROOT, records: str | Path = RECORDS) -> pd.DataFrame:
    """Return one line a cell of all tables: table, profile, settings, and the columns of `report.cells.tidy`.

    A column that only other tables have is NaN.

    Raises:
        ConfigError: a record cannot be read.
    """
    return frame_of(gather(Store(store), Path(records)))


def frame_of(answers: Iterable[Answer]) -> pd.DataFrame:
    """As `frame`, of answers that are known."""
    return _joined(answers, lambda report: report.tidy)


def ledger(answers: Iterable[Answer]) -> pd.DataFrame:
    """Return one line a claim: table, profile, settings, and the columns of `report.judge`."""
    return _joined(answers, lambda report: report.verdicts)


def _joined(answers: Iterable[Answer], part: Callable[[Report], pd.DataFrame]) -> pd.DataFrame:
    parts = []
    for report in (answer.report for answer in answers):
        lines = part(report)
        asked = {"table": report.table.name, "profile": report.profile, "settings": extra_flags(report)}
        parts.append(pd.concat([pd.DataFrame(asked, index=lines.index), lines], axis="columns"))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["table", "profile", "settings"])


def _fuller(answers: list[Answer]) -> Answer:
    """Return the answer with more cells done, the store's where they are equal, and what the other one would say."""
    best, *others = sorted(answers, key=lambda answer: (-answer.num_done, answer.origin != "store"))
    beside = (f"the {other.origin} has {other.num_done} of its {len(other.report.tidy)} cells" for other in others)
    failed = tuple(
        f"failed in the {other.origin}: {row}, seed {seed}: {error}"
        for other in others
        for row, seed, error in other.report.failures
    )
    return replace(best, notices=(*beside, *failed) if best.origin == "record" else ())


def stored(store: Store, records: Path = RECORDS, tables: Collection[str] | None = None) -> list[Answer]:
    """Return every request that was made of a store, as it stands now; one that cannot be read is left out with a
    warning."""
    found = []
    for folder in _folders(store.root / "reports", tables):
        try:
            found.append(Answer(reread(_read(folder), store), "store", _notes(records, folder.parent.name)))
        except ConfigError as error:  # of a table or a field that is no more; the others can be read
            warnings.warn(f"left out: {error}", stacklevel=2)
    return found


def recorded_runs(table: str, records: Path = RECORDS) -> list[tuple[float, float]]:
    """Return FLOPs and seconds of the cells in a table's records that were made on this machine."""
    here, runs = machine(environment()), []
    for report in (answer.report for answer in recorded(records, [table])):
        if report.hardware == (here,):
            frame = report.tidy[["train_flops", "wall_seconds"]].dropna()
            runs += [(float(flops), float(seconds)) for flops, seconds in frame.to_numpy()]
    return runs


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
