"""The figures are drawn from what the store holds, without torch."""

import dataclasses
import subprocess
import sys

import pandas as pd
import pytest

from analysis.figures import draw, main
from lit_prune.experiments.loss_ablation import TABLE
from lit_prune.grid import entries
from lit_prune.preflight import Pins
from lit_prune.settings import load_profile
from lit_prune.store import Store


@pytest.fixture
def store(tmp_path):
    """A store in which the quick table is done, with losses that rise from row to row."""
    store, pins = Store(tmp_path / "store"), Pins()
    for place, entry in enumerate(entries(TABLE, load_profile("quick"))):
        entry = dataclasses.replace(entry, cell=pins.pin(entry.cell))
        with store.claim(entry.cell, "cell") as node:
            history = {"step": [10, 20], "logits": [2.0, 1.0], "loss": [2.0, 1.0], "grad_norm": [1.0, 1.0]}
            pd.DataFrame(history).to_csv(node.folder / "metrics.csv", index=False)
            node.finish({"lm_loss": 3 + place / 10, "perplexity": 20.0 + place}, seconds=1.0)
    return store


def test_a_figure_for_each_row_and_one_of_all(store, tmp_path):
    paths = draw(TABLE, "quick", store, tmp_path / "figures", "png")
    assert len(paths) == 1 + 6
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_nothing_to_draw_is_one_line(tmp_path, capsys):
    assert main(["loss_ablation", "--store", str(tmp_path), "--out", str(tmp_path / "figures")]) == 2
    assert "nothing is done at profile quick" in capsys.readouterr().err
    assert main(["no_such_table", "--store", str(tmp_path)]) == 2
    assert "there is no table 'no_such_table'" in capsys.readouterr().err


def test_it_imports_no_torch():
    script = "import sys, analysis.figures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
