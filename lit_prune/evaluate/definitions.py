"""Find the task definitions of lm-eval and of `lm_eval_tasks`. Imports lm-eval only to read them."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_prune.config import ConfigError

OURS = Path(__file__).parent / "lm_eval_tasks"
"""Folder of our own definitions."""


def harness_version() -> str:
    """Return the version of lm-eval, which defines the tasks.

    Raises:
        ConfigError: if it is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("benchmarks need lm-eval: pip install 'lit-prune[eval]'")
    return importlib.metadata.version("lm_eval")


def harness_folder() -> Path:
    """Return the folder of lm-eval's task definitions."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "tasks"


@functools.cache
def task_manager(folder: str | None) -> Any:
    """Return lm-eval's task manager for one of its folders, "" for ours; None reads all, which takes 15 s."""
    from lm_eval.tasks import TaskManager

    if folder is None:
        return TaskManager()
    path = str(harness_folder() / folder) if folder else str(OURS)
    return TaskManager(include_path=path, include_defaults=False)


def data_sets(task: str, folder: str | None) -> list[str]:
    """Return the hub data sets that a task reads; `folder` holds its definition, as in `task_manager`."""
    return sorted(set(_data_sets(task, task_manager(folder).task_index)))


def _data_sets(name: str, index: Any) -> Iterator[str]:
    entry = index.get(name)
    config = (entry.cfg if entry else None) or {}
    if isinstance(config.get("dataset_path"), str) and "data_files" not in (config.get("dataset_kwargs") or {}):
        yield config["dataset_path"]
    members = config.get("task", []) if "group" in config else sorted(entry.tags) if entry and not config else []
    for member in members if isinstance(members, list) else []:
        yield from _data_sets(member if isinstance(member, str) else member.get("task", member.get("group")), index)
