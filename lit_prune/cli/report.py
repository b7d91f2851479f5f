"""The paper-reproduction report: one page with every claim and every table, and the tables as files.

python -m analysis.report
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import tyro

from lit_prune.cli.process import begin
from lit_prune.config import ConfigError
from lit_prune.config.profiles import RECORDS
from lit_prune.escape import printable
from lit_prune.store import DEFAULT_ROOT, Store


@dataclasses.dataclass(frozen=True)
class CliArgs:
    """Write the paper-reproduction report of everything in the store and in experiments/: report.html with the claims
    ledger first, results.parquet and results.csv (a line a cell), ledger.csv (a line a claim), and tables/ with every
    table in Markdown and LaTeX."""

    store: str = DEFAULT_ROOT
    """Folder where everything computed is kept."""
    records: Path = RECORDS
    """Folder of the recorded answers; of one question, the store or the record tells that has more cells done."""
    out: Path | None = None
    """Folder of the report; reports/paper in the store otherwise."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    flags = tyro.cli(CliArgs, args=argv, prog="python -m analysis.report")
    begin("report: reading the store and the records", argv)
    from lit_prune.render.exports import write
    from lit_prune.report.load import gather, plain_warnings

    store = Store(flags.store)
    try:
        with plain_warnings():
            answers = gather(store, flags.records)
        page, *others = write(answers, store, flags.out or store.root / "reports" / "paper")
    except (ConfigError, OSError) as error:
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    print(printable(str(page)))
    print(f"and {len(others)} files beside it: results, ledger and tables")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
