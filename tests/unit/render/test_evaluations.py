"""Results of a store as a table: scores, differences over the same documents, and the papers' columns."""

import io

import finished
import pandas as pd
import pytest
from refusals import refuses
from rich.console import Console
from scored import FIRST, SECOND, answer

from lit_prune.cli.progress import ProgressBar
from lit_prune.evaluate.request import DOCUMENTS
from lit_prune.render.evaluations import all_scores, benchmark_table, notes, print_table, write_table
from lit_prune.render.paper_page import render
from lit_prune.report.claims_summary import whole_ledger
from lit_prune.report.evaluations import compare_models, published, read
from lit_prune.report.load import Answer
from lit_prune.report.statistics import paired_bootstrap
from lit_prune.store import Node, Store


@pytest.fixture
def nodes(tmp_path):
    store = Store(tmp_path)
    return {"teacher": [answer(store, "a", FIRST)], "student": [answer(store, "b", SECOND)]}


def test_a_difference_is_that_of_the_paired_bootstrap_over_the_documents(nodes):
    scores = compare_models(nodes).set_index(["model", "metric"])
    expected = paired_bootstrap(SECOND, FIRST)
    line = scores.loc[("student", "acc_norm")]
    assert line["difference"] == expected.difference == pytest.approx(-3 / 8)
    assert (line["low"], line["high"], line["p"]) == (expected.low, expected.high, expected.p)
    assert scores.loc["teacher", ["difference", "low", "high", "p"]].isna().all(axis=None)


def test_what_is_no_mean_of_its_documents_is_not_compared_by_them(tmp_path):
    store, how = Store(tmp_path), {"task": "lambada_openai", "metric": "perplexity"}
    nodes = {"a": [answer(store, "a", [-2.0, -1.0], value=4.5, **how)]}
    nodes["b"] = [answer(store, "b", [-3.0, -1.0], value=7.4, **how)]
    assert compare_models(nodes)["difference"].isna().all()


def test_answers_to_different_questions_are_not_compared(tmp_path):
    store = Store(tmp_path)
    nodes = {"teacher": [answer(store, "a", FIRST)], "student": [answer(store, "b", SECOND, shots=0)]}
    assert compare_models(nodes)["difference"].isna().all()


def test_documents_are_paired_by_their_place_not_by_their_order(tmp_path):
    store = Store(tmp_path)
    first, second = answer(store, "a", FIRST), answer(store, "b", SECOND)
    shuffled = pd.read_parquet(second.folder / DOCUMENTS).sample(frac=1, random_state=0)
    result = second.result
    shuffled.to_parquet(second.folder / DOCUMENTS)
    second.finish(result)
    line = compare_models({"x": [first], "y": [second]}).query("model == 'y' and metric == 'acc_norm'").iloc[0]
    assert line["high"] == paired_bootstrap(SECOND, FIRST).high


def test_the_layout_is_the_papers(nodes):
    table = benchmark_table(nodes)
    lines = table.layout.set_index("benchmark")
    assert list(lines.index) == ["parameters", "without embeddings", "HellaSwag (10) acc_norm"]
    assert lines.loc["parameters", "teacher"] == "2.00 M"
    assert lines.loc["without embeddings", "MINITRON 8B (paper)"] == "6.2B"
    score = lines.loc["HellaSwag (10) acc_norm"]
    assert score["teacher"] == "62.5 ± 10.0"
    assert score["student − teacher"].startswith("−37.5 [")
    assert score["MINITRON 8B (paper)"] == "80.7 (10)"
    assert table.source == "Minitron, Table 2"
    assert not any("not comparable" in note for note in notes(table))


def test_the_papers_shots_are_told_beside_others(tmp_path):
    table = benchmark_table({"a": [answer(Store(tmp_path), "a", FIRST, task="arc_challenge", shots=0)]})
    lines = table.layout.set_index("benchmark")
    # Minitron, Table 2 and section 4: ARC-Challenge with 25 shots.
    assert lines.loc["arc_challenge (0) acc_norm", "MINITRON 8B (paper)"] == "52.6 (25)"
    (note,) = (note for note in notes(table) if "not comparable" in note)
    assert "with 0 examples" in note
    assert "25" in note


def test_the_papers_columns_stay_away_where_they_have_nothing_to_say(tmp_path):
    nodes = {"a": [answer(Store(tmp_path), "a", FIRST, task="piqa")]}
    table = benchmark_table(nodes)
    assert table.source == ""
    assert not any("paper" in name for name in table.layout)
    # Of what is not the papers', all metrics are shown.
    assert list(table.layout["benchmark"][2:]) == ["piqa (10) acc_norm", "piqa (10) other"]


