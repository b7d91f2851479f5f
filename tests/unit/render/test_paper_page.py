"""The page of all tables: every claim and table, missing cells, and nothing fetched."""

from __future__ import annotations

import dataclasses
import html
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from finished import KLD, KLD_CE, answer, filled, partly, requested

from lit_prune.cli.report import main
from lit_prune.registry import tables
from lit_prune.render.catalog import inline
from lit_prune.render.details import cost
from lit_prune.render.exports import write
from lit_prune.render.notes import as_html
from lit_prune.render.paper_page import anchor
from lit_prune.report import Report, assemble
from lit_prune.report.claims_summary import PAPERS, standing, whole_ledger
from lit_prune.report.load import Answer
from lit_prune.store import Store

NOTES = """# Notes on loss_ablation

## tiny
- **Holds** where [the paper](http://example.org) is <b>right</b>.

| a | b |
|---|---|
| 1 | 2 |

![figure](http://example.org/a.png)

## laptop
Of another scale.

## Chance
Of all scales.
"""
# What a browser loads without being asked.
FETCHED = re.compile(
    r'<(?:script|link|iframe|object|embed|img|source|video|audio)\b|@import|url\((?!#)|(?:src|srcset|xlink:href)="(?!#)'
)


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return filled(tmp_path_factory.mktemp("complete"))


@pytest.fixture(scope="module")
def answers(complete: Store, tmp_path_factory: pytest.TempPathFactory) -> list[Answer]:
    """One table at three scales: whole, with cells in every state and from two commits, and with one seed."""
    whole = dataclasses.replace(answer(complete), commits=frozenset({"abc", "def"}))
    alone = assemble(whole.table, "alone", {"distill.max_steps": 40}, requested(1), complete, flags=("--seeds", "1"))
    broken = dataclasses.replace(partly(complete, tmp_path_factory.mktemp("partly") / "store"), profile="partly")
    return [
        Answer(whole, "store", NOTES),
        Answer(broken, "record", "", ("the store has 3 of its 23 cells",)),
        Answer(alone, "store", ""),
    ]


