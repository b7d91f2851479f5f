"""Measure accuracy in tasks read from files as a metric of a cell. Imports torch and lm-eval only to measure it."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lit_prune.config import ConfigError, TaskTest
from lit_prune.config.table import ACCURACY
from lit_prune.evaluate.benchmark_tasks import KNOWN, Question
from lit_prune.evaluate.definitions import harness_version
from lit_prune.evaluate.local_tasks import LOCAL, digest_of_files, subtasks_of

_FIELD = "evaluation.tasks"


def pin_tasks(tasks: TaskTest) -> TaskTest:
    """Return the tasks with the fingerprint of their files and of the version of lm-eval.

    Raises:
        ConfigError: if a task is not read from files, a file is missing, or lm-eval is not installed.
    """
    if not tasks.names or (unknown := [name for name in tasks.names if name not in _choices()]):
        given = ", ".join(unknown) if tasks.names else "none"
        raise ConfigError(f"{_FIELD}.names: must be of {', '.join(_choices())}, got {given}")
    try:
        digests = [digest_of_files(name, Path(tasks.data_dir)) for name in tasks.names]
    except ConfigError as error:
        raise ConfigError(f"{_FIELD}.data_dir: {error.problem}") from None
    text = " ".join([harness_version(), *digests])
    return dataclasses.replace(tasks, fingerprint=hashlib.sha256(text.encode()).hexdigest())


def accuracies(model: Any, tokenizer: Any, tasks: TaskTest, on_progress: Callable[[float], None]) -> dict[str, float]:
    """Return the accuracy of a model in each task, as accuracy_TASK, and their mean, as accuracy.

    `on_progress` is called with the completed share of the work, 0 to 1.
    """
    from lit_prune.evaluate.harness import measure

    found = {}
    for place, name in enumerate(tasks.names):

        def on_task_progress(share: float, place: int = place) -> None:
            on_progress((place + share) / len(tasks.names))

        answer = measure(model, tokenizer, _question(name, tasks), on_progress=on_task_progress)
        found[f"{ACCURACY}_{name}"] = answer.metrics[KNOWN[name].metric or "acc"].value
    return {ACCURACY: sum(found.values()) / len(found)} | found


def _question(name: str, tasks: TaskTest) -> Question:
    folder, limit = Path(tasks.data_dir), tasks.num_documents
    parts = len(subtasks_of(name, folder)) or 1
    return Question(KNOWN[name], tasks.num_fewshot, limit and math.ceil(limit / parts), folder)


def _choices() -> list[str]:
    """Return the tasks that are read from files and have an accuracy."""
    return [name for name in LOCAL if name in KNOWN and (KNOWN[name].metric or "acc").startswith("acc")]
