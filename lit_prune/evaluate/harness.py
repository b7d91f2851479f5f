"""Run any task of lm-eval on a model in memory: scores with standard errors, and the value of each document.

Needs lm-eval (`pip install 'lit-prune[eval]'`). Storing the results is the task of `evaluate.runner`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from lm_eval.api.group import Group
from lm_eval.evaluator import evaluate
from lm_eval.evaluator_utils import get_sample_size
from lm_eval.utils import env

from lit_prune.config import ConfigError
from lit_prune.evaluate import local_tasks
from lit_prune.evaluate.benchmark_tasks import KNOWN, SEED, Benchmark, Question
from lit_prune.evaluate.definitions import task_manager
from lit_prune.evaluate.recording_lm import OnProgress, RecordingLM
from lit_prune.parallel.group import agree, interleaved, is_main, world_size

_ALONE = "requested"
# lm-eval recompiles a template for each field of each document, which takes longer than a small model.
env.from_string = functools.lru_cache(maxsize=512)(env.from_string)


@dataclass(frozen=True)
class Score:
    """A metric over `n` documents; the standard error is NaN if lm-eval computes none."""

    value: float
    stderr: float
    n: int


@dataclass(frozen=True)
class Answer:
    """The results of a model in a task."""

    metrics: dict[str, Score]
    """Name of the metric, with that of lm-eval's filter if it has one -> score."""
    subtasks: dict[str, dict[str, Score]]
    """Subtask -> its metrics; empty if the task is not a group."""
    documents: pd.DataFrame
    """The value of each document: task, document (its index in the task), metric, value."""
    shots: int
    """Few-shot examples before each document; 0 if the task's definition fixes 0, whatever was requested."""
    version: str
    """Version of the task's definition."""
    cut: float
    """Share of the prompts longer than the model's positions, truncated on the left."""


def load(question: Question) -> Any:
    """Return the lm-eval tasks of a question, with their documents.

    Raises:
        ConfigError: if documents cannot be loaded.
    """
    manager = task_manager(question.benchmark.folder)
    try:
        loaded = manager.load([_definition(question)])
    except ConfigError:
        raise
    except Exception as error:  # any of lm-eval or of the library that reads its data
        raise ConfigError(f"--tasks: {question.benchmark.task} cannot be loaded ({_first_line(error)})") from error
    if _ALONE in loaded["groups"]:
        whole = question.benchmark.task
        loaded["groups"] = {} if whole in loaded["tasks"] else {whole: _average(whole, loaded["tasks"])}
    for name, task in loaded["tasks"].items():
        fixed = task.get_config("num_fewshot")
        if question.shots is not None and fixed != 0:
            task.set_config(key="num_fewshot", value=question.shots)
            _check_shots(name, task, question)
        elif fixed is None:
            task.set_config(key="num_fewshot", value=0)
    return loaded


def _check_shots(name: str, task: Any, question: Question) -> None:
    """Check that a task has the requested number of examples; the papers' number always exists."""
    if question.shots and question.shots != question.benchmark.shots:
        there_are = len(task.fewshot_docs())
        if question.shots > there_are:
            raise ConfigError(f"--num-fewshot: must be <= {there_are}, the examples of {name}, got {question.shots}")


def measure(
    model: Any, tokenizer: Any, question: Question, *, batch_size: int = 16, loaded: Any = None,
    on_progress: OnProgress = lambda share: None,
) -> Answer:  # fmt: skip
    """Return the results of a causal language model in a task, on its device and in its dtype; its mode is restored.

    In a group of ranks, all share the documents and get the results of all; a rank without a document would block the
    others, so rank 0 answers alone if a task has fewer documents than there are ranks. `loaded` is the return value of
    `load`, if it is already known.
    """
    loaded, was_training = loaded or load(question), model.training
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=SEED)  # again for each model, so that all get the same examples
    share = min(_num_documents(task, question.limit) for task in loaded["tasks"].values()) >= world_size()
    found = watched = None
    try:
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            if share or is_main():
                watched = RecordingLM(model, copy.deepcopy(tokenizer), batch_size, on_progress, share=share)
                found = evaluate(
                    lm=watched, task_dict=loaded, limit=question.limit,
                    confirm_run_unsafe_code=question.benchmark.unsafe,
                )  # fmt: skip
    finally:
        model.train(was_training)
    counts = [0, 0] if watched is None else [watched.num_cut, watched.num_prompts]
    num_cut, num_prompts = interleaved(torch.tensor([counts])).sum(0).tolist()
    cut = num_cut / max(1, num_prompts)
    answer = agree(_answer(found, loaded, question.benchmark.task, cut) if is_main() else None)
    assert answer is not None  # rank 0 always has one
    return answer


