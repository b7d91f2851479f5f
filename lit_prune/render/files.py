"""Write a report as files: CSV, Markdown, LaTeX and one self-contained HTML page. No torch."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from lit_prune.config import ConfigError
from lit_prune.escape import latex_text, markdown_code, markdown_text
from lit_prune.render import figures, page, wording
from lit_prune.render.answer import answer_line
from lit_prune.store.atomic import write_text

if TYPE_CHECKING:
    import pandas as pd

    from lit_prune.report import Report

_PAGE = "report.html.j2"
# Characters of a LaTeX table that fit the width of a page.
_TEX_WIDTH = 100
# Claims and their sources can be sentences.
_COLUMNS = dict.fromkeys(wording.LEFT, "l") | {
    "claim": "p{.28\\linewidth}", "verdict": "l", "source": "p{.2\\linewidth}",
}  # fmt: skip


def write_files(report: Report, folder: Path) -> list[Path]:
    """Write the record of a report, and report.md, report.tex and report.html, except files that are up to date.

    Returns the paths of the files for readers.

    Raises:
        ConfigError: if the folder cannot be written.
    """
    texts = _record(report) | {"report.md": markdown(report)}
    digest = fingerprint(report, *texts.values())
    paths = [folder / name for name in ("results.csv", "report.md", "report.tex", "report.html")]
    shown, by_path = paths[-1], _in(folder, texts)
    known = all(_holds(path, text) for path, text in by_path.items()) and all(path.exists() for path in paths)
    if not known or not _holds(shown, digest, 500):
        # The page with the digest comes last: if interrupted before, the next call writes all again.
        write_texts(folder, by_path | {folder / "report.tex": latex(report), shown: _html(report, digest)})
    return paths


def write_record(report: Report, folder: Path) -> list[Path]:
    """Write the files to commit: the record, report.md, and the index of all records.

    Raises:
        ConfigError: if the folder cannot be written.
    """
    texts = _in(folder, _record(report) | {"report.md": markdown(report)})
    write_texts(folder, texts)
    index = folder.parents[1] / "README.md"
    write_texts(index.parent, {index: _index(index.parent)})
    return [*texts, index]


def write_request(report: Report, folder: Path) -> None:
    """Write the record before anything is computed, so that an interrupted run leaves its request.

    Raises:
        ConfigError: if the folder cannot be written.
    """
    write_texts(folder, _in(folder, _record(report)))


def _record(report: Report) -> dict[str, str]:
    from lit_prune.report.record import texts  # pandas comes with it

    return texts(report)


def _command(report: Report) -> str:
    from lit_prune.report.command import command  # pandas comes with it

    return command(report)


def _in(folder: Path, texts: Mapping[str, str]) -> dict[Path, str]:
    return {folder / name: text for name, text in texts.items()}


def _holds(path: Path, text: str, within: int | None = None) -> bool:
    """Return whether a file equals a text, or contains it in its first `within` characters."""
    if not path.exists():
        return False
    found = path.read_text()
    return found == text if within is None else text in found[:within]


def _index(records: Path) -> str:
    """Return the index of records: a line per table and profile, with a link to its notes."""
    lines = ["# Records", "", "Written by `report --record`; the notes are written by hand.", ""]
    lines += ["| table | profile | report | notes |", "|---|---|---|---|"]
    for report in sorted(records.glob("*/*/report.md")):
        table, profile = report.parts[-3:-1]
        link = report.relative_to(records).as_posix()
        names = f"{markdown_text(table)} | {markdown_text(profile)}"
        notes = quote(f"{table}/NOTES.md")
        lines.append(f"| {names} | [{markdown_text(link)}]({quote(link)}) | [NOTES]({notes}) |")
    return "\n".join(lines) + "\n"


def write_texts(folder: Path, texts: Mapping[Path, str]) -> None:
    """Write each file atomically."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            write_text(path, text)
    except OSError as error:
        raise ConfigError(f"the report cannot be written to {folder} ({error.strerror})") from None


def fingerprint(report: Report, *texts: str) -> str:
    """Return a digest of the content of the files and of the code that renders it, 16 hexadecimal digits."""
    code = [path.read_text() for path in sorted(page.FOLDER.iterdir()) if path.is_file()]
    contents = [report.histories.to_csv(), *code, *texts]
    return hashlib.sha256("\0".join(contents).encode()).hexdigest()[:16]


