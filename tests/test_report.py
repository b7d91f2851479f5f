"""What is made of finished cells: numbers against hand and scipy, and what a reader is shown."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from lit_prune import report
from lit_prune.config import Cell, ConfigError, Corpus, Distill, Profile, Teacher
from lit_prune.experiments.loss_ablation import TABLE
from lit_prune.grid import Claim, Entry, entries
from lit_prune.render import figures, terminal
from lit_prune.render import files as report_files
from lit_prune.render import words as report_words
from lit_prune.settings import load_profile, parse_setting
from lit_prune.store import Store

CELL = Cell(corpus=Corpus(fingerprint="0" * 64), teacher=Teacher(fingerprint="1" * 64), distill=Distill(steps=40))
MSE, RKLD, COSINE, KLD_CE = (f"L_CLM + L_logits({name})" for name in ("MSE", "RKLD", "Cosine", "KLD"))
KLD, RKLD_ALONE = "L_logits(KLD)", "L_logits(RKLD)"
LOSSES = {
    MSE: [3.10, 3.21, 3.33],
    RKLD: [2.80, 2.90, 2.99],
    COSINE: [3.00, 3.20, 3.10],
    KLD_CE: [2.95, 3.05, 3.13],
    KLD: [2.90, 3.00, 3.10],
    RKLD_ALONE: [2.95, 3.05, 3.15],
    "pruned, not retrained": [9.0],
    "teacher": [2.5],
}
UNDRAWN = {"final": "", "checks": "", "blocks": {}, "terms": []}


def asked(num_seeds: int = 3) -> list[Entry]:
    return entries(TABLE, Profile(CELL, num_seeds))


def finish(store: Store, entry: Entry, loss: float) -> None:
    with store.claim(entry.cell, "cell") as node:
        # References too, so that it is not the lack of a file that keeps them out of the histories.
        clm = {"clm": [4.0, 3.0 + entry.seed]} if entry.cell.distill.w_clm else {}
        terms = {"logits": [1.0, 0.5], "loss": [5.0, 4.0], "grad_norm": [2.0, 1.0]}
        rest = {"lr": [1e-3, 1e-5], "tokens_per_second": [9.0, 9.0]}
        history = pd.DataFrame({"step": [20, 40], **clm, **terms, **rest})
        history.to_csv(node.folder / "metrics.csv", index=False)
        node.finish({"lm_loss": loss, "perplexity": math.exp(loss)}, seconds=1.5, commit="abc")


def filled(root: Path, num_seeds: int = 3) -> Store:
    store = Store(root)
    for entry in asked(num_seeds):
        finish(store, entry, LOSSES[entry.row][entry.seed])
    return store


def answer(store: Store, num_seeds: int = 3, **changes: object) -> report.Report:
    table = dataclasses.replace(TABLE, **changes)
    return report.assemble(table, "tiny", {}, asked(num_seeds), store)


def broken(store: Store, row: str, seed: int) -> Path:
    """The emptied folder of one cell."""
    entry = next(e for e in asked() if (e.row, e.seed) == (row, seed))
    folder = store.node(entry.cell, "cell").folder
    for name in ("result.json", "metrics.csv"):
        (folder / name).unlink()
    return folder


def shown(found: report.Report, width: int) -> str:
    stream = io.StringIO()
    terminal.print_report(found, Console(file=stream, width=width))
    return stream.getvalue()


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
    """The report of a table in every state: one failed cell, one unfinished, one missing."""
    store = Store(shutil.copytree(complete.root, tmp_path_factory.mktemp("partly") / "store"))
    (broken(store, MSE, 1) / "error.json").write_text(json.dumps({"error": "Diverged: <nan> at [step]\nand then some"}))
    (broken(store, COSINE, 2) / "last.ckpt").touch()
    broken(store, RKLD_ALONE, 0)
    return answer(store)


@pytest.fixture(scope="module")
def files(whole: report.Report, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    paths = report_files.write_files(whole, tmp_path_factory.mktemp("files") / "new" / "folder")
    return {path.name: path.read_text() for path in paths}


def test_tidy_has_every_cell_in_the_order_of_the_entries(whole: report.Report) -> None:
    frame, wanted = whole.tidy, asked()
    assert list(frame["key"]) == [entry.key for entry in wanted]
    assert list(zip(frame["row"], frame["seed"], strict=True)) == [(e.row, e.seed) for e in wanted]
    assert list(frame["distill.logit_loss"]) == [e.cell.distill.logit_loss for e in wanted]
    assert list(frame.loc[frame["reference"], "row"]) == ["pruned, not retrained", "teacher"]
    assert set(frame["wall_seconds"].dropna()) == {1.5}
    assert list(frame.columns).count("seed") == 1


def test_tidy_tells_states_apart(whole: report.Report) -> None:
    frame = whole.tidy.set_index(["row", "seed"])
    odd = {(MSE, 1): "failed", (COSINE, 2): "unfinished", (RKLD_ALONE, 0): "missing"}
    assert frame.loc[frame["state"] != "done", "state"].to_dict() == odd
    assert frame.loc[(MSE, 1), "error"] == "Diverged: <nan> at [step] and then some"
    assert frame.loc[(COSINE, 2), "error"] is None
    assert frame.loc[list(odd), "lm_loss"].isna().all()
    assert frame.loc[(KLD, 2), "lm_loss"] == 3.10


def test_a_label_that_merges_two_cells_is_refused(tmp_path: Path) -> None:
    twins = [dataclasses.replace(entry, row="same") for entry in asked(1)[:2]]
    with pytest.raises(ConfigError, match="two cells the row 'same', seed 0"):
        report.tidy(TABLE, twins, Store(tmp_path))


def test_holm_by_hand() -> None:
    p = pd.Series([0.01, 0.04, math.nan, 0.03], index=list("abcd"))
    corrected = report.holm(p)
    assert corrected.drop("c").to_dict() == pytest.approx({"a": 0.03, "b": 0.06, "d": 0.06})
    assert math.isnan(corrected["c"])
    assert list(report.holm(pd.Series([0.6, 0.7]))) == [1.0, 1.0]


def test_summary_by_hand(complete: Store) -> None:
    summary = answer(complete).summary
    assert list(summary.index) == list(LOSSES)
    row = summary.loc[MSE]
    assert row["mean"] == pytest.approx((3.10 + 3.21 + 3.33) / 3)
    assert row["sd"] == pytest.approx(math.sqrt((0.11333**2 + 0.00333**2 + 0.11667**2) / 2), rel=1e-3)
    assert row["n"] == 3
    assert row["interval"] == pytest.approx(4.302653 * row["sd"] / math.sqrt(3))
    assert row["delta"] == pytest.approx((0.20 + 0.21 + 0.23) / 3)
    assert row["perplexity"] == pytest.approx(sum(map(math.exp, LOSSES[MSE])) / 3)
    assert (row["paper lm_loss"], row["paper perplexity"]) == (2.144, 9.007)
    assert summary.loc[[KLD, "teacher"], ["delta", "p"]].isna().all(axis=None)
    assert summary.loc["teacher", "mean"] == 2.5
    assert math.isnan(summary.loc[RKLD_ALONE, "paper lm_loss"])


def test_p_values_are_those_of_scipy_after_holm(complete: Store) -> None:
    p = answer(complete).summary["p"]
    # RKLD_ALONE differs from the baseline by the same 0.05 for every seed: no test, and not counted.
    raw = {row: stats.ttest_rel(LOSSES[row], LOSSES[KLD]).pvalue for row in (MSE, RKLD, COSINE, KLD_CE)}
    ordered = sorted(raw, key=raw.__getitem__)
    expected = itertools.accumulate(((4 - k) * raw[row] for k, row in enumerate(ordered)), max)
    assert p[ordered].to_list() == pytest.approx([min(1, value) for value in expected])
    assert math.isnan(p[RKLD_ALONE])


def test_differences_are_paired_over_the_seeds_both_rows_have(whole: report.Report) -> None:
    row = whole.summary.loc[MSE]
    assert row["n"] == 2
    assert row["delta"] == pytest.approx((0.20 + 0.23) / 2)
    assert row["mean"] - whole.summary.loc[KLD, "mean"] == pytest.approx(0.215)
    assert whole.summary.loc[COSINE, "delta"] == pytest.approx((0.10 + 0.20) / 2)


def test_verdicts(complete: Store) -> None:
    claims = [
        Claim(KLD, MSE, "holds"),
        Claim(KLD, RKLD, "fails"),
        Claim(KLD, COSINE, "undecided"),
        Claim(KLD, RKLD_ALONE, "the same difference for every seed"),
    ]
    verdicts = answer(complete, claims=tuple(claims)).verdicts.set_index("source")
    assert verdicts["verdict"].to_list() == ["holds", "fails", "undecided", "undecided"]
    line, test = verdicts.loc["holds"], stats.ttest_rel(LOSSES[KLD], LOSSES[MSE])
    assert line["difference"] == pytest.approx(-0.64 / 3)
    assert (line["low"], line["high"]) == pytest.approx(tuple(test.confidence_interval()))
    tested = [stats.ttest_rel(LOSSES[KLD], LOSSES[row]).pvalue for row in (MSE, RKLD, COSINE)]
    assert verdicts["p"].to_list()[:3] == pytest.approx(report.holm(pd.Series(tested)).to_list())
    assert verdicts.loc["fails", "difference"] == pytest.approx(0.31 / 3)
    same = verdicts.loc["the same difference for every seed"]
    assert same["difference"] == pytest.approx(-0.05)
    assert same[["low", "high", "p"]].isna().all()
    assert (verdicts["n"] == 3).all()


def test_a_claim_is_judged_by_its_own_metric(complete: Store) -> None:
    # Perplexity as if it were another measurement: lowest where the loss is highest, for COSINE always 1 less.
    claims = (
        Claim(KLD, MSE, ""),
        Claim(MSE, KLD, "", metric="perplexity"),
        Claim(COSINE, KLD, "", metric="perplexity"),
    )
    cells = report.tidy(TABLE, asked(), complete)
    cells["perplexity"] = 10 - cells["lm_loss"] ** 2
    cells.loc[cells["row"] == COSINE, "perplexity"] = cells.loc[cells["row"] == KLD, "perplexity"].to_numpy() - 1
    verdicts = report.judge(dataclasses.replace(TABLE, claims=claims), cells)
    assert verdicts["metric"].to_list() == ["lm_loss", "perplexity", "perplexity"]
    assert verdicts["verdict"].to_list() == ["holds", "holds", "undecided"]
    squares = [[10 - loss**2 for loss in LOSSES[row]] for row in (MSE, KLD)]
    test = stats.ttest_rel(*squares)
    assert verdicts.loc[1, "difference"] == pytest.approx((sum(squares[0]) - sum(squares[1])) / 3)
    assert (verdicts.loc[1, "low"], verdicts.loc[1, "high"]) == pytest.approx(tuple(test.confidence_interval()))
    # Holm over both tests of the table, whatever their metric.
    raw = [stats.ttest_rel(LOSSES[KLD], LOSSES[MSE]).pvalue, test.pvalue]
    first, second = sorted(raw)
    assert sorted(verdicts["p"].dropna()) == pytest.approx([2 * first, max(2 * first, second)])
    assert verdicts.loc[2, "difference"] == pytest.approx(-1)


def test_correction_can_take_a_verdict_back(complete: Store) -> None:
    alone = answer(complete, claims=(Claim(KLD, KLD_CE, ""),)).verdicts
    among = answer(complete, claims=(Claim(KLD, KLD_CE, ""), *(Claim(KLD, COSINE, ""),) * 6)).verdicts
    assert alone.loc[0, "p"] == pytest.approx(stats.ttest_rel(LOSSES[KLD], LOSSES[KLD_CE]).pvalue)
    assert among.loc[0, "p"] == pytest.approx(7 * alone.loc[0, "p"])
    assert (alone.loc[0, "verdict"], among.loc[0, "verdict"]) == ("holds", "undecided")


def test_one_seed_decides_nothing(tmp_path: Path) -> None:
    found = answer(filled(tmp_path, num_seeds=1), 1)
    assert (found.verdicts["verdict"] == "undecided").all()
    assert found.verdicts[["low", "high", "p"]].isna().all(axis=None)
    assert found.verdicts["difference"].notna().all()
    assert found.summary[["sd", "interval", "p"]].isna().all(axis=None)
    assert "n = 1" in shown(found, 100)


def test_rank_agreement_by_hand(complete: Store) -> None:
    # The paper, best first: KLD, KLD_CE, COSINE, RKLD, MSE. Here RKLD is first: 3 of the 10 pairs turn over.
    found = answer(complete).agreement
    assert found.n == 5
    assert found.tau == pytest.approx((7 - 3) / 10)
    assert found.smallest_p == pytest.approx(2 / math.factorial(5))
    assert found.p > found.smallest_p


def test_histories_are_those_of_done_cells(whole: report.Report) -> None:
    runs = whole.histories.groupby(["row", "seed"]).size()
    assert len(runs) == 3 * 6 - 3
    assert (runs == 2).all()
    assert (MSE, 1) not in runs.index
    assert not {"teacher", "pruned, not retrained"} & set(whole.histories["row"])
    assert list(whole.histories.columns[:3]) == ["row", "seed", "step"]


def test_report_says_what_it_depends_on(complete: Store) -> None:
    found = answer(complete)
    assert (found.corpus, found.teacher["fingerprint"], found.num_seeds) == ("0" * 64, "1" * 64, 3)
    assert found.teacher["model"] == "python-3.1M"
    assert found.commits == {"abc"}
    assert not found.mixed
    assert found.versions["pandas"] == pd.__version__
    assert found.cell.distill.logit_loss == "kld"


def test_mixed_commits_are_flagged(store: Store) -> None:
    before = shown(answer(store), 100)
    entry = asked()[0]
    env = store.node(entry.cell, "cell").folder / "env.json"
    env.write_text(json.dumps(json.loads(env.read_text()) | {"commit": "def"}))
    found = answer(store)
    assert found.mixed
    assert "2 versions of the code: abc, def" in shown(found, 100)
    assert "versions of the code" not in before


@pytest.mark.parametrize("width", [80, 100])
def test_printed_report(whole: report.Report, width: int) -> None:
    text = shown(whole, width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    assert "…" not in text
    flat = " ".join(text.split())
    for words in (
        TABLE.question, "3 seeds", "corpus sha256 000000000000", "python-3.1M", "3.0000 ± 0.1000", "2/3",
        "8.720", "3 of 20 cells are not done: 1 failed, 1 unfinished, 1 missing", "? undecided", "Table 15",
        f"✗ {MSE}, seed 1: Diverged: <nan> at [step] and then some", "Kendall's tau", *TABLE.caveats,
    ):  # fmt: skip
        assert words in flat
    assert [line for line in text.splitlines() if line.startswith(KLD) and "baseline" in line]


def test_an_empty_store_is_reported_too(tmp_path: Path) -> None:
    found = answer(Store(tmp_path / "none"))
    assert "20 of 20 cells are not done: 20 missing" in shown(found, 80)
    assert found.agreement.n == 0
    paths = report_files.write_files(found, tmp_path / "files")
    assert "<svg" not in paths[-1].read_text()


def test_a_table_without_claims_and_paper_is_reported_too(
    complete: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "inline", lambda found: UNDRAWN)
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
    assert re.search(r"\| L_logits\(KLD\) +\| 3.0000 ± 0.1000 +\| +3 \| +baseline", markdown)
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
    assert page.index("Claims of the paper") < page.index("<h2>Table</h2>") < page.index("<h2>Training</h2>")
    # One figure of the final loss; logits and grad_norm for six rows, clm for the four that use it.
    assert page.count("<svg") == 1 + 2 * 6 + 4
    assert not re.findall(r"#01\d{4}|#04\d{4}|#07\d{4}", page)


def test_nothing_is_drawn_or_written_again_unless_something_changed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(figures, "inline", lambda found: drawn.append("drawn") or UNDRAWN)
    folder = tmp_path / "files"
    paths = report_files.write_files(answer(store), folder)
    before = [path.stat().st_mtime_ns for path in paths]
    assert report_files.write_files(answer(store), folder) == paths
    assert [path.stat().st_mtime_ns for path in paths] == before
    assert drawn == ["drawn"]
    finish_again = store.node(asked()[0].cell, "cell").folder / "result.json"
    finish_again.write_text(json.dumps({"lm_loss": 3.0, "perplexity": 20.0}))
    report_files.write_files(answer(store), folder)
    paths[1].unlink()
    report_files.write_files(answer(store), folder)
    assert drawn == ["drawn"] * 3
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in paths)


def test_record_is_two_files_and_their_index(whole: report.Report, tmp_path: Path) -> None:
    folder = tmp_path / "loss_ablation" / "small"
    folder.mkdir(parents=True)
    (folder / "NOTES.md").write_text("by hand")
    written = report_files.write_record(whole, folder)
    assert [path.name for path in written] == ["results.csv", "report.md", "README.md"]
    assert "loss_ablation/small/report.md" in (tmp_path / "README.md").read_text()
    assert (folder / "NOTES.md").read_text() == "by hand"


def test_a_folder_that_cannot_be_written_is_one_line(whole: report.Report, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be written to .*file"):
        report_files.write_record(whole, tmp_path / "file" / "folder")


def test_the_command_reads_back_as_the_settings(complete: Store) -> None:
    settings = {
        "distill.steps": 5, "student.heads": None, "teacher.model": "./a model", "corpus.column": "12",
        "distill.mlp_input": ["last:last"], "distill.tau_squared": True, "distill.optim.lr": 1e-5,
    }  # fmt: skip
    found = report.assemble(TABLE, "tiny", settings, asked(), complete, flags=("--seeds", "3"))
    words = shlex.split(report_words.command(found))
    assert words[:5] == ["python", "-m", "lit_prune.experiments.loss_ablation", "--profile", "tiny"]
    assert words[5:-2:2] == ["--set"] * len(settings)
    assert dict(map(parse_setting, words[6:-2:2])) == settings
    assert words[-2:] == ["--seeds", "3"]


def test_the_record_of_the_repository_is_what_its_cells_give(tmp_path: Path) -> None:
    record = Path(__file__).parents[1] / "experiments/loss_ablation/quick"
    recorded, store = pd.read_csv(record / "results.csv"), Store(tmp_path)
    found = []
    for entry, line in zip(entries(TABLE, load_profile("quick")), recorded.to_dict("records"), strict=True):
        corpus = dataclasses.replace(entry.cell.corpus, fingerprint=line["corpus"])
        teacher = dataclasses.replace(entry.cell.teacher, fingerprint=line["teacher"])
        found.append(dataclasses.replace(entry, cell=dataclasses.replace(entry.cell, corpus=corpus, teacher=teacher)))
        folder = store.node(found[-1].cell, "cell").folder
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps({name: line[name] for name in TABLE.metrics}))
        (folder / "env.json").write_text(json.dumps({"commit": line["commit"], "seconds": line["wall_seconds"]}))
    csv, markdown, _ = report_files.write_record(
        report.assemble(TABLE, "quick", {}, found, store), tmp_path / "loss_ablation" / "quick"
    )
    assert csv.read_bytes() == (record / "results.csv").read_bytes()
    # The rest of the page names versions and machine, which the table of cells does not hold.
    before, after = (path.read_text().partition("- versions:")[0] for path in (record / "report.md", markdown))
    assert after == before


def test_status_and_diff(whole: report.Report, store: Store) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=100)
    terminal.print_status(whole.tidy, console)
    status = stream.getvalue()
    assert all(key in status for key in whole.tidy["key"])
    assert "20 cells: 17 done" in status
    first, second = (store.node(entry.cell, "cell") for entry in asked()[:2])
    terminal.print_diff(first, second, console)
    lines = [line.split() for line in stream.getvalue()[len(status) :].splitlines()]
    assert ["seed", "0", "1"] in lines
    assert ["result.lm_loss", "3.1", "3.21"] in lines
    assert not [line for line in lines if line and line[0] == "distill.steps"]


def test_curves_of_seeds_logged_at_different_steps() -> None:
    history = pd.DataFrame({"step": [10, 20, 30, 10, 30], "seed": [0, 0, 0, 1, 1], "clm": [3.0, 2.0, 1.0, 5.0, 1.0]})
    assert figures.curve_of(history, "clm").to_dict("list") == {
        "step": [10, 20, 30], "mean": [4, 2.5, 1], "min": [3, 2, 1], "max": [5, 3, 1]
    }  # fmt: skip
    long = pd.DataFrame({"step": range(1000), "seed": 0, "clm": range(1000)})
    thin = figures.curve_of(long, "clm")
    assert len(thin) <= 150
    assert (thin["min"].iloc[0], thin["max"].iloc[-1]) == (0, 999)


def test_importing_them_imports_no_torch() -> None:
    code = (
        "import sys, lit_prune.render.files, lit_prune.render.terminal;"
        "assert not {'pandas', 'matplotlib', 'jinja2'} & set(sys.modules);"
        "import lit_prune.report; assert not {'torch', 'lightning', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
