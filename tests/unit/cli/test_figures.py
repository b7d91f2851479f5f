"""Figures are drawn from the store, without torch."""

import dataclasses
import resource
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from refusals import check_refusal, refuses
from safetensors.numpy import save_file

from lit_prune.cli.figures import draw, main
from lit_prune.config.profiles import load_profile
from lit_prune.experiments.loss_ablation import TABLE
from lit_prune.pipeline.expand import entries
from lit_prune.pipeline.resolve import Resolver
from lit_prune.render.files import write_files
from lit_prune.report import assemble
from lit_prune.store import Store


@pytest.fixture
def store(tmp_path):
    """A store in which the quick table is done, with losses that rise from row to row."""
    store, pins = Store(tmp_path / "store"), Resolver()
    for place, entry in enumerate(entries(TABLE, load_profile("quick"))):
        entry = dataclasses.replace(entry, cell=pins.pin(entry.cell))
        with store.claim(entry.cell, "cell") as node:
            history = {"step": [10, 20], "kd_loss": [2.0, 1.0], "loss": [2.0, 1.0], "grad_norm": [1.0, 1.0]}
            pd.DataFrame(history).to_csv(node.folder / "metrics.csv", index=False)
            node.finish({"lm_loss": 3 + place / 10, "perplexity": 20.0 + place}, seconds=1.0)
    return store


def report_of(table, store):
    pins = Resolver()
    found = [dataclasses.replace(e, cell=pins.pin(e.cell)) for e in entries(table, load_profile("quick"))]
    return assemble(table, "quick", {}, found, store)


@pytest.mark.slow
def test_the_command_draws_what_the_store_holds_and_else_the_record(store, tmp_path, capsys):
    words = ["loss_ablation", "--store", str(store.root), "--out", str(tmp_path / "figures"), "--format", "png"]
    assert main([*words, "--records", str(tmp_path / "none")]) == 2
    write_files(report_of(TABLE, store), store.root / "reports/loss_ablation/quick")
    capsys.readouterr()
    assert main([*words, "--records", str(tmp_path / "none")]) == 0
    of_store = capsys.readouterr().out.split()
    assert main(["loss_ablation", "--store", str(tmp_path / "empty"), "--out", str(tmp_path / "record")]) == 0
    of_record = capsys.readouterr().out.split()
    for paths in (of_store, of_record):
        assert {Path(path).stem for path in paths} >= {"loss_ablation-quick-final", "loss_ablation-quick-agreement"}


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["loss_ablation", "--store", str(tmp_path / "empty"), "--out", str(tmp_path / "file")]) == 2
    check_refusal(capsys.readouterr().err, "--out", tmp_path / "file")


def test_no_half_written_figure_is_left_on_a_full_disk(store, tmp_path):
    report, (soft, hard) = report_of(TABLE, store), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with refuses("--out", tmp_path / "figures"):
            draw(report, tmp_path / "figures", "svg")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "figures").iterdir())


def test_a_figure_for_each_row_and_one_of_all(store, tmp_path):
    paths = draw(report_of(TABLE, store), tmp_path / "figures", "png")
    assert [path.stem.removeprefix("loss_ablation-quick-") for path in paths[:2]] == ["final", "agreement"]
    assert len(paths) == 2 + 7
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_validations_and_layers_are_drawn_where_there_are_any_and_rows_of_one_name_keep_their_figures(tmp_path):
    rows = {
        name: {"prune.num_hidden_layers": layers, "evaluation.num_validations": 2}
        for name, layers in (("T = 4", 4), ("T (4)", 5))
    }
    table = dataclasses.replace(TABLE, name="toy", rows=rows, baseline="T = 4", paper={}, claims=(), reference_rows={})
    store, pins = Store(tmp_path / "store"), Resolver()
    for entry in entries(table, load_profile("quick")):
        entry = dataclasses.replace(entry, cell=pins.pin(entry.cell))
        with store.claim(entry.cell, "cell") as node:
            steps = pd.DataFrame({"step": [0, 10], "loss": [2.0, 1.0]})
            steps.to_csv(node.folder / "metrics.csv", index=False)
            steps.assign(lm_loss=steps["loss"], kd_loss=1.0).to_csv(node.folder / "checks.csv", index=False)
            node.finish({"lm_loss": 3.0 + entry.seed, "perplexity": 20.0}, seconds=1.0)
    with store.claim(entry.cell, "distances") as node:
        spans = np.where(np.add.outer(np.arange(6), np.arange(1, 7)) <= 6, 0.5, np.nan)
        save_file({"influence": spans, "angular_last": spans}, node.folder / "distances.safetensors")
        node.finish({})
    paths = draw(report_of(table, store), tmp_path / "figures", "svg")
    names = [path.stem.removeprefix("toy-quick-") for path in paths]
    assert names == ["final", "validation", "layers", "spans", "t-4", "t-4-2"]
    assert all(path.stat().st_size for path in paths)


def test_nothing_to_draw_is_one_line(tmp_path, capsys):
    folders = ["--store", str(tmp_path), "--records", str(tmp_path), "--out", str(tmp_path / "figures")]
    assert main(["loss_ablation", *folders]) == 2
    check_refusal(capsys.readouterr().err, "loss_ablation", "quick")
    assert main(["no_such_table", "--store", str(tmp_path)]) == 2
    check_refusal(capsys.readouterr().err, "table", "'no_such_table'")