@pytest.fixture(scope="module")
def folder(answers: list[Answer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("paper")
    write(answers, Store(out / "store"), out)
    return out


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text()


def section(page: str, name: str) -> str:
    """The part of a page that is about one table at one profile, as text."""
    found = re.search(rf'<section class="answer" id="{name}">(.*?)</section>', page, re.DOTALL)
    assert found, name
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", found[1])).split())


def test_nothing_is_fetched_and_every_link_leads_somewhere(page: str) -> None:
    assert not FETCHED.findall(page)
    assert len(page.encode()) < 3_000_000
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    inside = re.findall(r'(?:url\(#|href="#)([^")]+)', page)
    assert set(inside) <= set(ids)
    assert re.findall(r'\bhref="(?!#)([^"]*)', page) == ["http://example.org", "http://example.org/a.png"]


def test_the_ledger_has_every_claim_of_every_table(page: str, folder: Path, answers: list[Answer]) -> None:
    ledger = pd.read_csv(folder / "ledger.csv", keep_default_na=False)
    claims = {answers[0].report.table.stated(claim) for claim in answers[0].report.table.claims}
    for profile in ("tiny", "partly", "alone"):
        assert set(ledger.loc[ledger["profile"] == profile, "claim"]) == claims
    assert set(ledger["table"]) >= {name for name in tables() if name not in ("search_ablation",)}
    assert set(ledger.loc[ledger["table"] != "loss_ablation", "verdict"]) == {"not run"}
    assert set(ledger["paper"]) == set(PAPERS)
    for profile in ("tiny", "partly"):
        one = page[page.index(f'<section class="answer" id="loss_ablation-{profile}">') :].partition("</section>")[0]
        assert len(re.findall(r'<tr><th scope="row"><div><span class="badge', one)) == len(claims)
    for source in set(ledger.loc[ledger["verdict"] == "not run", "source"]):
        assert source in html.unescape(page)
    holds = (ledger["profile"] == "tiny") & (ledger["verdict"] == "holds")
    measured = (ledger["profile"] == "tiny") & (ledger["verdict"] != "not run")
    assert f"<strong>{holds.sum()} of {measured.sum()} measured claims hold (" in page
    others = len(ledger.drop_duplicates(["paper", "table", "claim"])) - measured.sum()
    assert f"{others} of {others + measured.sum()} claims were not run." in page
    assert "Wanda ·" not in page
    assert " 0 " not in re.search(r'<h1>.*?<div class="standing">', page, re.DOTALL)[0]
    assert page.index("<nav") < page.index('id="top"') < page.index('id="tables"') < page.index('class="answer"')


def test_the_effect_of_a_claim_is_also_in_units_of_its_spread(answers: list[Answer]) -> None:
    ledger = whole_ledger(answers[:1], [])
    (line,) = ledger[ledger["claim"] == f"{KLD} < {KLD_CE}"].to_dict("records")
    # The differences of three seeds are -0.05, -0.05 and -0.03: mean -0.0433, standard deviation 0.011547.
    assert line["standardized"] == pytest.approx(-0.043333 / 0.011547, rel=1e-3)


def test_what_stands_is_counted_over_all_claims_and_plain_profiles(answers: list[Answer]) -> None:
    ledger = whole_ledger(answers, [])
    counts = standing(ledger)
    papers = ("Minitron", "In Practice")
    assert list(counts.index) == [(profile, paper) for profile in ("tiny", "partly") for paper in papers]
    unmeasured = ledger.assign(verdict="not run")
    assert standing(unmeasured).empty
    by_profile = counts.groupby("profile", sort=False).sum()
    assert (by_profile.sum(axis="columns") == len(answers[0].report.table.claims)).all()
    less = ledger.drop(ledger.index[(ledger["profile"] == "partly")][:2])
    assert list(standing(less)["not run"].groupby("profile", sort=False).sum()) == [0, 2]


def test_every_section_says_what_makes_it_worth_less(page: str) -> None:
    assert "2 versions of the code: abc, def" in section(page, "loss_ablation-tiny")
    partly = section(page, "loss_ablation-partly")
    for words in (
        "3 of 23 cells are not done: 1 failed, 1 unfinished, 1 missing", "Diverged: <nan> at [step]", "2/3",
        "from the record in experiments/", "the store has 3 of its 23 cells",
    ):  # fmt: skip
        assert words in partly
    alone = section(page, anchor("loss_ablation", "alone", "--set distill.max_steps=40 --seeds 1"))
    assert "n = 1: one seed has no error bar" in alone
    assert "--set distill.max_steps=40 --seeds 1" in alone


def test_a_section_has_all_that_is_known_of_a_table(page: str, answers: list[Answer]) -> None:
    text, table = section(page, "loss_ablation-tiny"), answers[0].report.table
    for words in (
        table.question, table.source, "3.0000 ± 0.1000", "± 0.2484", "paper LM loss", "Kendall's tau", "seed 2",
        "python -m lit_prune.experiments.loss_ablation --profile tiny", "0" * 64, "Notes", "wall time", "1.5 s",
        "all 23 cells", "34.5 s", "Training loss",
    ):  # fmt: skip
        assert words in text


def test_two_figures_are_open_and_the_others_and_all_details_are_a_click_away(page: str, answers: list[Answer]) -> None:
    drawn = {figure["name"]: figure for figure in inline(answers[0].report)}
    one = page[page.index('<section class="answer" id="loss_ablation-tiny">') :].partition("</section>")[0]
    opened, more = one.split('<div class="more">')
    assert opened.count("<svg") == sum(figure["leading"] for figure in drawn.values()) == 2
    assert len(re.findall(r"</?details", opened)) == 0
    assert more.count("<details>") == len(re.findall(r"</details>\s*(?=<details>|</div>)", more)) >= 5
    for figure in drawn.values():
        assert f'aria-label="{html.escape(figure["caption"])}"' in one
        assert page.count(f": {html.escape(figure['key'])}</li>") == 1


def test_tables_that_were_not_run_are_named_with_their_command(page: str) -> None:
    for name in tables():
        assert f'id="{name}"' in page or name == "loss_ablation"
        assert f"lit_prune.experiments.{name}" in page


def test_cost_is_the_mean_of_a_row_and_the_sum_of_all(answers: list[Answer]) -> None:
    report = answers[0].report
    seconds = {"wall_seconds": report.tidy["seed"] * 60.0 + 30, "peak_memory": (report.tidy["seed"] + 1) * 2.0**20}
    found = cost(dataclasses.replace(report, tidy=report.tidy.assign(**seconds)))
    assert found is not None
    lines = found.set_index("row")[["wall time", "peak memory"]]
    assert lines.loc[KLD].to_list() == ["1.5 min", "2 MiB"]
    # Six rows of 30, 90 and 150 s, and two references of 30 s.
    assert lines.loc["all 23 cells"].to_list() == ["32.5 min", "3 MiB"]
    known_of_some = report.tidy.assign(train_flops=report.tidy["lm_loss"].where(report.tidy["row"] != KLD))
    of_some = cost(dataclasses.replace(report, tidy=known_of_some))
    assert of_some is not None
    assert of_some.set_index("row").loc[[KLD, "all 23 cells"], "train FLOPs"].to_list() == ["—", "—"]
    unknown = report.tidy.drop(columns=["tokens", "train_flops", "peak_memory"], errors="ignore")
    assert cost(dataclasses.replace(report, tidy=unknown.assign(wall_seconds=float("nan")))) is None


def test_no_two_questions_have_one_name() -> None:
    assert anchor("loss_ablation", "quick") == "loss_ablation-quick"
    assert anchor("loss_ablation", "") == "loss_ablation"
    near = {anchor("loss_ablation", "quick", f"--set prune.drop_layers={blocks}") for blocks in ("[1]", "[-1]", "1")}
    assert len(near) == 3
    assert len(anchor("loss_ablation", "quick", "--also distill.temperature=2 " * 20)) < 100


def test_notes_are_those_of_the_profile_and_of_all() -> None:
    shown = as_html(NOTES, "tiny")
    assert "<h4>tiny</h4>" in shown
    assert "<h4>Chance</h4>" in shown
    assert "Of another scale." not in shown
    assert "Notes on" not in shown
    assert "&lt;b&gt;right" in shown
    assert "<td>1</td>" in shown
    assert "<img" not in shown
    assert as_html("", "tiny") == ""


def test_exports_are_the_same_cells_and_each_table(folder: Path, answers: list[Answer]) -> None:
    csv, parquet = pd.read_csv(folder / "results.csv"), pd.read_parquet(folder / "results.parquet")
    assert len(csv) == len(parquet) == sum(len(found.report.tidy) for found in answers)
    assert list(csv.columns) == list(parquet.columns)
    assert csv["lm_loss"].to_list() == pytest.approx(parquet["lm_loss"].to_list(), nan_ok=True)
    names = sorted(path.name for path in (folder / "tables").iterdir())
    assert names[-2:] == ["loss_ablation-tiny.md", "loss_ablation-tiny.tex"]
    assert len(names) == 2 * len(answers)
    assert "\\toprule" in (folder / "tables/loss_ablation-tiny.tex").read_text()


def test_nothing_is_drawn_again_unless_something_changed(answers: list[Answer], folder: Path) -> None:
    before = (folder / "report.html").stat().st_mtime_ns
    paths = write(answers, Store(folder / "store"), folder)
    assert paths[0].stat().st_mtime_ns == before
    assert all(path.exists() for path in paths)
    other = [dataclasses.replace(answers[0], notes=NOTES + "more"), *answers[1:]]
    write(other, Store(folder / "store"), folder)
    assert "more</p>" in paths[0].read_text()


def test_nothing_to_report_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "records").mkdir()
    assert main(["--store", str(tmp_path / "none"), "--records", str(tmp_path / "records")]) == 2
    logged = capsys.readouterr().err
    assert logged.startswith("error: nothing is done in ")
    assert logged.count("\n") == 1


@pytest.fixture(scope="module")
def every_table(complete: Store) -> list[Answer]:
    """An answer of each table there is: the cells of one, under the name of another."""
    report = dataclasses.replace(answer(complete), histories=pd.DataFrame(columns=["row", "seed", "step"]))
    return [Answer(renamed(report, name), "store", "") for name in tables()]


def renamed(report: Report, name: str) -> Report:
    return dataclasses.replace(report, table=dataclasses.replace(report.table, name=name))


@pytest.mark.slow
def test_a_browser_shows_every_table(every_table: list[Answer], tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no chromium on the PATH to look at the page with")
    page, *_ = write(every_table, Store(tmp_path / "store"), tmp_path / "paper")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    browse = [chromium, "--headless", "--no-sandbox", "--disable-gpu", profile]
    dom = subprocess.run([*browse, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120).stdout
    for name in tables():
        assert f'<section class="answer" id="{name}-tiny">' in dom
    seen = [look(browse, page, tmp_path / f"{theme}.png", theme) for theme in (1, 0)]
    light, dark = ([pixel / 255 for pixel in (image.mean(), image.std())] for image in seen)
    assert light[0] > 0.8 > 0.3 > dark[0]
    assert min(light[1], dark[1]) > 0.03  # nothing is blank


def look(browse: list[str], page: Path, shot: Path, theme: int):
    """The first screen of a page as a phone shows it, grey; theme 1 is light, 0 is dark."""
    import numpy as np
    from PIL import Image

    words = [f"--screenshot={shot}", "--window-size=500,900", f"--blink-settings=preferredColorScheme={theme}"]
    subprocess.run([*browse, *words, page.as_uri()], capture_output=True, timeout=120, check=True)
    return np.asarray(Image.open(shot).convert("L"), dtype=float)