def _num_documents(task: Any, limit: float | None) -> int:
    size = get_sample_size(task, limit)
    return len(task.eval_docs) if size is None else min(size, len(task.eval_docs))


def _definition(question: Question) -> Any:
    """Return the argument from which lm-eval builds a task: its name, or a group of tasks with overriding fields."""
    benchmark = question.benchmark
    if question.local is None:
        members = [{"task": benchmark.task, **copy.deepcopy(benchmark.options)}]
        return {"group": _ALONE, "task": members} if benchmark.options else benchmark.task
    members = [
        {"task": name, "custom_dataset": _Documents(splits), **_fields(benchmark.task), **benchmark.options}
        for name, splits in local_tasks.read(benchmark.task, question.local).items()
    ]
    return {"group": _ALONE, "task": members}


def _average(name: str, tasks: dict[str, Any]) -> Any:
    """Return the mean accuracy over tasks, each with the same weight."""
    mean = {"metric": "acc", "aggregation": "mean", "weight_by_size": False}
    group = Group.from_config({"group": name, "aggregate_metric_list": [mean]})
    for task in tasks.values():
        group.add(task)
    return group


def _fields(task: str) -> dict[str, Any]:
    return local_tasks.LOCAL[task].fields if task in local_tasks.LOCAL else {}


class _Documents:
    """Documents by split, as the function lm-eval calls to load them; a deep copy, which lm-eval makes, shares them."""

    def __init__(self, splits: local_tasks.Splits) -> None:
        self.splits = splits

    def __call__(self, **metadata: Any) -> Any:
        from datasets import Dataset, DatasetDict

        return DatasetDict({name: Dataset.from_list(documents) for name, documents in self.splits.items()})

    def __deepcopy__(self, memo: Any) -> _Documents:
        return self


def _answer(found: Any, loaded: Any, name: str, cut: float) -> Answer:
    parts = {task: _scores(found["results"][task], found["n-samples"][task]["effective"]) for task in loaded["tasks"]}
    several = len(parts) > 1 or name not in parts
    whole = _of_whole(name, found, parts) if several else parts[name]
    return Answer(
        metrics=whole,
        subtasks=parts if several else {},
        documents=pd.DataFrame(_documents(found["samples"]), columns=["task", "document", "metric", "value"]),
        shots=max(found["n-shot"][task] for task in loaded["tasks"]),
        version=str(found["versions"].get(name, next(iter(found["versions"].values())))),
        cut=cut,
    )


def _of_whole(name: str, found: Any, parts: dict[str, dict[str, Score]]) -> dict[str, Score]:
    """Return the scores of a group as lm-eval aggregates them; empty if it does not."""
    count = sum(next(iter(scores.values())).n for scores in parts.values() if scores)
    return _scores(found.get("groups", {}).get(name, {}), count)


def _scores(line: dict[str, Any], count: int) -> dict[str, Score]:
    """Return the metrics in lm-eval's results of a task, keyed as "acc,none" and "acc_stderr,none"."""
    scores = {}
    for key, value in line.items():
        metric, comma, filtered = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            stderr = line.get(f"{metric}_stderr,{filtered}")
            known = float(stderr) if isinstance(stderr, int | float) else float("nan")
            scores[_metric(metric, filtered)] = Score(float(value), known, count)
    return scores


def _documents(samples: dict[str, list[dict[str, Any]]]) -> Iterator[tuple[str, int, str, float]]:
    for task, documents in samples.items():
        filters = list(dict.fromkeys(document["filter"] for document in documents))
        # Those of several ranks come one rank after another.
        for document in sorted(documents, key=lambda one: (filters.index(one["filter"]), one["doc_id"])):
            for metric in document["metrics"]:
                value = document[metric]
                if isinstance(value, int | float):
                    yield task, document["doc_id"], _metric(metric, document["filter"]), float(value)


def _metric(metric: str, filtered: str) -> str:
    return metric if filtered == "none" else f"{metric},{filtered}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def measure_by_name(model: Any, tokenizer: Any, task: str, *, unsafe: bool = False, **how: Any) -> Answer:
    """Return a model's results in a task by its name, for a notebook; `how` are fields of `Question`.

    Raises:
        ConfigError: if documents cannot be loaded, or the task runs code that the model writes without `unsafe`.
    """
    benchmark = KNOWN.get(task, Benchmark(task, task))
    if benchmark.unsafe and not unsafe:
        raise ConfigError(f"{task} runs programs that the model writes; say unsafe=True if you want that")
    return measure(model, tokenizer, replace(Question(benchmark, benchmark.shots), **how))
