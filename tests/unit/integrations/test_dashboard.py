"""Dashboards of a table: their content, and what real wandb clients send to a stand-in for the server."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys

import loopback_wandb
import pandas as pd
import pytest
from offline_runs import history, parts, run
from paths import ROOT

from lit_prune.cli import table as cli
from lit_prune.cli.dashboard import main
from lit_prune.config.overrides import override
from lit_prune.config.profiles import load_profile
from lit_prune.experiments.loss_ablation import TABLE
from lit_prune.integrations.wandb import specs as specs
from lit_prune.integrations.wandb.server import _address, bring_up
from lit_prune.pipeline.expand import Entry, entries
from lit_prune.pipeline.resolve import Resolver
from lit_prune.store import Store

KEY = "local-" + "0" * 40
TABLES = ("loss_ablation", "axes_ablation", "hidden_ablation", "phase_ablation", "strategy_ablation")


def board_of(name, store):
    profile, pins = load_profile("quick"), Resolver()
    table = importlib.import_module(f"lit_prune.experiments.{name}").TABLE.at(profile, store)
    found = [dataclasses.replace(e, cell=pins.pin(e.cell)) for e in entries(table, profile) if not e.reference]
    return specs.Board(table, "quick", tuple(found), "lit-prune", "somebody")


def command(store, *words, home, **environment):
    """The real command, with a home in which there is no key, unless the environment has one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    env = kept | {"HOME": str(home), "PYTHONPATH": str(ROOT), "WANDB_ERROR_REPORTING": "false"} | environment
    words = [sys.executable, "-m", "analysis.dashboard", *words, "--store", str(store)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, env=env, cwd=ROOT)


@pytest.fixture
def done(tmp_path):
    """A store in which the quick table is done, with losses that rise from row to row."""
    store = Store(tmp_path / "store")
    for place, entry in enumerate(board_of("loss_ablation", store.root).cells):
        with store.claim(entry.cell, "cell") as node:
            node.finish({"lm_loss": 3 + place / 10, "perplexity": 20.0 + place}, seconds=1.0)
    return store.root


@pytest.fixture
def server(monkeypatch):
    with loopback_wandb.Server("other") as server:
        for name, value in {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}.items():
            monkeypatch.setenv(name, value)
        yield server
        assert server.unknown == []


@pytest.mark.parametrize("name", TABLES)
def test_runs_are_the_tables_cells_and_grouped_by_what_makes_a_row(name, tmp_path):
    board = board_of(name, tmp_path)
    spec = json.loads(specs.view_text(specs.workspace_of(board)))["spec"]["section"]
    (runs,) = spec["runSets"]
    assert [key["name"] for key in runs["grouping"]] == [
        "row.value" if path == "row" else f"cell.value.{path}" for path in board.axes
    ]
    assert not set(board.axes) & set(board.table.seed_fields)
    points = {}
    for entry in board.cells:
        leaves = {"row": entry.row} | specs._leaves(entry.cell)
        points.setdefault(entry.row, set()).add(tuple(leaves.get(path) for path in board.axes))
        assert entry.key in json.dumps(runs["filters"])
    assert [len(of_row) for of_row in points.values()] == [1] * board.num_rows
    assert len(set.union(*points.values())) == board.num_rows


@pytest.mark.parametrize("name", TABLES)
def test_specs_come_back_from_their_files_as_they_went_and_are_the_same_when_made_again(name, tmp_path):
    board = board_of(name, tmp_path)
    for make, text_of, read in (
        (specs.workspace_of, specs.view_text, specs.view_of),
        (lambda board: specs.report_of(board, "| a | b |\n|---|---|"), specs.page_text, specs.page_of),
    ):
        text = text_of(make(board))
        assert text_of(read(text)) == text == text_of(make(board))


def test_the_workspace_of_the_loss_table(tmp_path):
    board = board_of("loss_ablation", tmp_path)
    workspace = specs.view_of(specs.view_text(specs.workspace_of(board)))
    axes = ["cell.distill.ce_weight", "cell.distill.logit_loss", "cell.distill.kd_weight"]
    assert [group.name for group in workspace.runset_settings.groupby] == axes
    (first,) = (e.key for e in board.cells if e.row == TABLE.baseline and e.seed == 0)
    assert workspace.runset_settings.baseline_run == first
    assert workspace.runset_settings.pinned_runs == [first]
    assert all(section.pinned and section.is_open for section in workspace.sections)
    sections = {section.name: section.panels for section in workspace.sections}
    assert list(sections) == ["Final", "Losses by step", "Losses by tokens", "Cells"]
    for name, axis in (("Losses by step", "trainer/global_step"), ("Losses by tokens", "tokens")):
        assert {panel.x.name for panel in sections[name]} == {axis}
        assert {"loss", "ce_loss", "kd_loss"} <= {panel.y[0].name for panel in sections[name]}
        for panel in sections[name]:
            assert (panel.groupby.name, panel.groupby_aggfunc, panel.groupby_rangefunc) == ("row", "mean", "stderr")
    assert [bars.metrics[0].name for bars in sections["Final"]] == ["lm_loss", "perplexity"]
    columns = [column.metric.name for column in sections["Cells"][0].columns]
    assert columns == [*axes, "lm_loss"]
    assert type(sections["Cells"][1]).__name__ == "RunComparer"


