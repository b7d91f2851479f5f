"""Write the files of the report of all tables: the page, the cells, the claims, and each table for a paper."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from lit_prune.config import ConfigError
from lit_prune.progress import ProgressOf, Silent
from lit_prune.render.files import fingerprint, latex, markdown, write_texts
from lit_prune.render.paper_page import anchor_of, render
from lit_prune.report import costs, evaluations, paper_claims, record
from lit_prune.report.claims_summary import tables_not_run, whole_ledger
from lit_prune.report.load import Answer, frame_of
from lit_prune.store import Store
from lit_prune.store.atomic import atomic_path

_CODE = (".py", ".j2", ".css")
_PLAIN = (str, bool, int, float)


def write(answers: Sequence[Answer], store: Store, out: Path, progress: ProgressOf = Silent) -> list[Path]:
    """Write the page and its exports unless they are up to date; return their paths, the page first.

    Raises:
        ConfigError: if there are no answers, or the folder cannot be written.
    """
    if not answers:
        raise ConfigError(f"nothing is done in {store.root}, nothing is recorded: run a table first")
    not_run = tables_not_run(answers)
    ledger, cells = whole_ledger(answers, not_run), frame_of(answers)
    texts = {out / "ledger.csv": ledger.to_csv(index=False), out / "results.csv": cells.to_csv(index=False)}
    texts[out / "paper_claims.csv"] = paper_claims.shown().to_csv(index=False)
    texts[out / "costs.csv"] = costs.text(costs.read())
    scores = evaluations.read(store)
    if not scores.empty:
        texts[out / "benchmarks.csv"] = scores.to_csv(index=False)
    texts |= {
        out / "tables" / f"{anchor_of(answer.report)}.{kind}": text(answer.report)
        for answer in answers
        for kind, text in (("md", markdown), ("tex", latex))
    }
    paths, digest = [out / "report.html", out / "results.parquet", *texts], _digest(answers, texts.values())
    if all(path.exists() for path in paths) and digest in paths[0].read_text()[:500]:
        return paths
    with progress(len(answers)) as bar:
        page = render(answers, ledger, not_run, scores, digest, bar)
    for folder in (out / "tables", out):
        write_texts(folder, {path: text for path, text in texts.items() if path.parent == folder})
    write_parquet(cells, paths[1])
    # Last, as it holds the digest: if interrupted before, the next call writes all again.
    write_texts(out, {paths[0]: page})
    return paths


def _digest(answers: Iterable[Answer], texts: Iterable[str]) -> str:
    """Return a digest of the content of the files and of the code that renders it, 16 hexadecimal digits."""
    code = [path.read_text() for path in sorted(Path(__file__).parent.iterdir()) if path.suffix in _CODE]
    contents = [
        fingerprint(answer.report, *record.texts(answer.report).values(), answer.origin, answer.notes, *answer.notices)
        for answer in answers
    ]
    return hashlib.sha256("\0".join([*code, *contents, *texts]).encode()).hexdigest()[:16]


def write_parquet(cells: pd.DataFrame, path: Path) -> None:
    """Write a frame as Parquet atomically; columns of mixed types become text."""
    columns = {name: set(cells[name].dropna().map(type)) for name in cells if cells[name].dtype == object}
    mixed = [name for name, kinds in columns.items() if not any(kinds <= {kind} for kind in _PLAIN)]
    plain = cells.assign(**{name: cells[name].map(str, na_action="ignore") for name in mixed})
    with atomic_path(path) as scratch:
        plain.to_parquet(scratch, index=False)
