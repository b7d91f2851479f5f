"""Figures of a table for a talk or a paper: final values, losses and ranks during the retraining, a swept number, the
paper beside ours, cost against loss, what the teacher's blocks are worth, and the learning curve of each row.

python -m analysis.figures loss_ablation --profile quick --out figures
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
import tyro
from matplotlib.figure import Figure

from analysis.answers import table_of
from lit_prune.config import ConfigError
from lit_prune.grid import Table, entries
from lit_prune.pins import Pins
from lit_prune.render import figures, overview, svg
from lit_prune.report import Report, assemble
from lit_prune.settings import load_profile
from lit_prune.store import DEFAULT_ROOT, Store


@dataclasses.dataclass(frozen=True)
class Flags:
    """Draw what the store holds of a table."""

    table: tyro.conf.Positional[str]
    """Name of the table, e.g. loss_ablation."""
    profile: str = "quick"
    """Scale the table was run at."""
    out: Path = Path("figures")
    """Folder the figures go to."""
    format: str = "pdf"
    """pdf, png or svg."""
    store: str = DEFAULT_ROOT
    """Folder where everything computed is kept."""


def draw(table: Table, profile: str, store: Store, out: Path, format: str) -> list[Path]:
    """Write the figures of a table; returns their paths.

    Raises:
        ConfigError: nothing of the table is done at this profile.
    """
    pins = Pins()
    asked = load_profile(profile)
    table = table.at(asked, store.root)
    found = [dataclasses.replace(e, cell=pins.pin(e.cell)) for e in entries(table, asked)]
    report = assemble(table, profile, {}, found, store)
    if not report.summary["n"].any():
        raise ConfigError(f"{table.name}: nothing is done at profile {profile} in {store.root}")
    out.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(svg.style(table.name)):
        drawn = [*overviews(report).items(), *learning_curves(report).items()]
        paths = [out / f"{table.name}-{profile}-{name}.{format}" for name in _file_names(title for title, _ in drawn)]
        for path, (_, figure) in zip(paths, drawn, strict=True):
            figure.savefig(path)
    return paths


def overviews(report: Report) -> dict[str, Figure]:
    """The figures of the table as a whole, by name, those that there is something to draw of."""
    return {picture.name: picture.draw() for picture in overview.pictures(report)}


def captions(report: Report) -> dict[str, str]:
    """A sentence for each of the overviews: what is drawn, and what a line, a band, a dot stand for."""
    return {picture.name: picture.caption for picture in overview.pictures(report)}


def learning_curves(report: Report) -> dict[str, Figure]:
    """A figure for each row: its training loss over the steps, mean and range over the seeds."""
    rows = report.histories.groupby("row", sort=False)
    curves = {str(row): figures.curve_of(history, "loss") for row, history in rows}
    return {row: figures.panel(curve, None) for row, curve in curves.items()}


def _file_names(titles: Iterable[str]) -> list[str]:
    """A name for each title of what a file's name may hold, numbered where two would be the same."""
    names: list[str] = []
    for title in titles:
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        numbered = itertools.chain([name], (f"{name}-{k}" for k in itertools.count(2)))
        names.append(next(free for free in numbered if free not in names))
    return names


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    flags = tyro.cli(Flags, args=argv, prog="python -m analysis.figures")
    try:
        for path in draw(table_of(flags.table), flags.profile, Store(flags.store), flags.out, flags.format):
            print(path)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