def test_checks_on_the_way_are_drawn_and_a_table_without_retraining_has_no_curves(tmp_path):
    checked = dict(specs._panels(board_of("axes_ablation", tmp_path)))
    assert {"validation/lm_loss", "validation/kd_loss"} <= {panel.y[0] for panel in checked["Losses by tokens"]}
    board = board_of("depth_ablation", tmp_path)
    cut = dataclasses.replace(board, cells=tuple(e for e in board.cells if not e.cell.distill.max_steps))
    assert [name for name, _ in specs._panels(cut)] == ["Final", "Cells"]


def test_files_are_written_without_a_key_with_the_papers_table_and_ours(done, capsys):
    assert main(["loss_ablation", "--store", str(done)]) == 0
    folder = done / "reports/loss_ablation/quick/dashboard"
    *written, following = capsys.readouterr().out.splitlines()
    assert written == [f"written: {folder / name}" for name in ("workspace.json", "report.json")]
    assert "sync" in following
    assert "--publish" in following
    report = specs.page_of((folder / "report.json").read_text())
    (answer,) = (block.text for block in report.blocks if type(block).__name__ == "MarkdownBlock")
    assert "| L_logits(KLD)" in answer
    assert "## Claims of the paper" in answer


def test_what_is_recorded_stands_in_for_an_empty_store(tmp_path):
    assert main(["loss_ablation", "--store", str(tmp_path), "--records", str(ROOT / "experiments")]) == 0
    report = specs.page_of((tmp_path / "reports/loss_ablation/quick/dashboard/report.json").read_text())
    recorded = (ROOT / "experiments/loss_ablation/quick/report.md").read_text()
    assert recorded in [getattr(block, "text", "") for block in report.blocks]


def test_what_is_set_and_chosen_is_the_question_of_the_tables_own_command(tmp_path, capsys):
    arguments = [
        "--set",
        "distill.max_steps=50",
        "--add-row",
        "logit_loss=jsd",
        "--seeds",
        "2",
        "--store",
        str(tmp_path),
    ]
    assert cli.main(TABLE, ["report", *arguments]) == 0
    capsys.readouterr()
    assert main(["loss_ablation", *arguments]) == 0
    *_, following = capsys.readouterr().out.splitlines()
    assert "sync --store" in following
    assert "--set distill.max_steps=50 --seeds 2 --add-row logit_loss=jsd;" in following
    (folder,) = (tmp_path / "reports/loss_ablation").iterdir()
    workspace = json.loads((folder / "dashboard/workspace.json").read_text())
    cells = pd.read_csv(folder / "results.csv")
    filters = json.dumps(workspace["spec"]["section"]["runSets"][0]["filters"])
    assert all(key in filters for key in cells.loc[~cells["reference"], "key"])
    assert workspace["displayName"].startswith("loss_ablation, quick --set distill.max_steps 50 --seeds 2")
    report = specs.page_of((folder / "dashboard/report.json").read_text())
    assert (folder / "report.md").read_text() in [getattr(block, "text", "") for block in report.blocks]


def test_a_title_is_what_the_server_takes(tmp_path):
    board = dataclasses.replace(board_of("loss_ablation", tmp_path), changes=("--set", "teacher.model=" + "é☃" * 99))
    titles = specs.workspace_of(board).name, specs.report_of(board, "").title
    assert titles[0] == titles[1]
    assert len(titles[0]) == 128


