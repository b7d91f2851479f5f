"""Tables of several metrics in a terminal: the paper's values beside ours, counts, rows that seeds do not change."""

from __future__ import annotations

import dataclasses
import io
import math
import re
from pathlib import Path

import pandas as pd
import pytest
from drawn import write_sequences
from rich.console import Console

from lit_prune.config import Cell, Corpus, Profile, Teacher
from lit_prune.config.table import Claim, Table
from lit_prune.pipeline.expand import entries
from lit_prune.render import figures, files, numbers, terminal, wording
from lit_prune.report import Report, assemble, judge, statistics
from lit_prune.store import Store

CELL = Cell(corpus=Corpus(fingerprint="0" * 64), teacher=Teacher(fingerprint="1" * 64))
METRICS = ("lm_loss", "lm_loss_before", "kd_loss_before", "kd_loss", "second_lm_loss", "parameters")
TABLE = Table(
    name="toy", question="Which?", source="nowhere", baseline="kld",
    rows={loss: {"distill.logit_loss": loss} for loss in ("kld", "mse", "cosine")},
    paper={
        "kld": {"lm_loss": 2.062, "kd_loss_before": 5.35, "kd_loss": 0.38, "parameters": 7.91e9},
        "mse": {"lm_loss": 2.049, "kd_loss_before": 6.33, "kd_loss": 0.37},
    },
    claims=(
        Claim("kld", "mse", "Table 1"), Claim("kld", "mse", "Table 1", metric="kd_loss_before"),
        Claim("kld", "cosine", "Table 1", metric="kd_loss"),
    ),
    metrics=METRICS, seed_fields=("seed", "calibration.seed"), reference_rows={"whole": {"distill.max_steps": 0}},
)  # fmt: skip
# Row -> metric -> values of two seeds.
FOUND = {
    "kld": ((3.10, 3.12), (5.0, 5.0), (2.4, 2.4), (0.5, 0.52), (4.1, 4.2), (1_234_567, 1_234_567)),
    "mse": ((3.20, 3.26), (5.5, 5.5), (2.9, 2.9), (0.6, 0.61), (4.3, 4.3), (1_200_000, 1_400_000)),
    "cosine": ((3.15, 3.15), (5.2, 5.2), (2.6, 2.6), (0.55, 0.58), (4.2, 4.25), (1_300_000, 1_300_000)),
    "whole": ((2.5,), (), (), (), (2.9,), (3_100_000,)),
}

# Row -> KD loss before, per token, on four sequences.
SEQUENCES = {"kld": (2.3, 2.5, 2.4, 2.4), "mse": (2.8, 3.1, 2.9, 2.8)}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Report:
    requested, store = entries(TABLE, Profile(CELL, 2)), Store(tmp_path_factory.mktemp("store"))
    for entry in requested:
        measured = zip(METRICS, FOUND[entry.row], strict=True)
        with store.claim(entry.cell, "cell") as node:
            result = {metric: values[entry.seed] for metric, values in measured if values}
            if entry.row in SEQUENCES:
                write_sequences(node.folder, SEQUENCES[entry.row], "kd_loss_before")
            node.finish(result, seconds=1.0, commit="abc")
    return assemble(TABLE, "tiny", {}, requested, store)


def shown(found: Report, width: int) -> str:
    stream = io.StringIO()
    terminal.print_report(found, Console(file=stream, width=width))
    return stream.getvalue()


def test_a_field_the_seed_sets_is_no_column(found: Report) -> None:
    assert list(found.tidy.columns[6:8]) == ["distill.logit_loss", "lm_loss"]
    assert found.num_seeds == 2


def test_the_paper_is_beside_ours_wherever_it_has_a_value(found: Report) -> None:
    frame = wording.main_table(found).set_index("row")
    assert list(frame) == [
        "LM loss", "paper LM loss", "n", "Δ baseline", "p", "LM loss before", "KD loss before",
        "paper KD loss before", "KD loss", "paper KD loss", "LM loss, 2nd text", "parameters", "paper parameters",
    ]  # fmt: skip
    assert frame.loc["kld"].to_list()[5:] == [
        "5.0000", "2.4000", "5.35", "0.5100 ± 0.0141", "0.38", "4.1500 ± 0.0707", "1.23 M", "7.91 B"
    ]  # fmt: skip
    assert frame["paper parameters"].to_list() == ["7.91 B", "—", "—", "—"]
    assert frame.loc["whole", ["LM loss", "KD loss", "parameters"]].to_list() == ["2.5000", "     —", "3.10 M"]


