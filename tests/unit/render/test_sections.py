"""Rows under headings: only those of the baseline's section are compared with it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from finished import COSINE, KLD, KLD_CE, LOSSES, MSE, RKLD, answer, filled
from rich.console import Console

from lit_prune.experiments.loss_ablation import TABLE
from lit_prune.render import files, terminal, wording
from lit_prune.report import record
from lit_prune.report.report import Report

FIRST, SECOND = "with a letter", "others"
SECTIONS = {row: FIRST if row in (KLD, MSE, KLD_CE) else SECOND for row in TABLE.rows}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return answer(filled(tmp_path_factory.mktemp("store")), sections=SECTIONS)


def test_rows_are_sorted_inside_their_section_below_its_heading(report: Report) -> None:
    lines = list(wording.main_table(report)["row"])
    assert [line for line in lines if line not in LOSSES] == [FIRST, SECOND, "Reference models"]
    first, second, third = (lines.index(heading) for heading in (FIRST, SECOND, "Reference models"))
    assert lines[first + 1 : second] == [KLD, KLD_CE, MSE]
    assert set(lines[second + 1 : third]) == set(TABLE.rows) - {KLD, KLD_CE, MSE}
    assert set(lines[third + 1 :]) == {"pruned, not retrained", "teacher"}
    assert [kind == {"heading"} for kind in wording.kinds(report)] == [line not in LOSSES for line in lines]
    assert len(wording.intervals(report)) == len(lines)


def test_rows_of_other_sections_have_no_difference_and_are_not_the_answer(report: Report) -> None:
    summary = report.summary
    assert set(summary.index[summary["compared"]]) == {KLD, KLD_CE, MSE}
    assert summary.loc[[RKLD, COSINE], ["delta", "p"]].isna().all(axis=None)
    assert summary.loc[KLD_CE, "delta"] == pytest.approx(0.043, abs=1e-3)
    assert report.best is not None
    assert report.best.row == KLD  # the loss of RKLD is lower


def test_every_format_has_the_headings(report: Report, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=120)
    terminal.print_report(report, console)
    files.write_files(report, tmp_path)
    texts = [(tmp_path / f"report.{kind}").read_text() for kind in ("md", "tex", "html")]
    for text in (console.file.getvalue(), *texts):  # type: ignore[attr-defined]
        assert FIRST in text
        assert SECOND in text
    assert '<tr class="heading">' in texts[-1]


def test_a_record_keeps_the_sections_of_a_table_that_a_profile_makes(report: Report, tmp_path: Path) -> None:
    import dataclasses

    made = dataclasses.replace(TABLE, build_for_profile=lambda table, profile, store: table)
    files.write_texts(tmp_path, {tmp_path / name: text for name, text in record.texts(report).items()})
    assert record.read(tmp_path, made).table.sections == SECTIONS
    assert not record.read(tmp_path, TABLE).table.sections
