"""Read the results of models on tasks and texts from a store, and compare models over the same documents.

No torch.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lit_prune.config import ConfigError, unknown
from lit_prune.evaluate.request import DOCUMENTS, KIND
from lit_prune.report.statistics import Paired, bits_per_byte, paired_bootstrap
from lit_prune.store import Node, Store
from lit_prune.store.address import digest

SIZES = ("parameters", "parameters_without_embeddings")

_COLUMNS = (
    "key", "question", "model", "fingerprint", "task", "subtask", "title", "metric", "shots", "limit", "window",
    "stride", "windows", "dtype", "n", "value", "stderr", "cut", "unread", *SIZES,
)  # fmt: skip
_COMPARED = ("difference", "low", "high", "p")
# Excludes corpus-level metrics such as perplexity from the paired bootstrap, which needs means over documents.
_ALIKE = 1e-6
# Above this many documents, fewer resamples keep the time of the bootstrap bounded.
_MANY = 20_000


def read(store: Store, *, subtasks: bool = False) -> pd.DataFrame:
    """Return all evaluation results of a store, a line per metric; with `subtasks`, of subtasks too.

    Columns: key, question (the same for all models), model, fingerprint, task, subtask, title, metric, shots, limit,
    window, stride, windows (of a text), dtype, n, value, stderr, cut (share of truncated prompts), unread
    (share of a text's bytes that the tokenizer loses), parameters, parameters_without_embeddings.
    """
    nodes = (Node(path.parent) for path in sorted(store.root.glob(f"{KIND}/*/result.json")))
    return pd.DataFrame(itertools.chain.from_iterable(_lines(node, subtasks) for node in nodes), columns=_COLUMNS)


def compare_models(nodes: Mapping[str, Sequence[Node]]) -> pd.DataFrame:
    """Return the results of models by label, with the columns of `read` and difference, low, high and p.

    These come from a paired bootstrap over the documents shared with the first model; NaN for the first.
    """
    lines = [line | {"model": label} for label, theirs in nodes.items() for node in theirs for line in _lines(node)]
    scores = pd.DataFrame(lines, columns=_COLUMNS)
    found = list(_differences(scores, {node.key: node for theirs in nodes.values() for node in theirs}))
    return scores.join(pd.DataFrame(found, columns=_COMPARED, index=scores.index, dtype=float))


@functools.cache
def _all_published() -> dict[str, Any]:
    import yaml

    return yaml.safe_load(Path(__file__).with_name("published_scores.yaml").read_text())


def published(name: str) -> dict[str, Any]:
    """Return a table of the papers: source, models, parameters, parameters_without_embeddings, and scores by task.

    Raises:
        ConfigError: if no table has that name.
    """
    if name not in _all_published():
        raise ConfigError(unknown("--paper-table", name, _all_published()))
    return _all_published()[name]


def _lines(node: Node, subtasks: bool = False) -> Iterator[dict[str, Any]]:
    """Yield a line per metric of a result."""
    result, about = node.result, node.config
    if result is None:
        return
    question = {name: part for name, part in about.items() if name not in ("model", "tokenizer")}
    known = {name: result.get(name) for name in ("model", "task", "title", "shots", "limit", "cut", "unread", *SIZES)}
    known |= {name: about.get(name) or result.get(name) for name in ("window", "stride", "windows", "dtype")}
    line = {"key": node.key, "question": digest(question), "fingerprint": about["model"], **known}
    parts = {"": result["metrics"], **(result.get("subtasks", {}) if subtasks else {})}
    for subtask, metrics in parts.items():
        for metric, score in metrics.items():
            stderr = np.nan if score["stderr"] is None else score["stderr"]
            yield line | score | {"subtask": subtask, "metric": metric, "stderr": stderr}


def _differences(scores: pd.DataFrame, nodes: Mapping[str, Node]) -> Iterator[dict[str, float]]:
    """Yield the difference of each line to the first model's."""
    lines = scores.to_dict("records")
    for line in lines:
        first = next(other for other in lines if _same_question(line, other))
        if first["model"] == line["model"]:
            yield {}
        else:
            found = _paired(nodes[line["key"]], nodes[first["key"]], line["metric"])
            same = found is not None and math.isclose(found.difference, line["value"] - first["value"], abs_tol=_ALIKE)
            yield {name: getattr(found, name) for name in _COMPARED} if same else {}


def _same_question(line: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(line[name] == other[name] for name in ("question", "metric"))


def _paired(node: Node, first: Node, metric: str) -> Paired | None:
    """Return the difference of two results over their documents; None without documents for the metric."""
    ours, theirs = _documents(node.folder), _documents(first.folder)
    names, statistic = (["nll", "bytes"], bits_per_byte) if metric == "bits_per_byte" else ([metric], np.mean)
    frames = [frame[frame["metric"] == name]["value"] for name in names for frame in (ours, theirs)]
    values = pd.concat(frames, axis=1, join="inner").to_numpy()
    if not len(values):
        return None
    return paired_bootstrap(
        values[:, ::2], values[:, 1::2], statistic=statistic, num_resamples=999 if len(values) > _MANY else 9999
    )


@functools.lru_cache(maxsize=64)
def _documents(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / DOCUMENTS).set_index(["task", "document"])