def test_seeds_that_change_nothing_leave_no_error_bar(found: Report) -> None:
    frame = wording.main_table(found).set_index("row")
    assert frame.loc["kld", "LM loss"] == "3.1100 ± 0.0141"
    assert frame.loc["cosine", "LM loss"] == "3.1500"
    assert list(frame.index) == ["kld", "cosine", "mse", "whole"]
    assert frame["LM loss, 2nd text"].to_list() == ["4.1500 ± 0.0707", "4.2250 ± 0.0354", "4.3000", "2.9000"]
    assert frame["parameters"].to_list() == ["1.23 M", "1.30 M", "1.30 M ± 141.42 k", "3.10 M"]
    assert found.summary.loc["cosine", "sd"] == 0
    assert math.isnan(found.summary.loc["whole", "sd"])
    assert any("seeds change nothing there" in note for note in wording.notes(found))


def test_claims_name_their_metric_and_say_where_seeds_change_nothing(found: Report) -> None:
    table = wording.claims_table(found)
    assert table["claim"].to_list() == [
        "lower LM loss (nats/token): kld < mse", "lower KD loss before (nats/token): kld < mse",
        "lower KD loss (nats/token): kld < cosine",
    ]  # fmt: skip
    assert table["verdict"].to_list() == ["undecided", "holds", "undecided"]
    same = table.loc[1]
    assert (same["difference [95 %]"].partition(" [")[0], same["p"], same["n"]) == ("−0.5000", "<.001", "4 seq.")
    # Twice -0.05 and -0.06: the 95 % t interval of one degree of freedom is 12.706 times their standard error, 0.005.
    assert table.loc[2, "difference [95 %]"] == "−0.0550 [−0.1185, +0.0085]"
    assert [note for note in wording.notes(found) if "seq." in note]


@pytest.mark.parametrize(
    ("cosine", "verdict"),
    [((3.10, 3.12), "identical"), ((3.101, 3.12105), "negligible"), ((3.101, 3.121), "undecided")],
)
def test_a_verdict_that_is_not_the_usual_is_explained(found: Report, cosine: tuple[float, float], verdict: str) -> None:
    cells = found.tidy.copy()
    cells.loc[cells["row"] == "cosine", "lm_loss"] = cosine
    table = dataclasses.replace(TABLE, claims=(Claim("kld", "cosine", "Table 1"),))
    turned = dataclasses.replace(found, table=table, tidy=cells, verdicts=judge(table, cells))
    assert wording.claims_table(turned)["verdict"].to_list() == [verdict]
    explained = {note.partition(":")[0] for note in wording.notes(turned)}
    assert ("A difference that is the same for every seed is tested over validation sequences. These cells are from "
            "before their losses by sequence were kept" in explained) == (verdict == "undecided")  # fmt: skip
    assert (verdict in explained) == (verdict != "undecided")
    assert verdict in shown(turned, 100)


def test_where_more_is_better_axis_and_claims_say_so(found: Report, tmp_path: Path) -> None:
    table = Table(**{**vars(TABLE), "higher_is_better": ("lm_loss",)})
    turned = dataclasses.replace(found, table=table, verdicts=judge(table, found.tidy))
    assert figures.final_values(found).axes[0].get_xlabel() == "LM loss (lower is better)"
    assert figures.final_values(turned).axes[0].get_xlabel() == "LM loss (higher is better)"
    assert [claim.partition(" ")[0] for claim in wording.claims_table(turned)["claim"]] == ["higher", "lower", "lower"]
    assert list(wording.main_table(turned)["row"]) == ["mse", "cosine", "kld", "whole"]
    assert "kld $>$ mse &" in next(
        path.read_text() for path in files.write_files(turned, tmp_path) if "tex" in path.name
    )


def test_noise_everywhere_needs_no_note(found: Report, tmp_path: Path) -> None:
    requested, store = entries(TABLE, Profile(CELL, 2)), Store(tmp_path)
    for entry in requested:
        with store.claim(entry.cell, "cell") as node:
            noisy = {metric: 3 + (0.1 + entry.seed) * len(entry.row) / 10 for metric in METRICS}
            node.finish(noisy | {"parameters": 1000}, seconds=1.0)
    table = Table(**{**vars(TABLE), "claims": (Claim("kld", "cosine", ""),)})
    assert wording.notes(assemble(table, "tiny", {}, requested, store)) == []
    one = [entry for entry in requested if entry.seed == 0]
    assert wording.notes(assemble(table, "tiny", {}, one, store)) == []


