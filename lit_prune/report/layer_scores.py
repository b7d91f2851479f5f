"""Read the calibration scores of the teacher's layers from the store, for tables that drop layers. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lit_prune.config import Cell
from lit_prune.config.overrides import plain_of
from lit_prune.store import Store

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LayerScores:
    """Scores of the teacher's layers, a line per calibration draw; None if not measured."""

    influence: Array | None
    """1 - cosine of input and output, [draws, layers]."""
    damage: Array | None
    """LM loss without the layer minus that of the whole model, nats per token, [draws, layers]."""
    spans: Array | None
    """Angular distance of the last token between the inputs of layer l and layer l + n, mean over draws, at
    [l, n - 1], [layers, layers]; NaN for spans that end beyond the last layer."""


def read_layer_scores(cells: Iterable[Cell], store: Store) -> LayerScores | None:
    """Return the scores in the store of the layers of the teacher of `cells`, which differ only in seeds.

    None if the store has none.
    """
    cells = list(cells)
    distances, removals = _draws(cells, store, "distances"), _draws(cells, store, "removals")
    if not distances and not removals:
        return None
    return LayerScores(
        influence=np.stack([draw["influence"][:, 0] for draw in distances]) if distances else None,
        damage=np.stack([draw["loss"] - draw["whole"].item() for draw in removals]) if removals else None,
        spans=np.mean([draw["angular_last"] for draw in distances], axis=0) if distances else None,
    )


def drops_layers(baseline: Cell, cells: pd.DataFrame) -> bool:
    """Return whether the baseline or a row that changes the depth has a student with fewer layers than its teacher."""
    student, rows = plain_of(baseline.prune), cells[~cells["reference"]]
    swept = [
        value
        for name in ("prune.num_hidden_layers", "prune.drop_layers")
        if name in rows
        for value in rows[name].dropna()
    ]
    # An empty list of layers, in memory and in a record.
    return (
        student.get("num_hidden_layers") is not None
        or bool(student.get("drop_layers"))
        or any(value not in ((), "()") for value in swept)
    )


def _draws(cells: list[Cell], store: Store, stage: str) -> list[dict[str, Any]]:
    """Return the statistics of one stage, once per finished address."""
    from safetensors.numpy import load_file

    nodes = {node.key: node for node in (store.node(cell, stage) for cell in cells)}
    return [load_file(node.folder / f"{stage}.safetensors") for node in nodes.values() if node.verified is not None]