def test_bad_requests_are_one_line(tmp_path, capsys):
    for words, expected in (
        (["no_such_table"], "table: "), (["loss_ablation", "sync", "--publish"], "--publish"),
        (["loss_ablation", "--set", "distill.step=5"], "distill.step"), (["loss_ablation", "--seeds", "0"], "--seeds"),
    ):  # fmt: skip
        assert main([*words, "--store", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert expected in error
        assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("words", [["sync"], ["--publish"]])
def test_without_a_key_a_server_is_not_asked_and_nothing_is_written(tmp_path, words):
    result = command(tmp_path / "store", "loss_ablation", *words, home=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    (error,) = result.stderr.splitlines()[1:]  # after the line that the command has begun
    assert error.startswith("error: there is no W&B key")
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_publishing_again_changes_what_is_there_and_makes_anew_what_was_deleted(done, server, capsys):
    def publish():
        assert main(["loss_ablation", "--publish", "--store", str(done)]) == 0
        return capsys.readouterr().out

    output = publish()
    assert "published: workspace http" in output
    assert "published: report http" in output
    assert server.projects == ["other", "lit-prune"]
    first = dict(server.views)
    (view,) = (v for v in first.values() if v["type"] == "project-view")
    spec = json.loads(view["spec"])["section"]
    assert [key["name"] for key in spec["runSets"][0]["grouping"]] == [
        "cell.value.distill.ce_weight", "cell.value.distill.logit_loss", "cell.value.distill.kd_weight",
    ]  # fmt: skip
    sections = [section["name"] for section in spec["panelBankConfig"]["sections"]]
    assert sections == ["Final", "Losses by step", "Losses by tokens", "Cells"]
    assert '"xAxis": "trainer/global_step"' in json.dumps(spec)
    (page,) = (v for v in first.values() if v["type"] == "runs")
    assert "| L_logits(KLD)" in json.loads(page["spec"])["blocks"][1]["content"]
    assert (page["entityName"], page["projectName"]) == (loopback_wandb.ENTITY, "lit-prune")

    assert publish() == output
    assert {i: v["spec"] for i, v in server.views.items()} == {i: v["spec"] for i, v in first.items()}
    del server.views[next(i for i, v in first.items() if v["type"] == "runs")]
    publish()
    assert sorted(v["type"] for v in server.views.values()) == ["project-view", "runs"]


@pytest.mark.parametrize("suffix", ["", "-1", "-12"])
def test_parts_that_began_in_the_same_second_are_of_one_run(suffix, tmp_path):
    assert _address(tmp_path / f"offline-run-20261129_183300-8b0fe865ae1b{suffix}") == "8b0fe865ae1b"


@pytest.mark.slow
def test_runs_made_offline_are_sent_once_and_a_resumed_one_is_one_history(tiny_cell, server, tmp_path, monkeypatch):
    store = tmp_path / "store"
    monkeypatch.setenv("WANDB_DATA_DIR", str(store / "wandb/data"))
    cells = [Entry("kld", seed, override(tiny_cell, {"seed": seed}), {"seed": seed}) for seed in range(3)]
    run(store, cells[:1], stop_at=2)
    run(store, cells)
    addresses = {entry.key for entry in cells[:2]}
    brought = bring_up(addresses, Store(store), "elsewhere", "")
    left = " (1 of other tables, profiles or settings stay)"
    assert str(brought) == "3 sent" + left
    assert set(server.runs) == addresses
    sent = server.runs[cells[0].key]
    assert (sent["groupName"], sent["jobType"], sent["project"]) == ("toy", "cell", "elsewhere")
    assert json.loads(sent["config"])["cell"]["value"]["distill"]["logit_loss"] == "kld"
    steps = [row["trainer/global_step"] for row in server.history(cells[0].key)]
    assert steps == [1, 2, 3, 4]
    kept = pd.read_csv(store / "cell" / cells[0].key / "metrics.csv")
    assert [row["loss"] for row in server.history(cells[0].key)] == pytest.approx(list(kept["loss"]), rel=1e-12)
    server.operations.clear()
    assert str(bring_up(addresses, Store(store), "elsewhere", "")) == "3 sent before" + left
    assert server.operations == []
    assert len(history(store)) == 3 * 4
    with Store(store).claim(cells[2].cell, "cell"):
        assert str(bring_up({cells[2].key}, Store(store), "elsewhere", "")) == "1 still running"
    (run_file,) = next(part for part in parts(store) if cells[2].key in part.name).glob("*.wandb")
    run_file.write_bytes(run_file.read_bytes()[:7])  # what a kill leaves of a run that has only begun
    assert str(bring_up({cells[2].key}, Store(store), "elsewhere", "")) == "1 empty"
    assert server.operations == []


@pytest.mark.slow
def test_parts_that_a_kill_left_empty_do_not_keep_the_others_from_being_sent(server, tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    store = Store(tmp_path)
    with wandb.init(
        mode="offline", dir=store.mirror, id="aaa111", settings=wandb.Settings(x_disable_stats=True, silent=True)
    ) as run:  # fmt: skip
        run.log({"trainer/global_step": 1, "loss": 2.0})
    (whole,) = store.mirror.glob("wandb/offline-run-*")
    content = next(whole.glob("*.wandb")).read_bytes()
    # Before and after the whole part; the last one is no file of W&B's.
    torn = {"2000": content[:7], "2001": b"", "2999": content[:40], "2998": b"x" * 99}
    for place, (name, left) in enumerate(torn.items()):
        part = whole.with_name(f"offline-run-{name}0101_000000-{'aaa111' if place % 2 else 'bbb222'}")
        part.mkdir()
        (part / f"run-{part.name[-6:]}.wandb").write_bytes(left)
    whole.with_name("offline-run-20020101_000000-aaa111").mkdir()
    assert str(bring_up({"aaa111", "bbb222"}, store, "elsewhere", "")) == "1 sent, 4 empty, 1 unreadable"
    assert [row["loss"] for row in server.history("aaa111")] == [2.0]
