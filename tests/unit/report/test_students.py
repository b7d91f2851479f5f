"""Folders and sizes of the students of a table."""

from __future__ import annotations

import io
from pathlib import Path

from finished import KLD, RKLD, answer, filled, requested
from rich.console import Console

from lit_prune.render.terminal import print_students
from lit_prune.report.students import students


def test_students_are_listed_best_row_first_with_folder_and_size(tmp_path: Path) -> None:
    store = filled(tmp_path)
    assert list(students(answer(store), store)) == []
    for entry in requested():
        if entry.row in (KLD, RKLD):
            folder = store.node(entry.cell, "cell").folder / "model"
            folder.mkdir()
            (folder / "model.safetensors").write_bytes(b"0" * 1500)
    found = list(students(answer(store), store))
    assert [(one.row, one.seed) for one in found] == [(RKLD, 0), (RKLD, 1), (RKLD, 2), (KLD, 0), (KLD, 1), (KLD, 2)]
    assert {one.num_bytes for one in found} == {1500}
    stream = io.StringIO()
    print_students(found, Console(file=stream, width=80))
    text = stream.getvalue()
    assert [str(one.folder) in text for one in found] == [True] * 3 + [False] * 3
    assert "1.5 kB" in text
    assert "3 more" in text
