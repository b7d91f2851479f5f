"""The files of the report of all tables: the page, the cells, the claims, and each table for a paper."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.answers import Answer, frame_of
from analysis.page import anchor_of, render
from analysis.standing import tables_not_run, whole_ledger
from lit_prune.config import ConfigError
from lit_prune.progress import Bar
from lit_prune.render.files import latex, markdown, write_texts
from lit_prune.store import Store

_PLAIN = (str, bool, int, float)


def write(answers: Sequence[Answer], store: Store, out: Path) -> list[Path]:
    """Write the page and its exports; returns their paths, the page first.

    Raises:
        ConfigError: there is no answer, or the folder cannot be written.
    """
    if not answers:
        raise ConfigError(f"nothing is done in {store.root}, nothing is recorded: run a table first")
    not_run = tables_not_run(answers)
    ledger, cells = whole_ledger(answers, not_run), frame_of(answers)
    with Bar(len(answers)) as bar:
        page = render(answers, ledger, not_run, bar)
    tables = {
        out / "tables" / f"{anchor_of(answer.report)}.{kind}": text(answer.report)
        for answer in answers
        for kind, text in (("md", markdown), ("tex", latex))
    }
    texts = {out / "ledger.csv": ledger.to_csv(index=False), out / "results.csv": cells.to_csv(index=False)}
    write_texts(out / "tables", tables)
    write_texts(out, texts)
    write_parquet(cells, out / "results.parquet")
    # Last: a page says that all beside it is as new as itself.
    write_texts(out, {out / "report.html": page})
    return [out / "report.html", out / "results.parquet", *texts, *tables]


def write_parquet(cells: pd.DataFrame, path: Path) -> None:
    """Write a frame as Parquet, whole or not at all; a column of several kinds of values becomes one of text."""
    columns = {name: set(cells[name].dropna().map(type)) for name in cells if cells[name].dtype == object}
    mixed = [name for name, kinds in columns.items() if not any(kinds <= {kind} for kind in _PLAIN)]
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    cells.assign(**{name: cells[name].map(str, na_action="ignore") for name in mixed}).to_parquet(scratch, index=False)
    scratch.replace(path)
