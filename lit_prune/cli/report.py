"""`lit-prune report`: one page with every claim and every table, and the tables as files."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from lit_prune.cli.process import Verb
from lit_prune.config.profiles import RECORDS
from lit_prune.escape import printable
from lit_prune.store import DEFAULT_ROOT, Store


@dataclasses.dataclass(frozen=True)
class CliArgs:
    """Write one HTML page with every table and claim of the store and the records. Also write the results as Parquet
    and CSV (one line per cell), the claims as ledger.csv (one line per claim), and every table as Markdown and
    LaTeX."""

    store: str = DEFAULT_ROOT
    """Folder of all results."""
    records: Path = RECORDS
    """Folder of the records of finished tables. If store and records both have a table, the page shows the one with
    more finished cells."""
    out: Path | None = None
    """Folder of the report; default: reports/paper in the store."""


def run(flags: CliArgs) -> int:
    """Write the report and print where it lies."""
    from lit_prune.cli.progress import ProgressBar
    from lit_prune.render.exports import write
    from lit_prune.report.load import gather, plain_warnings

    store = Store(flags.store)
    with plain_warnings():
        answers = gather(store, flags.records)
    page, *others = write(
        answers, store, flags.out or store.root / "reports" / "paper", functools.partial(ProgressBar, unit="table")
    )
    print(printable(str(page)))
    print(f"and {len(others)} files beside it: results, ledger and tables")
    return 0


VERB = Verb("report", CliArgs, run, begins="reading the store and the records")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return VERB.main(argv)


if __name__ == "__main__":
    raise SystemExit(main())