def test_a_model_without_an_answer_has_a_dash(nodes):
    table = benchmark_table({**nodes, "third": []})
    assert list(table.layout["third"]) == ["—", "—", "—"]
    nodes["third"] = [Node(nodes["student"][0].folder.with_name("missing"))]
    assert benchmark_table(nodes).layout.equals(table.layout)


def test_what_the_papers_print_is_whole():
    for name in ("minitron_8b", "minitron_4b", "in_practice", "pruned_8b", "pruned_4b"):
        table = published(name)
        sizes = [table[size] for size in ("parameters", "parameters_without_embeddings")]
        assert {len(line) for line in (*table["scores"].values(), *sizes)} == {len(table["models"])}
    minitron = published("minitron_8b")
    assert dict(zip(minitron["models"], minitron["scores"]["mmlu"], strict=True))["MINITRON 8B"] == 63.8
    with refuses("--paper-table", "in_practice"):
        published("table 9")


def test_all_answers_of_a_store_are_read(tmp_path, nodes):
    found = read(Store(tmp_path))
    assert sorted(found["model"].unique()) == ["a", "b"]
    assert set(found["subtask"]) == {""}
    assert found["question"].nunique() == 1
    parts = read(Store(tmp_path), subtasks=True)
    assert set(parts["subtask"]) == {"", "part"}
    assert read(Store(tmp_path / "nowhere")).empty


def test_it_is_printed_and_written_whatever_the_width(tmp_path, nodes):
    nodes["student"].append(answer(Store(tmp_path), "b", SECOND, task="arc_challenge", shots=25, cut=0.5))
    table = benchmark_table(nodes)
    for width in (60, 200):
        screen = io.StringIO()
        print_table(table, Console(file=screen, width=width))
        assert "62.5 ± 10.0" in screen.getvalue()
        assert "80.7" in screen.getvalue()
        assert max(map(len, screen.getvalue().splitlines())) <= width
    assert "lost their beginning (arc_challenge 50%)" in screen.getvalue()
    csv, markdown, tex = write_table(table, tmp_path / "out")
    assert pd.read_csv(csv)["difference"].notna().any()
    assert "| HellaSwag (10) acc_norm " in markdown.read_text()
    assert "62.5 $\\pm$ 10.0" in tex.read_text()
    assert "acc\\_norm" in tex.read_text()


def test_all_scores_of_a_store_are_a_line_a_question_and_a_column_a_model(nodes, tmp_path):
    answer(Store(tmp_path), "a", FIRST, task="piqa", shots=0)
    table = all_scores(read(Store(tmp_path))).set_index("benchmark")
    assert list(table) == ["n", "a", "b"]
    assert table.loc["HellaSwag (10) acc_norm"].tolist() == ["8", "62.5 ± 10.0", "25.0 ± 10.0"]
    assert table.loc["piqa (0) acc_norm"].tolist() == ["8", "62.5 ± 10.0", "—"]


def test_answers_that_were_asked_otherwise_are_lines_of_their_own(tmp_path):
    store, ways = Store(tmp_path), ({"dtype": "float32"}, {"dtype": "bfloat16"}, {"window": 8, "stride": 4})
    for how, share in zip(ways, (0.0, 1.0, 0.5), strict=True):
        answer(store, "a", [share] * 8, how=how)
    table = all_scores(read(store))
    table = table[table["benchmark"].str.contains("acc_norm")].set_index("benchmark")["a"].to_dict()
    assert table == {
        "HellaSwag (10) acc_norm": "0.0 ± 10.0",
        "HellaSwag (10) acc_norm, bfloat16": "100.0 ± 10.0",
        "HellaSwag (10) acc_norm, window 8, stride 4": "50.0 ± 10.0",
    }


def test_models_of_one_name_are_told_apart_by_their_weights(nodes, tmp_path):
    scores = read(Store(tmp_path)).assign(model="mine")
    assert list(all_scores(scores))[2:] == ["mine a", "mine b"]


def test_the_page_of_all_tables_has_them(nodes, tmp_path):
    answers = [Answer(finished.answer(finished.filled(tmp_path / "cells")), "store", "")]
    ledger = whole_ledger(answers, [])
    page = render(answers, ledger, [], read(Store(tmp_path)), "0", ProgressBar(0, quiet=True))
    assert "HellaSwag (10) acc_norm" in page
    assert "62.5 ± 10.0" in page
    assert 'id="benchmarks"' not in render(
        answers, ledger, [], read(Store(tmp_path / "none")), "0", ProgressBar(0, quiet=True)
    )
