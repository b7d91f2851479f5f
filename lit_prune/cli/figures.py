"""`lit-prune figures`: the figures of a table for a talk or a paper."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from lit_prune.cli.process import Verb
from lit_prune.config import ConfigError
from lit_prune.config.profiles import RECORDS
from lit_prune.escape import printable
from lit_prune.store import DEFAULT_ROOT, Store
from lit_prune.store.atomic import atomic_path

if TYPE_CHECKING:
    from lit_prune.report import Report


@dataclasses.dataclass(frozen=True)
class CliArgs:
    """Draw the figures of a table from the store or its record: final values, losses over the steps, ranks, cost."""

    table: tyro.conf.Positional[str]
    """Name of the table, e.g. loss_ablation."""
    profile: str = "quick"
    """Profile at which the table was run: a name in configs/, or a YAML file."""
    out: Path = Path("figures")
    """Folder to write to; one file per figure."""
    format: Literal["pdf", "png", "svg"] = "pdf"
    """File format."""
    store: str = DEFAULT_ROOT
    """Folder of all results."""
    records: Path = RECORDS
    """Folder of the records of finished tables."""


def draw(report: Report, out: Path, format: str) -> list[Path]:
    """Write the figures of a report; return their paths.

    Raises:
        ConfigError: if the folder cannot be written.
    """
    import matplotlib as mpl

    from lit_prune.render import catalog, svg

    table, profile = report.table, Path(report.profile).stem
    with mpl.rc_context(svg.style(table.name)):
        drawn = [*catalog.overviews(report).items(), *catalog.learning_curves(report).items()]
        paths = [out / f"{table.name}-{profile}-{name}.{format}" for name in _file_names(title for title, _ in drawn)]
        try:
            out.mkdir(parents=True, exist_ok=True)
            for path, (_, figure) in zip(paths, drawn, strict=True):
                with atomic_path(path) as scratch:
                    figure.savefig(scratch, format=format)
        except OSError as error:
            raise ConfigError(f"--out: {out} cannot be written ({error.strerror})") from None
    return paths


def _file_names(titles: Iterable[str]) -> list[str]:
    """Return a file name for each title; equal names are numbered."""
    names: list[str] = []
    for title in titles:
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        numbered = itertools.chain([name], (f"{name}-{k}" for k in itertools.count(2)))
        names.append(next(free for free in numbered if free not in names))
    return names


def _report(flags: CliArgs) -> Report:
    """Return the report of the table at the profile, without overrides.

    Raises:
        ConfigError: no cell is done and there is no record.
    """
    from lit_prune.registry import table_of
    from lit_prune.report.load import gather, plain_warnings

    name = table_of(flags.table).name
    with plain_warnings():
        found = gather(Store(flags.store), flags.records, profiles=[flags.profile], tables=[name])
    report = next((answer.report for answer in found if answer.plain and answer.num_done), None)
    if report is None:
        raise ConfigError(
            f"{name}: nothing is done at profile {flags.profile}, neither in {flags.store} nor in {flags.records}"
        )
    return report


def run(flags: CliArgs) -> int:
    """Write the figures and print their paths."""
    for path in draw(_report(flags), flags.out, flags.format):
        print(printable(str(path)))
    return 0


VERB = Verb("figures", CliArgs, run, begins="reading the store and the records")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return VERB.main(argv)


if __name__ == "__main__":
    raise SystemExit(main())
