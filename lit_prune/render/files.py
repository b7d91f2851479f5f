"""A report as files: CSV, Markdown, LaTeX and one self-contained HTML page. No torch."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lit_prune.config import ConfigError
from lit_prune.render import figures, page, words

if TYPE_CHECKING:
    import pandas as pd

    from lit_prune.report import Report

_PAGE = "report.html.j2"
# Characters of a LaTeX table that fit the width of a page.
_TEX_WIDTH = 100
_MATH = {"±": "$\\pm$", "Δ": "$\\Delta$", "<": "$<$", "·": "$\\cdot$", words.NONE: "---"}


def write_files(report: Report, folder: Path) -> list[Path]:
    """Write results.csv, report.md, report.tex and report.html; nothing is written that is there already.

    Raises:
        ConfigError: the folder cannot be written.
    """
    csv, text = report.tidy.to_csv(index=False), markdown(report)
    digest = _digest(report, csv, text)
    paths = [folder / name for name in ("results.csv", "report.md", "report.tex", "report.html")]
    if not all(path.exists() for path in paths) or digest not in paths[-1].read_text()[:500]:
        # The page, which holds the digest, comes last: cut off before it, the next call writes all again.
        write_texts(folder, dict(zip(paths, (csv, text, latex(report), _html(report, digest)), strict=True)))
    return paths


def write_record(report: Report, folder: Path) -> list[Path]:
    """Write what is committed of an answer, results.csv and report.md, and the index of all that are recorded.

    Raises:
        ConfigError: the folder cannot be written.
    """
    texts = {folder / "results.csv": report.tidy.to_csv(index=False), folder / "report.md": markdown(report)}
    write_texts(folder, texts)
    index = folder.parents[1] / "README.md"
    write_texts(index.parent, {index: _index(index.parent)})
    return [*texts, index]


def _index(records: Path) -> str:
    """What is recorded: a line a table and profile, with its notes."""
    lines = ["# The answers", "", "Made by `report --record`; the notes are written by hand.", ""]
    lines += ["| table | profile | report | notes |", "|---|---|---|---|"]
    for report in sorted(records.glob("*/*/report.md")):
        table, profile = report.parts[-3:-1]
        link = report.relative_to(records).as_posix()
        lines.append(f"| {table} | {profile} | [{link}]({link}) | [NOTES]({table}/NOTES.md) |")
    return "\n".join(lines) + "\n"


def write_texts(folder: Path, texts: Mapping[Path, str]) -> None:
    """Write each file whole or not at all."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            scratch = path.with_name(f".{path.name}.{os.getpid()}")
            scratch.write_text(text)
            scratch.replace(path)
    except OSError as error:
        raise ConfigError(f"the report cannot be written to {folder} ({error.strerror})") from None


def _digest(report: Report, *texts: str) -> str:
    """What the files say, and the code that says it, as 16 hexadecimal digits."""
    code = [path.read_text() for path in sorted(page.FOLDER.iterdir()) if path.is_file()]
    blocks = json.dumps(report.blocks, default=lambda node: node.tolist() if hasattr(node, "tolist") else vars(node))
    said = [repr(report.cell), report.histories.to_csv(), report.checks.to_csv(), blocks, *code, *texts]
    return hashlib.sha256("\0".join(said).encode()).hexdigest()[:16]


def markdown(report: Report) -> str:
    """The report in Markdown: claims, table, what is not done, how to run it again."""
    table, absent = report.table, words.absent(report)
    failed = [f"{row}, seed {seed}: {error}" for row, seed, error in words.failed(report)]
    parts = [
        f"# {table.name}", table.question, f"*{table.source}*", words.headline(report),
        "## Claims of the paper", _pipes(words.claims_table(report)), f"Order of the rows: {words.agreement(report)}.",
        "## Table", _pipes(words.main_table(report)), _bullets([*words.notes(report), *words.warnings(report)]),
        *_checks(report),
        *(["## Cells that are not done", absent, _bullets(failed)] if absent else []),
        "## How to run it again", f"```\n{words.command(report)}\n```",
        _bullets([f"{name}: {value}" for name, value in words.provenance(report).items()]),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _checks(report: Report) -> list[str]:
    """How the order of the rows moves during the retraining, where it was looked at."""
    if report.checks.empty:
        return []
    against = "Order of the rows by LM loss at each check, against that at the end:"
    ranks = [] if report.ranks.empty else [against, _pipes(words.rank_table(report))]
    return ["## During the retraining", *ranks, _bullets(words.flips(report))]


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _pipes(frame: pd.DataFrame) -> str:
    escaped = frame.map(lambda cell: cell.replace("|", "\\|"))
    sides = ["left" if name in words.LEFT else "right" for name in frame]
    return escaped.to_markdown(index=False, disable_numparse=True, colalign=sides)


def latex(report: Report) -> str:
    """Booktabs tables: rows, in as many as a page needs to be wide enough, and claims."""
    name, question, source = report.table.name, report.table.question, report.table.source
    parts = enumerate(words.parts(words.main_table(report), _TEX_WIDTH), 1)
    tables = [
        *((f"tab:{name}" + f"-{k}" * (k > 1), f"{question} ({words.headline(report)})", part) for k, part in parts),
        (f"claims:{name}", f"Claims of {source}.", words.claims_table(report)),
    ]
    tex = "% \\usepackage{booktabs}\n"
    for label, caption, frame in tables:
        style = frame.style.hide(axis="index").format(escape="latex")
        tex += style.format_index(escape="latex", axis="columns").to_latex(
            column_format="".join("l" if name in words.LEFT else "r" for name in frame), hrules=True, label=label,
            caption=re.sub(r"([&%$#_{}])", r"\\\1", caption), position_float="centering",
        )  # fmt: skip
    return "".join(_MATH.get(character, character) for character in tex)


def _html(report: Report, digest: str) -> str:
    template = page.environment().get_template(_PAGE)
    return template.render(told=page.told(report), digest=digest, captions=figures.CAPTIONS, **figures.inline(report))