@pytest.mark.parametrize("width", [80, 100, 200])
def test_every_number_is_in_the_terminal_at_any_width(found: Report, width: int) -> None:
    text = shown(found, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    tables = text.split("Results")[1]
    for column in wording.main_table(found).drop(columns="row").to_numpy().ravel():
        assert column.strip() in tables
    claims = " ".join(text.split("Results")[0].split())
    for difference in wording.claims_table(found)["difference [95 %]"]:
        assert difference.partition(" [")[0] in claims
    assert text.index("3.1100") < text.index("Claims") < text.index("Results")
    assert len(re.findall(r"^kld ", tables, re.MULTILINE)) == (1 if width == 200 else 2)


def test_markdown_latex_and_page_have_every_number(found: Report, tmp_path: Path) -> None:
    _, markdown, latex, page = (path.read_text() for path in files.write_files(found, tmp_path))
    (line,) = [line for line in markdown.splitlines() if line.startswith("| cosine")]
    cosine = wording.main_table(found).set_index("row", drop=False).loc["cosine"]
    assert [cell.strip() for cell in line.strip("|").split("|")] == cosine.str.strip().to_list()
    assert re.search(r"^\| \*\*kld\*\* +\| +\*\*3.1100 ± 0.0141\*\* +\|", markdown, re.MULTILINE)
    (claim,) = [line.split("|")[1:3] for line in markdown.splitlines() if line.startswith("| lower KD loss before")]
    assert claim[1].strip() == "holds"
    assert latex.isascii()
    assert "\\textbf{kld} & \\textbf{3.1100 $\\pm$ 0.0141} & 2.062" in latex
    assert "row & LM loss & paper LM loss & n &" in latex
    assert "parameters & paper parameters \\\\" in latex
    assert latex.count("\\toprule") > 2
    assert set(re.findall(r"\\label\{(.*?)\}", latex)) >= {"tab:toy", "tab:toy-2", "claims:toy"}
    assert '<td class="spread">4.1500 ± 0.0707</td><td class="spread">1.23 M</td><td>7.91 B</td>' in page
    assert "lower KD loss before (nats/token): kld &lt; mse" in page


def test_columns_are_divided_by_their_width_and_the_paper_stays_with_ours() -> None:
    frame = pd.DataFrame({"row": ["x" * 40], "a": ["1" * 9], "paper a": ["2" * 9], "b": ["3"], "long\nname": ["4"]})
    # The row takes 24, as it can be folded; a and its paper 9 + 1 each, b 1 + 1, the last 4 + 1.
    assert [list(part) for part in wording.parts(frame, 51, 1)] == [list(frame)]
    assert [list(part) for part in wording.parts(frame, 50, 1)] == [list(frame)[:4], ["row", "long\nname"]]
    assert [list(part) for part in wording.parts(frame, 45, 1)] == [["row", "a", "paper a"], ["row", "b", "long\nname"]]
    assert [list(part) for part in wording.parts(frame, 5, 1)] == [
        ["row", "a", "paper a"], ["row", "b"], ["row", "long\nname"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("count", "text"),
    [(7.91e9, "7.91 B"), (1_234_567, "1.23 M"), (260_032, "260.03 k"), (999, "999"), (0, "0"), (math.nan, "—")],
)
def test_counts_are_read_with_their_unit(count: float, text: str) -> None:
    assert numbers.amount(count) == text


def test_flops_are_no_losses(found: Report) -> None:
    taken = found.summary.assign(train_flops=6.03e11, **{"sd train_flops": 0.0, "paper train_flops": math.nan})
    taken.loc["whole", "train_flops"] = 0.0
    table = dataclasses.replace(TABLE, metrics=(*METRICS, "train_flops"))
    column = wording.main_table(dataclasses.replace(found, table=table, summary=taken)).set_index("row")["train FLOPs"]
    assert [column["kld"], column["whole"].strip()] == ["6.03e+11", "0"]


def test_rows_of_one_value_have_no_order(found: Report) -> None:
    same = dataclasses.replace(found, agreement=statistics.agree([3.1, 3.2, 3.3], [4.2, 4.2, 4.2]))
    assert wording.agreement(same) == "none to compare, as all 3 rows have the same value in the paper, or here"
