"""Values by seed: a line per row, best first, a column per seed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from finished import COSINE, KLD, MSE, RKLD, RKLD_ALONE, answer, filled, partly

from lit_prune.render.details import by_seed
from lit_prune.report import Report
from lit_prune.store import Store


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return filled(tmp_path_factory.mktemp("complete"))


@pytest.fixture(scope="module")
def whole(complete: Store) -> Report:
    return answer(complete)


def test_every_row_has_its_value_of_each_seed_in_the_order_of_the_main_table(whole: Report) -> None:
    found = by_seed(whole)
    assert list(found.columns) == ["LM loss (nats/token)", "seed 0", "seed 1", "seed 2"]
    assert found["LM loss (nats/token)"].to_list() == whole.ranked.index.to_list()
    lines = found.set_index("LM loss (nats/token)")
    assert lines.index[0] == RKLD
    assert lines.loc[KLD].to_list() == ["2.9000", "3.0000", "3.1000"]
    assert lines.loc[COSINE].to_list() == ["3.0000", "3.2000", "3.1000"]


def test_a_cell_that_is_not_done_and_a_seed_that_was_not_asked_are_dashes(complete: Store, tmp_path: Path) -> None:
    lines = by_seed(partly(complete, tmp_path / "store")).set_index("LM loss (nats/token)")
    assert lines.loc[MSE].to_list() == ["3.1000", "—", "3.3300"]
    assert lines.loc[RKLD_ALONE].to_list() == ["—", "3.0500", "3.1500"]
    assert lines.loc["teacher"].to_list() == ["2.5000", "—", "—"]


def test_counts_are_shown_as_counts(whole: Report) -> None:
    table = dataclasses.replace(whole.table, metrics=("parameters", *whole.table.metrics))
    counted = dataclasses.replace(whole, table=table, tidy=whole.tidy.assign(parameters=1_230_000.0))
    assert by_seed(counted).set_index("parameters").loc[KLD].to_list() == ["1.23 M"] * 3