def markdown(report: Report) -> str:
    """Return the report in Markdown: answer, claims, table, missing cells, and the command that reproduces it."""
    table, absent = report.table, wording.absent(report)
    failed = [f"{row}, seed {seed}: {error}" for row, seed, error in report.failures]
    parts = [
        f"# {markdown_text(table.name)}", markdown_text(table.question), f"**{markdown_text(answer_line(report))}**",
        f"*{markdown_text(table.source)}* · {markdown_text(wording.headline(report))}",
        markdown_list(wording.warnings(report)),
        "## Claims of the paper", markdown_table(wording.claims_table(report)),
        markdown_text(f"Order of the rows: {wording.agreement(report)}."),
        "## Results", markdown_text(wording.order(report)),
        markdown_table(wording.main_table(report), bold=["best" in kind for kind in wording.kinds(report)]),
        markdown_list(wording.notes(report)),
        *_checks(report),
        *(["## Cells that are not done", markdown_text(absent), markdown_list(failed)] if absent else []),
        "## How to run it again", markdown_code(_command(report)),
        markdown_list([f"{name}: {value}" for name, value in wording.provenance(report).items()]),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _checks(report: Report) -> list[str]:
    """Return the section on the order of rows during retraining; empty without validations."""
    if report.checks.empty:
        return []
    against = "Order of the rows by LM loss at each check, against that at the end:"
    ranks = [] if report.ranks.empty else [against, markdown_table(wording.rank_table(report))]
    return ["## During the retraining", *ranks, markdown_list(wording.flips(report))]


def markdown_list(lines: Iterable[str]) -> str:
    """Return lines of text as a Markdown list."""
    return "\n".join(f"- {markdown_text(line)}" for line in lines)


def markdown_table(frame: pd.DataFrame, left: Collection[str] = wording.LEFT, bold: Sequence[bool] = ()) -> str:
    """Return a frame of text as a pipe table; columns in `left` are left-aligned, all others right-aligned.

    `bold` marks the lines whose first two cells are bold.
    """
    sides = ["left" if name in left else "right" for name in frame]
    escaped = frame.map(markdown_text).rename(columns=markdown_text)
    escaped = _bold(escaped, bold, "**{}**")
    return escaped.to_markdown(index=False, disable_numparse=True, colalign=sides)


def _bold(frame: pd.DataFrame, marked: Sequence[bool], markup: str) -> pd.DataFrame:
    """Return the frame with markup around the first two cells of the marked lines."""
    lines = list(itertools.compress(frame.index, marked))
    frame.loc[lines, frame.columns[:2]] = frame.loc[lines, frame.columns[:2]].map(markup.format)
    return frame


def latex(report: Report) -> str:
    """Return booktabs tables: the rows, in parts that fit the width of a page, and the claims."""
    name, question, source = report.table.name, report.table.question, report.table.source
    parts = enumerate(wording.parts(wording.main_table(report), _TEX_WIDTH), 1)
    tables = [
        *((f"tab:{name}" + f"-{k}" * (k > 1), f"{question} ({wording.headline(report)})", part) for k, part in parts),
        (f"claims:{name}", f"Claims of {source}.", wording.claims_table(report)),
    ]
    tex = "% \\usepackage{booktabs}\n"
    best = ["best" in kind for kind in wording.kinds(report)]
    for label, caption, frame in tables:
        columns = [_COLUMNS.get(name, "r") for name in frame]
        tex += latex_table(frame, columns, label, latex_text(caption), best if "row" in frame else ())
    return tex


def latex_table(
    frame: pd.DataFrame, columns: Iterable[str], label: str, caption: str | None = None, bold: Sequence[bool] = ()
) -> str:
    """Return a frame of text as a floating booktabs table; `columns` are LaTeX column types, `caption` is LaTeX.

    `bold` marks the lines whose first two cells are bold.
    """
    escaped = _bold(frame.map(latex_text).rename(columns=latex_text), bold, "\\textbf{{{}}}")
    style = escaped.style.hide(axis="index")
    return style.to_latex(
        column_format="".join(columns), hrules=True, label=label, caption=caption, position_float="centering"
    )


def _html(report: Report, digest: str) -> str:
    from lit_prune.render import catalog

    template = page.environment().get_template(_PAGE)
    return template.render(
        context=page.context(report), digest=digest, drawn=catalog.inline(report), terms=figures.terms(report),
        panels=figures.PANELS,
    )  # fmt: skip
