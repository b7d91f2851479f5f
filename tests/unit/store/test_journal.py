"""A journal keeps what was measured, bit for bit, and asks for nothing twice."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lit_prune.store.journal import Journal

NUMBERS = [1 / 3, -1e-300, float("inf"), 0.1 + 0.2]


def refused() -> float:
    raise AssertionError("measured again")


def test_a_resumed_run_gets_the_same_numbers_and_measures_the_others(tmp_path: Path) -> None:
    path = tmp_path / "stage" / "measured.json"
    journal = Journal(path, 1e9)
    assert [journal(lambda number=number: number) for number in NUMBERS] == NUMBERS
    assert not path.exists()  # not yet time to write
    with pytest.raises(ZeroDivisionError), journal:
        journal(lambda: 1 / 0)
    again = Journal(path, 1e9)
    assert [again(refused) for _ in NUMBERS] == NUMBERS
    assert again(lambda: 5.0) == 5.0


def test_it_is_written_while_it_grows(tmp_path: Path) -> None:
    path, written = tmp_path / "measured.json", list[int]()
    journal = Journal(path, 0, lambda: written.append(len(json.loads(path.read_text()))))
    for number in (*NUMBERS, float("nan")):
        journal(lambda number=number: number)
    assert written == [1, 2, 3, 4, 5]
    again = Journal(path, 0)
    assert [again(refused) for _ in NUMBERS] == NUMBERS
    assert math.isnan(again(refused))
    assert len(written) == 5


@pytest.mark.parametrize("damaged", ["", "[1.0, ", "{}x", "3", '["a"]'])
def test_a_damaged_file_is_measured_anew(damaged: str, tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    path.write_text(damaged)
    assert Journal(path, 0)(lambda: 2.0) == 2.0
    assert json.loads(path.read_text()) == [2.0]
