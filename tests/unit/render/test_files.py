"""A table as readers see it: in the terminal, in files, as a record."""

from __future__ import annotations

import io
import re
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest
from finished import KLD, MSE, answer, filled, partly, requested, shown
from refusals import refuses
from rich.console import Console

from lit_prune.config.overrides import parse_setting
from lit_prune.experiments.loss_ablation import TABLE
from lit_prune.render import catalog, figures, terminal
from lit_prune.render import files as report_files
from lit_prune.report import report
from lit_prune.report.command import command
from lit_prune.store import Store


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with every cell done, only to be read: filling it asks git for a commit 40 times."""
    return filled(tmp_path_factory.mktemp("complete"))


@pytest.fixture
def store(complete: Store, tmp_path: Path) -> Store:
    """The same, to be changed."""
    return Store(shutil.copytree(complete.root, tmp_path / "store"))


@pytest.fixture(scope="module")
def whole(complete: Store, tmp_path_factory: pytest.TempPathFactory) -> report.Report:
    return partly(complete, tmp_path_factory.mktemp("partly") / "store")


@pytest.fixture(scope="module")
def files(whole: report.Report, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    paths = report_files.write_files(whole, tmp_path_factory.mktemp("files") / "new" / "folder")
    return {path.name: path.read_text() for path in paths}


@pytest.mark.parametrize("width", [80, 100])
def test_printed_report(whole: report.Report, width: int) -> None:
    text = shown(whole, width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    assert "…" not in text
    flat = " ".join(text.split())
    for words in (
        TABLE.question, "3 seeds", "corpus sha256 000000000000", "python-3.1M", "3.0000 ± 0.1000", "2/3",
        "8.720", "3 of 23 cells are not done: 1 failed, 1 unfinished, 1 missing", "? undecided", "Table 15",
        f"✗ {MSE}, seed 1: Diverged: <nan> at [step] and then some", "Kendall's tau", *TABLE.caveats,
    ):  # fmt: skip
        assert words in flat
    assert [line for line in text.splitlines() if line.startswith(KLD) and "baseline" in line]


def test_an_empty_store_is_reported_too(tmp_path: Path) -> None:
    found = answer(Store(tmp_path / "none"))
    assert "23 of 23 cells are not done: 23 missing" in shown(found, 80)
    assert found.agreement.n == 0
    paths = report_files.write_files(found, tmp_path / "files")
    assert "<svg" not in paths[-1].read_text()


def test_a_table_without_claims_and_paper_is_reported_too(
    complete: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "inline", lambda found: [])
    found = answer(complete, claims=(), paper={})
    assert "paper" not in shown(found, 100).split("Claims")[0].split("LM loss")[1]
    assert len(report_files.write_files(found, tmp_path / "files")) == 4


def test_csv_is_the_tidy_frame(whole: report.Report, files: dict[str, str]) -> None:
    read = pd.read_csv(io.StringIO(files["results.csv"]))
    assert list(read.columns) == list(whole.tidy.columns)
    assert list(read["key"].astype(str)) == list(whole.tidy["key"])
    assert read["lm_loss"].equals(whole.tidy["lm_loss"].reset_index(drop=True))


def test_markdown_and_latex_have_both_tables(files: dict[str, str]) -> None:
    markdown, latex = files["report.md"], files["report.tex"]
    assert re.search(r"\| L_logits\(KLD\) +\| +3.0000 ± 0.1000 +\| +3 \| +baseline", markdown)
    assert re.search(r"L_logits\(KLD\) < L_CLM \+ L_logits\(KLD\) +\| \w+", markdown)
    assert f"- {MSE}, seed 1: Diverged" in markdown
    assert latex.count("\\toprule") == latex.count("\\bottomrule") == 2
    assert "L\\_logits(KLD) & 3.0000 $\\pm$ 0.1000 & 3 & baseline" in latex
    assert latex.isascii()


def test_page_is_self_contained(files: dict[str, str]) -> None:
    page = files["report.html"]
    assert "http" not in page
    assert "<script" not in page
    assert "@import" not in page
    assert "<link" not in page
    assert not re.findall(r'(?:src|href)="(?!#)', page)
    assert len(page) < 3_000_000
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', page)) <= set(ids)


def test_page_says_everything(files: dict[str, str]) -> None:
    page = files["report.html"]
    for words in (
        TABLE.question, "Diverged: &lt;nan&gt; at [step]", "1 failed, 1 unfinished, 1 missing", "0" * 64,
        "1" * 64, "python -m lit_prune.experiments.loss_ablation --profile tiny", "logit_loss: kld", "abc",
    ):  # fmt: skip
        assert words in page
    parts = ['class="finding"', '<table class="claims"', '<table class="results"', "<h2>Figures</h2>", "<details>"]
    assert sorted(parts, key=page.index) == parts
    assert page.count('class="best"') == page.count('class="baseline"') == 1
    # Final loss and the paper's beside ours; logits and grad_norm for seven rows, clm for the five that use it.
    assert page.count("<svg") == 2 + 2 * 7 + 5
    assert not re.findall(r"#01\d{4}|#04\d{4}|#07\d{4}", page)


def test_nothing_is_drawn_or_written_again_unless_something_changed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(catalog, "inline", lambda found: drawn.append("drawn") or [])
    folder = tmp_path / "files"
    paths = report_files.write_files(answer(store), folder)
    before = [path.stat().st_mtime_ns for path in paths]
    assert report_files.write_files(answer(store), folder) == paths
    assert [path.stat().st_mtime_ns for path in paths] == before
    assert drawn == ["drawn"]
    store.node(requested()[0].cell, "cell").finish({"lm_loss": 3.0, "perplexity": 20.0})
    report_files.write_files(answer(store), folder)
    paths[1].unlink()
    report_files.write_files(answer(store), folder)
    assert drawn == ["drawn"] * 3
    record = {"curves.csv", "checks.csv", "record.json", "report.md"}
    assert {path.name for path in folder.iterdir()} == {path.name for path in paths} | record


def test_record_is_its_files_and_their_index(whole: report.Report, tmp_path: Path) -> None:
    folder = tmp_path / "loss_ablation" / "small"
    folder.mkdir(parents=True)
    (folder / "NOTES.md").write_text("by hand")
    written = report_files.write_record(whole, folder)
    names = {"results.csv", "curves.csv", "checks.csv", "record.json", "report.md", "README.md"}
    assert {path.name for path in written} == names
    assert "loss_ablation/small/report.md" in (tmp_path / "README.md").read_text()
    assert (folder / "NOTES.md").read_text() == "by hand"


def test_a_folder_that_cannot_be_written_is_one_line(whole: report.Report, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with refuses("", "file"):
        report_files.write_record(whole, tmp_path / "file" / "folder")


def test_the_command_reads_back_as_the_settings(complete: Store) -> None:
    settings = {
        "distill.max_steps": 5, "prune.num_attention_heads": None, "teacher.model": "./a model",
        "corpus.text_column": "12",
        "distill.match_mlp_input": ["last:last"], "distill.scale_by_temperature_squared": True,
        "distill.optimizer.lr": 1e-5,
    }  # fmt: skip
    found = report.assemble(TABLE, "tiny", settings, requested(), complete, flags=("--seeds", "3"))
    words = shlex.split(command(found))
    assert words[:5] == ["python", "-m", "lit_prune.experiments.loss_ablation", "--profile", "tiny"]
    assert words[5:-2:2] == ["--set"] * len(settings)
    assert dict(map(parse_setting, words[6:-2:2])) == settings
    assert words[-2:] == ["--seeds", "3"]


def test_status_and_diff(whole: report.Report, store: Store) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=100)
    terminal.print_status(whole.tidy, console)
    status = stream.getvalue()
    assert all(key in status for key in whole.tidy["key"])
    assert "23 cells: 20 done" in status
    first, second = (store.node(entry.cell, "cell") for entry in requested()[:2])
    terminal.print_diff(first, second, console)
    lines = [line.split() for line in stream.getvalue()[len(status) :].splitlines()]
    assert ["seed", "0", "1"] in lines
    assert ["result.lm_loss", "3.1", "3.21"] in lines
    assert not [line for line in lines if line and line[0] == "distill.max_steps"]


def test_curves_of_seeds_logged_at_different_steps() -> None:
    history = pd.DataFrame(
        {"step": [10, 20, 30, 10, 30], "seed": [0, 0, 0, 1, 1], "ce_loss": [3.0, 2.0, 1.0, 5.0, 1.0]}
    )
    assert figures.curve_of(history, "ce_loss").to_dict("list") == {
        "step": [10, 20, 30], "mean": [4, 2.5, 1], "min": [3, 2, 1], "max": [5, 3, 1]
    }  # fmt: skip
    long = pd.DataFrame({"step": range(1000), "seed": 0, "ce_loss": range(1000)})
    thin = figures.curve_of(long, "ce_loss")
    assert len(thin) <= 150
    assert (thin["min"].iloc[0], thin["max"].iloc[-1]) == (0, 999)
