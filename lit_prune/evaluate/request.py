"""What is asked of `lit-prune evaluate`: a model, a task or text, and the address of the answer. No torch."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lit_prune.evaluate.benchmark_tasks import Question
from lit_prune.evaluate.model_ref import FLAG, ModelRef
from lit_prune.evaluate.text_task import DEFAULT_WINDOW, Text
from lit_prune.models import loading
from lit_prune.store import Node, Store
from lit_prune.store.address import digest
from lit_prune.store.integrity import read_json

KIND = "benchmark"
"""Folder of evaluation results in the store."""
DOCUMENTS = "documents.parquet"
"""File of the values of each document, beside result.json: task, document, metric, value."""
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class EvaluationRequest:
    """A task or text to evaluate a model on, in a dtype."""

    subject: ModelRef
    question: Question | Text
    dtype: Dtype = "float32"

    @property
    def about(self) -> dict[str, Any]:
        """The fields that the address hashes."""
        about = self.question.about | self.subject.about | {"dtype": self.dtype}
        # Names a default window only below the model's positions, so that older addresses still hold.
        capped = isinstance(self.question, Text) and self.question.window is None and self.window < self.positions
        return about | {"window": self.window} if capped else about

    @property
    def positions(self) -> int:
        """Positions of the model; `sys.maxsize` if unlimited."""
        return _positions(self.subject.model, self.subject.about["model"]) or sys.maxsize

    @property
    def window(self) -> int:
        """Tokens of a text per forward pass."""
        assert isinstance(self.question, Text)
        return self.question.window or min(DEFAULT_WINDOW, self.positions)

    def node(self, store: Store) -> Node:
        """Return the node of the result, which may not exist yet."""
        return Node(store.root / KIND / digest(self.about))


@functools.cache
def _positions(model: str, fingerprint: str) -> int | None:
    """Return the positions of a model from its config.json, read without transformers; None: unlimited."""
    folder = loading.locate(model, fingerprint, weights=False, field=FLAG)
    config = dict(folder.pending.config) if folder.pending else read_json(Path(folder) / "config.json") or {}
    config = {**config, **(config.get("text_config") or {})}
    return config.get("max_position_embeddings") or config.get("n_positions")
