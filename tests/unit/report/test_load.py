"""Store and records together, as a notebook reads them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from finished import MSE, answer, broken, filled, requested
from refusals import refuses

from lit_prune.cli.figures import main as draw
from lit_prune.config.profiles import RECORDS
from lit_prune.experiments.loss_ablation import TABLE
from lit_prune.registry import table_of, tables
from lit_prune.render import files
from lit_prune.report import assemble
from lit_prune.report.load import frame, frame_of, gather, ledger
from lit_prune.store import Store


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store and records: one question was answered, and another one, with a setting of its own, was asked."""
    folder = tmp_path_factory.mktemp("answered")
    store = filled(folder / "store")
    files.write_request(answer(store), store.root / "reports/loss_ablation/tiny")
    other = assemble(TABLE, "tiny", {"distill.max_steps": 40}, requested(), store)
    files.write_request(other, store.root / "reports/loss_ablation/tiny-1")
    record = folder / "records/loss_ablation/tiny"
    files.write_record(answer(store), record)
    (record.parent / "NOTES.md").write_text("# What was seen\n")
    return folder


@pytest.fixture
def store(answered: Path, tmp_path: Path) -> Store:
    """A copy of the store, which a test may change."""
    return Store(shutil.copytree(answered / "store", tmp_path / "store"))


@pytest.fixture
def records(answered: Path) -> Path:
    """The record of the first question, with notes."""
    return answered / "records"


def test_of_one_question_the_answer_with_more_cells_is_taken_and_the_store_where_they_are_equal(
    store: Store, records: Path
) -> None:
    plain, other = gather(store, records)
    assert (plain.origin, plain.plain, other.origin, other.plain) == ("store", True, "store", False)
    assert plain.notes == "# What was seen\n"
    assert plain.notices == ()
    (broken(store, MSE, 1) / "error.json").write_text('{"error": "Diverged: no"}')
    plain, other = gather(store, records)
    assert (plain.origin, plain.num_done, other.num_done) == ("record", 23, 22)
    assert plain.notices == (
        "the store has 22 of its 23 cells",
        f"failed in the store: {MSE}, seed 1: Diverged: no",
    )


def test_profiles_choose(store: Store, records: Path) -> None:
    assert len(gather(store, records, ["tiny"])) == 2
    assert gather(store, records, ["quick"]) == []


def test_frame_has_every_cell_and_ledger_every_claim(store: Store, records: Path) -> None:
    answers = gather(store, records)
    cells = frame_of(answers)
    assert len(cells) == 2 * 23
    assert set(cells["settings"]) == {"", "--set distill.max_steps=40"}
    assert cells.loc[cells["row"] == MSE, "lm_loss"].to_list() == [3.10, 3.21, 3.33] * 2
    claims = ledger(answers)
    assert len(claims) == 2 * len(TABLE.claims)
    assert set(claims.columns) >= {
        "table",
        "profile",
        "claim",
        "source",
        "verdict",
        "difference",
        "low",
        "high",
        "p",
        "n",
    }


def test_nothing_at_all_is_an_empty_frame(tmp_path: Path) -> None:
    assert frame(tmp_path / "store", tmp_path / "records").empty
    assert ledger([]).empty


def test_a_table_that_is_no_more_is_left_out_and_said(store: Store, records: Path) -> None:
    shutil.copytree(store.root / "reports/loss_ablation", store.root / "reports/gone_ablation")
    with pytest.warns(UserWarning, match="'gone_ablation'"):
        assert len(gather(store, records)) == 2


def test_what_is_left_out_is_one_line_of_the_command(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (store.root / "reports/loss_ablation/tiny/record.json").write_text("{")
    words = ["loss_ablation", "--profile", "tiny", "--out", str(tmp_path / "figures")]
    assert draw([*words, "--store", str(store.root), "--records", str(tmp_path / "none")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["warning", "error"]


def test_every_record_of_the_repository_is_read_and_is_whole(tmp_path: Path) -> None:
    records = gather(Store(tmp_path), RECORDS)
    assert {found.report.table.name for found in records} == set(tables())
    for found in records:
        assert (found.report.tidy["state"] == "done").all(), found.question
        assert not found.report.histories.empty or (found.report.tidy["tokens"] == 0).all(), found.question
        assert found.notes
        assert found.report.corpus


def test_a_table_has_a_name() -> None:
    assert table_of("loss_ablation") is TABLE
    with refuses("table", "'los_ablation'", "'loss_ablation'"):
        table_of("los_ablation")
