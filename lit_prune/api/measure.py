"""Measure a model on texts and tasks. Imports torch only to measure something."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lit_prune.progress import ProgressOf, Silent
from lit_prune.store import DEFAULT_ROOT, Store


def evaluate(
    model: str | Path,
    *,
    corpus: str | Path | None = None,
    tasks: str | Sequence[str] = (),
    num_fewshot: int | None = None,
    task_data_dir: str | Path | None = None,
    limit: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = 16,
    dtype: Literal["float32", "bfloat16"] = "float32",
    store: str | Path = DEFAULT_ROOT,
    progress: ProgressOf = Silent,
) -> dict[str, dict[str, Any]]:
    """Measure a model on a text and on lm-eval tasks; results are kept in the store.

    Args:
        model: a teacher by name, a folder, a .gguf file, a hub id or an address of the store such as "cell/3f2a".
        corpus: text for perplexity and bits per byte.
        tasks: names of lm-eval tasks, as a list or with commas between them, or "paper" for those of the papers.
        limit: the first documents of each task and text only.
        window: tokens scored in one forward pass, `stride` tokens apart.

    Returns:
        name of the text or task -> metric -> {"value", "stderr", "n"}.

    Raises:
        ConfigError: if the request is invalid, before anything is measured.
        RuntimeError: if a measurement fails.
    """
    from lit_prune.config import ConfigError
    from lit_prune.evaluate.benchmark_tasks import questions
    from lit_prune.evaluate.model_ref import subject
    from lit_prune.evaluate.request import EvaluationRequest
    from lit_prune.evaluate.runner import EvaluationRunner
    from lit_prune.evaluate.text_task import text

    if not isinstance(model, (str, Path)):
        raise ConfigError(f"model: must be a name or a folder, got {type(model).__name__}; save it first")
    if isinstance(tasks, str):
        tasks = [name.strip() for name in tasks.split(",") if name.strip()]
    if corpus is None and not tasks:
        raise ConfigError("corpus or tasks: must be given")
    if dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"dtype: must be float32 or bfloat16, got {dtype!r}")
    if batch_size < 1:
        raise ConfigError(f"batch_size: must be at least 1, got {batch_size}")
    opened = Store(store)
    local = None if task_data_dir is None else Path(task_data_dir)
    requested: list[Any] = [*questions(tasks, shots=num_fewshot, limit=limit, local=local)] if tasks else []
    if corpus is not None:
        requested.append(text(str(corpus), None, window, stride, limit))
    reference = subject(str(model), opened)
    requests = [EvaluationRequest(reference, question, dtype) for question in requested]
    if missing := [one for one in requests if one.node(opened).result is None]:
        EvaluationRunner(opened, batch_size=batch_size, progress=progress).run(missing)
    found = {}
    for one in requests:
        node = one.node(opened)
        if node.result is None:
            raise RuntimeError(f"{model}: {node.error or 'not measured'}; see {node.folder}")
        found[node.result["title"]] = node.result["metrics"]
    return found
