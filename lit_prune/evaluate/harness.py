"""Run any task of lm-eval on a model in memory: scores with standard errors, and the value of each document.

Needs lm-eval (`pip install 'lit-prune[eval]'`). Storing the results is the task of `evaluate.runner`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from lm_eval.api.group import Group
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import env

from lit_prune.config import ConfigError
from lit_prune.evaluate import local_tasks
from lit_prune.evaluate.benchmark_tasks import KNOWN, SEED, Benchmark, Question
from lit_prune.evaluate.definitions import task_manager

_ALONE = "requested"
# lm-eval recompiles a template for each field of each document, which takes longer than a small model.
env.from_string = functools.lru_cache(maxsize=512)(env.from_string)

OnProgress = Callable[[float], None]
"""Callback with the completed share of the work, 0 to 1."""


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

    `loaded` is the return value of `load`, if it is already known.
    """
    loaded, was_training = loaded or load(question), model.training
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=SEED)  # again for each model, so that all get the same examples
    try:
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            watched = RecordingLM(model, copy.deepcopy(tokenizer), batch_size, on_progress)
            found = evaluate(
                lm=watched, task_dict=loaded, limit=question.limit, confirm_run_unsafe_code=question.benchmark.unsafe
            )
    finally:
        model.train(was_training)
    return _answer(found, loaded, question.benchmark.task, watched)


class RecordingLM(HFLM):
    """lm-eval's model with progress and a count of truncated prompts."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, on_progress: OnProgress) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self._on_progress, self._seen, self._all = on_progress, 0, 1
        self.num_prompts = self.num_cut = 0

    @property
    def cut(self) -> float:
        """Share of truncated prompts."""
        return self.num_cut / max(1, self.num_prompts)

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        self._expect(
            len(requests),
            sum(len(before) + len(continuation) > self.max_length + 1 for _, before, continuation in requests),
        )
        return super()._loglikelihood_tokens([self._fitting(request) for request in requests], *args, **kwargs)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        room = [self.max_length - request.args[1].get("max_gen_toks", self.max_gen_toks) for request in requests]
        lengths = [len(self.tok_encode(request.args[0])) for request in requests]
        self._expect(len(requests), sum(length > most for length, most in zip(lengths, room, strict=True)))
        return super().generate_until(requests, disable_tqdm=True)

    def _model_call(self, inps: Any, *args: Any, **kwargs: Any) -> Any:
        logits = super()._model_call(inps, *args, **kwargs)
        self._saw(len(inps))
        return logits

    def _model_generate(self, context: Any, *args: Any, **kwargs: Any) -> Any:
        written = super()._model_generate(context, *args, **kwargs)
        self._saw(len(context))
        return written

    def _fitting(self, request: Any) -> Any:
        """Truncate a continuation that alone exceeds the model's positions on the left, like the other requests."""
        pair, before, continuation = request
        if len(continuation) <= self.max_length:
            return request
        return (
            pair,
            continuation[-self.max_length - 1 : -self.max_length] or before[-1:],
            continuation[-self.max_length :],
        )

    def _expect(self, num_requests: int, num_cut: int) -> None:
        self._all, self._seen = num_requests, 0
        self.num_prompts += num_requests
        self.num_cut += num_cut

    def _saw(self, count: int) -> None:
        self._seen += count
        self._on_progress(min(1.0, self._seen / self._all))


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


def _answer(found: Any, loaded: Any, name: str, watched: RecordingLM) -> Answer:
    parts = {task: _scores(found["results"][task], found["n-samples"][task]["effective"]) for task in loaded["tasks"]}
    several = len(parts) > 1 or name not in parts
    whole = _of_whole(name, found, parts) if several else parts[name]
    return Answer(
        metrics=whole,
        subtasks=parts if several else {},
        documents=pd.DataFrame(_documents(found["samples"]), columns=["task", "document", "metric", "value"]),
        shots=max(found["n-shot"][task] for task in loaded["tasks"]),
        version=str(found["versions"].get(name, next(iter(found["versions"].values())))),
        cut=watched.cut,
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
        for document in documents:
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
