"""The notebooks of analysis/ run from the first cell to the last, with a small model if they train one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from paths import ROOT


def executed(name: str, folder: Path, parameters: str | None = None) -> Any:
    """A notebook of analysis/ after it ran; `parameters` replaces the source of the cell so tagged."""
    (folder / "analysis").mkdir()
    (folder / "experiments").symlink_to(ROOT / "experiments")
    shutil.copy(ROOT / "analysis" / name, folder / "analysis")
    notebook = nbformat.read(folder / "analysis" / name, 4)
    if parameters is not None:
        (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
        cell.source = parameters
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder / "analysis")}}).execute()
    return notebook


def results(notebook: Any) -> list[str]:
    return [
        output.data["text/plain"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.output_type == "execute_result"
    ]


@pytest.mark.slow
def test_the_records_are_read_and_drawn(tmp_path):
    notebook = executed("reading_records.ipynb", tmp_path)
    summary, differences, *_ = results(notebook)
    assert "L_logits(KLD)" in summary
    assert [float(line.split()[1]) > 0 for line in differences.splitlines()[1:4]] == [True] * 3
    images = [o for cell in notebook.cells for o in cell.get("outputs", ()) if "image/png" in o.get("data", {})]
    assert len(images) == 1
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_a_model_is_pruned_distilled_loaded_and_measured(tmp_path, tiny_folder):
    given = str(tiny_folder / "tiny"), str(tiny_folder / "text.txt"), 32, 3
    parameters = f"import lit_prune as lp\n\nmodel, corpus, seq_len, max_steps = {given}"
    share, losses, *_ = results(executed("prune_and_distill.ipynb", tmp_path, parameters))
    assert 0.6 < float(share) < 0.8
    assert all(0 < float(loss) < 10 for loss in losses.strip("()").split(", "))
