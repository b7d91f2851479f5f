"""A record reproduces the report without the store, and exists before the first cell is computed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn import answered, toy
from finished import COSINE, MSE, answer, broken, filled, finish, partly, requested
from refusals import check_refusal

from lit_prune.cli.table import main
from lit_prune.config import Cell, ConfigError
from lit_prune.config.table import Claim
from lit_prune.experiments.loss_ablation import TABLE
from lit_prune.pipeline.runner import Runner
from lit_prune.render import files, wording
from lit_prune.report import Report, assemble, record, reread
from lit_prune.report.command import command, literal
from lit_prune.report.layer_scores import LayerScores
from lit_prune.store import Store


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return filled(tmp_path_factory.mktemp("complete"))


def written(found: Report, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in record.texts(found).items():
        (folder / name).write_text(text)
    return folder


def test_what_is_read_is_what_was_written(complete: Store, tmp_path: Path) -> None:
    settings = {"distill.max_steps": 40, "distill.match_mlp_input": ["last:last"]}
    found = assemble(TABLE, "tiny", settings, requested(), complete, flags=("--seeds", "3"))
    again = record.read(written(found, tmp_path), TABLE)
    assert (again.cell, again.settings, again.flags) == (found.cell, settings, ("--seeds", "3"))
    assert again.agreement == found.agreement
    for name in ("summary", "verdicts", "ranks", "flips"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(found, name))
    pd.testing.assert_frame_equal(
        again.histories, found.histories.drop(columns=["lr", "tokens_per_second"]), check_dtype=False
    )
    assert command(again) == command(found)
    assert wording.provenance(again) == wording.provenance(found)


def test_losses_by_sequence_are_kept_where_seeds_change_nothing(tmp_path: Path) -> None:
    rows = {name: {"prune.num_hidden_layers": place} for place, name in enumerate("abc", 3)}
    table = toy(rows, claims=(Claim("a", "b", "Table 1"),))
    losses = {"a": [3.0, 3.2], "b": [2.0, 2.3], "c": [4.0, 4.1]}
    measured = {"a": [{"lm_loss": 3.1}] * 2, "b": [{"lm_loss": 2.15}] * 2, "c": [{"lm_loss": 4.05}, {"lm_loss": 4.06}]}
    found = answered(tmp_path / "store", table, measured, sequences=losses)
    assert found.sequences.groupby("row")["loss"].apply(list).to_dict() == {"a": [30.0, 32.0], "b": [20.0, 23.0]}
    folder = written(found, tmp_path / "record")
    again = record.read(folder, table)
    pd.testing.assert_frame_equal(again.sequences, found.sequences)
    pd.testing.assert_frame_equal(again.verdicts, found.verdicts)
    assert (found.verdicts.loc[0, "verdict"], found.verdicts.loc[0, "over"]) == ("fails", "sequences")
    (folder / record.SEQUENCES).unlink()
    assert record.read(folder, table).verdicts["verdict"].to_list() == ["undecided"]


def test_the_files_of_a_record_are_the_same_when_it_is_read_and_written_again(complete: Store, tmp_path: Path) -> None:
    once = written(partly(complete, tmp_path / "store"), tmp_path / "once")
    twice = written(record.read(once, TABLE), tmp_path / "twice")
    for path in once.iterdir():
        assert path.read_text() == (twice / path.name).read_text(), path.name


def test_a_long_history_is_averaged_over_windows(complete: Store, tmp_path: Path) -> None:
    steps = np.arange(1, 121)
    long = pd.DataFrame({"row": MSE, "seed": 0, "step": steps, "loss": steps * 2.0, "lr": 1.0})
    found = dataclasses.replace(answer(complete), histories=long)
    curve = record.read(written(found, tmp_path), TABLE).histories
    assert len(curve) == 40
    assert curve.iloc[0].to_dict() == {"row": MSE, "seed": 0, "step": 2.0, "loss": 4.0}
    assert curve["loss"].mean() == pytest.approx(long["loss"].mean())


def test_blocks_keep_their_holes(complete: Store, tmp_path: Path) -> None:
    spans = np.array([[0.25, 0.5], [0.125, np.nan]])
    found = dataclasses.replace(
        answer(complete), layer_scores=LayerScores(influence=spans[:1], damage=None, spans=spans)
    )
    blocks = record.read(written(found, tmp_path), TABLE).layer_scores
    assert blocks is not None
    assert blocks.damage is None
    np.testing.assert_array_equal(blocks.spans, spans)


def test_reread_sees_what_became_of_the_cells(complete: Store, tmp_path: Path) -> None:
    before = partly(complete, tmp_path / "store")
    store = Store(tmp_path / "store")
    again = record.read(written(before, tmp_path / "record"), TABLE)
    assert sorted(again.tidy["state"].unique()) == ["done", "failed", "missing", "unfinished"]
    finish(store, next(e for e in requested() if (e.row, e.seed) == (MSE, 1)), 3.21)
    broken(store, COSINE, 0)
    found = reread(again, store)
    states = found.tidy.set_index(["row", "seed"])["state"]
    assert (states[MSE, 1], states[COSINE, 0]) == ("done", "missing")
    assert found.summary.loc[MSE, "mean"] == pytest.approx((3.10 + 3.21 + 3.33) / 3)
    pd.testing.assert_frame_equal(found.tidy, answer(store).tidy)


@pytest.mark.parametrize("damage", ["cut", "gone", "field", "list", "layer_scores", "curves", "results"])
def test_a_record_that_is_not_whole_is_one_line(complete: Store, tmp_path: Path, damage: str) -> None:
    folder = written(answer(complete), tmp_path)
    path = folder / record.RECORD
    if damage == "cut":
        path.write_text(path.read_text()[:100])
    elif damage == "gone":
        (folder / "curves.csv").unlink()
    elif damage == "list":
        path.write_text("[]")
    elif damage == "layer_scores":
        plain = json.loads(path.read_text())
        del plain["layer_scores"]
        path.write_text(json.dumps(plain))
    elif damage in ("curves", "results"):
        (folder / f"{damage}.csv").write_text("a,b\n1,2\n")
    else:
        plain = json.loads(path.read_text())
        plain["cell"]["distill"]["no_such_field"] = 1
        path.write_text(json.dumps(plain))
    with pytest.raises(ConfigError) as raised:
        record.read(folder, TABLE)
    assert "\n" not in str(raised.value)
    assert str(folder) in str(raised.value)


def test_report_files_are_a_record(complete: Store, tmp_path: Path) -> None:
    files.write_files(answer(complete), tmp_path)
    pd.testing.assert_frame_equal(record.read(tmp_path, TABLE).verdicts, answer(complete).verdicts)


def test_a_run_that_is_cut_off_has_left_what_was_asked(
    tmp_path: Path, tiny_cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(self: Runner, entries: object) -> int:
        raise ConfigError("cut off")

    monkeypatch.setattr(Runner, "run", cut_off)
    settings = {
        "corpus.path": tiny_cell.corpus.path, "corpus.holdout_fraction": 0.2, "teacher.model": tiny_cell.teacher.model,
        "calibration.num_sequences": 4, "calibration.seq_len": 32, "evaluation.num_sequences": 4,
        "evaluation.seq_len": 32,
        "distill.max_steps": 4, "distill.seq_len": 32, "distill.batch_size": 2, "prune.num_attention_heads": None,
    }  # fmt: skip
    words = [word for path, value in settings.items() for word in ("--set", f"{path}={literal(value)}")]
    flags = ("--seeds", "1")
    assert main(TABLE, [*words, *flags, "--store", str(tmp_path / "store"), "--wandb", "disabled"]) == 2
    (folder,) = (tmp_path / "store/reports/loss_ablation").iterdir()
    found = record.read(folder, TABLE)
    assert set(found.tidy["state"]) == {"missing"}
    assert (dict(found.settings), found.flags) == (settings, flags)


def test_profiles_of_one_name_have_each_their_report_and_no_record(
    tmp_path: Path, tiny_cell: Cell, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = f"corpus: {{source: {tiny_cell.corpus.path}}}\nteacher: {{model: {tiny_cell.teacher.model}}}\n"
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        profile = tmp_path / place / "quick.yaml"
        profile.write_text(f"seeds: 1\n{corpus}")
        words = ["report", "--profile", str(profile), "--store", str(tmp_path / "store")]
        assert main(TABLE, words) == 0
        assert main(TABLE, [*words, "--record"]) == 2
        check_refusal(capsys.readouterr().err, "--record", profile)
    assert len(list((tmp_path / "store/reports/loss_ablation").glob("quick-*/report.html"))) == 2
