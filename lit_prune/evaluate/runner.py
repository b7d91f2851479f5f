"""Evaluate models on tasks and texts: each result has an address in the store and is measured once.

Torch and lm-eval are imported only when something is measured.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_prune import cpu
from lit_prune.config import ConfigError, Execution
from lit_prune.data import builtin
from lit_prune.evaluate.benchmark_tasks import Question
from lit_prune.evaluate.model_ref import FLAG, TOKENIZER_FLAG, ModelRef, folder_of, tokenizer_of
from lit_prune.evaluate.request import DOCUMENTS, KIND, Dtype, EvaluationRequest
from lit_prune.evaluate.text_task import Text
from lit_prune.evaluate.window_log import WindowLog
from lit_prune.models import loading
from lit_prune.progress import Progress, ProgressOf, Silent
from lit_prune.store import Locked, Store
from lit_prune.store.failures import failure_of, release_frames

if TYPE_CHECKING:
    import pandas as pd

    from lit_prune.evaluate.harness import Score


class EvaluationRunner:
    """Computes missing results, model by model."""

    def __init__(
        self, store: Store, *, accelerator: str = "auto", devices: int = 1, batch_size: int = 16,
        progress: ProgressOf = Silent,
    ) -> None:  # fmt: skip
        self._progress = progress
        self.store, self.accelerator, self.devices, self.batch_size = store, accelerator, devices, batch_size
        self._loaded: dict[Question, Any] = {}
        self._windows: dict[tuple[Text, str, int], int] = {}
        self._model: tuple[ModelRef, Dtype, Any, Any] | None = None
        self._bar: Progress = Silent()

    def run(self, requests: Sequence[EvaluationRequest]) -> int:
        """Compute missing results and return how many failed; a failure is recorded and the others continue.

        Raises:
            ConfigError: if a task, a text or a model cannot be read; checked before the first measurement if possible.
        """
        self.store.check_writable()
        cpu.prepare()
        for one in requests:
            if isinstance(one.question, Text):
                one.question.window_for(one.positions, one.subject.label)
        with self._progress(0) as self._bar:
            models = [(one.subject.model, FLAG) for one in requests]
            loading.prepare([*models, *((one.subject.tokenizer, TOKENIZER_FLAG) for one in requests)], self._bar)
            for text in dict.fromkeys(one.question for one in requests if isinstance(one.question, Text)):
                builtin.prepare(text.source, self._bar.count)
                text.check()
        for subject in {one.subject.model: one.subject for one in requests}.values():
            loading.check_given(subject.model, subject.about["model"], FLAG)
            _tokenizer(subject, folder_of(subject))
        with self._progress(0) as self._bar:
            counts = [self._num_steps(one) for one in requests]
        failed = 0
        with self._progress(sum(counts)) as self._bar:
            for one, count in zip(requests, counts, strict=True):
                before = self._bar.done
                failed += not self._answer(one, count)
                self._bar.at(before + count, _doing(one))
        return failed

    def _num_steps(self, request: EvaluationRequest) -> int:
        """Return the number of documents of a task, which it loads, or of windows of a text."""
        question = request.question
        if isinstance(question, Text):
            return self._num_windows(request, question)
        from lit_prune.evaluate import harness

        if question not in self._loaded:
            self._bar.say(f"reading {question.benchmark.task}")
            self._loaded[question] = harness.load(question)
        sizes = (len(task.task_docs) for task in self._loaded[question]["tasks"].values())
        return sum(size if question.limit is None else min(size, question.limit) for size in sizes)

    def _num_windows(self, request: EvaluationRequest, text: Text) -> int:
        """Return the number of windows of a text, counted once per tokenizer and length."""
        key = text, request.subject.tokenizer, request.window
        if key not in self._windows:
            from lit_prune.evaluate.text_loss import count_windows

            self._bar.say(f"reading {text.title}")
            tokenizer = _tokenizer(request.subject, folder_of(request.subject))
            self._windows[key] = count_windows(request.positions, tokenizer, text)
        return self._windows[key]

    def _answer(self, request: EvaluationRequest, count: int) -> bool:
        """Compute a result if it is missing; return whether it exists now."""
        try:
            with self.store.hold(KIND, request.about) as node:
                if node.result is None:
                    self._bar.say(_doing(request))
                    started = time.perf_counter()
                    result, documents = self._on_all(request, count, node.folder)
                    documents.to_parquet(node.folder / DOCUMENTS, index=False)
                    about = builtin.about(request.question.source) if isinstance(request.question, Text) else {}
                    node.finish(result, seconds=round(time.perf_counter() - started, 1), corpus=about)
        except Locked as busy:
            self._bar.say(str(busy))
            return False
        except ConfigError:
            raise
        except Exception as error:
            node, failure = request.node(self.store), failure_of(error)
            self._bar.say(
                f"{_doing(request)} failed: {failure.error} ({failure.frame}; {node.folder / 'traceback.txt'})"
            )
            with contextlib.suppress(OSError):  # a full disk has no room for the message either
                node.fail(failure.error, error)
            release_frames(error)
            return False
        return True

    def _on_all(self, request: EvaluationRequest, count: int, folder: Path) -> tuple[dict[str, Any], pd.DataFrame]:
        """Return the result and the documents of a measurement by all devices of the run."""
        if self.devices == 1:
            return self.measure(request, count, folder)
        import torch

        from lit_prune.parallel.processes import together

        gpu = self.accelerator != "cpu" and torch.cuda.is_available()
        arguments = request, self.store.root, folder, self.accelerator, self.batch_size, cpu.chosen()
        return together(
            lambda: self.measure(request, count, folder), _follow, arguments, world=self.devices, gpu=gpu
        )  # fmt: skip

    def measure(self, request: EvaluationRequest, count: int, folder: Path) -> tuple[dict[str, Any], pd.DataFrame]:
        """Return the result and the documents of a measurement of `count` steps, together with the other ranks, if any.

        The folder of the result keeps what an interrupted measurement found.
        """
        from lit_prune.evaluate.validation import sizes_of

        model, tokenizer = self._load(request.subject, request.dtype)
        about = {"model": request.subject.label, "place": request.subject.model} | sizes_of(model)
        if isinstance(request.question, Text):
            found, documents = self._read(request, model, tokenizer, count, folder)
        else:
            found, documents = self._examine(request, model, tokenizer, count)
        return about | found, documents

    def _examine(
        self, request: EvaluationRequest, model: Any, tokenizer: Any, count: int
    ) -> tuple[dict[str, Any], pd.DataFrame]:
        from lit_prune.evaluate import harness

        assert isinstance(request.question, Question)
        before = self._bar.done
        answer = harness.measure(
            model, tokenizer, request.question, batch_size=self.batch_size, loaded=self._loaded.get(request.question),
            on_progress=lambda share: self._bar.at(before + int(share * count), _doing(request)),
        )  # fmt: skip
        benchmark = request.question.benchmark
        return {
            "task": benchmark.task,
            "title": benchmark.title,
            "shots": answer.shots,
            "limit": request.question.limit,
            "version": answer.version,
            "cut": answer.cut,
            "metrics": _plain(answer.metrics),
            "subtasks": {task: _plain(scores) for task, scores in answer.subtasks.items()},
        }, answer.documents

    def _read(
        self, request: EvaluationRequest, model: Any, tokenizer: Any, count: int, folder: Path
    ) -> tuple[dict[str, Any], pd.DataFrame]:
        """Measure a text; the folder of the result keeps the windows scored so far."""
        from lit_prune.evaluate.text_loss import measure_text
        from lit_prune.parallel.group import rank, world_size

        text, before = request.question, self._bar.done
        assert isinstance(text, Text)
        assert text.fingerprint is not None
        found = measure_text(
            model, tokenizer, text, log=WindowLog(folder, rank()),
            on_progress=lambda done: self._bar.at(before + min(done * world_size(), count), _doing(request)),
        )  # fmt: skip
        metrics = ("perplexity", "bits_per_byte", *(["word_perplexity"] if text.windows == "rolling" else []))
        shown = {name: getattr(found, name) for name in metrics}
        task = f"text {text.fingerprint[:12]}"  # not its name, which can differ between models
        documents = found.documents.melt(id_vars="document", var_name="metric").assign(task=task)
        return {
            "task": task,
            "title": text.title,
            "shots": None,
            "limit": text.limit,
            "cut": 0.0,
            "window": found.window,
            "stride": found.stride,
            "windows": text.windows,
            "unread": found.num_unread / found.num_bytes,
            "metrics": {
                name: {"value": value, "stderr": None, "n": found.num_documents} for name, value in shown.items()
            },
            "numbers": found.numbers,
        }, documents[["task", "document", "metric", "value"]]

    def _load(self, subject: ModelRef, dtype: Dtype) -> tuple[Any, Any]:
        """Return model and tokenizer; caches the last ones, as evaluations are sorted by model."""
        import torch

        if self._model is None or self._model[:2] != (subject, dtype):
            self._model = None  # freed before the next one loads: two may not fit
            folder = folder_of(subject)
            gpu = self.accelerator != "cpu" and torch.cuda.is_available()
            model = loading.load_model(folder).to("cuda" if gpu else "cpu", getattr(torch, dtype))
            self._model = subject, dtype, model, _tokenizer(subject, folder)
        return self._model[2:]


def _follow(
    request: EvaluationRequest, root: Path, folder: Path, accelerator: str, batch_size: int, chosen: Execution | None
) -> None:
    """Measure the share of a rank above 0, which keeps nothing but its windows; rank 0 says what there is to say."""
    import torch

    logging.disable(logging.WARNING)
    if chosen is not None:
        cpu.choose(dataclasses.replace(chosen, threads=torch.get_num_threads()))
        cpu.prepare()
    EvaluationRunner(Store(root), accelerator=accelerator, batch_size=batch_size).measure(request, 0, folder)


def _plain(scores: Mapping[str, Score]) -> dict[str, Any]:
    """Return scores as plain JSON values, with None for NaN."""
    return {
        name: {"value": score.value, "stderr": None if math.isnan(score.stderr) else score.stderr, "n": score.n}
        for name, score in scores.items()
    }


def _tokenizer(subject: ModelRef, folder: str) -> Any:
    tokenizer = tokenizer_of(subject, folder)
    field = FLAG if subject.tokenizer == subject.model else TOKENIZER_FLAG
    loading.check_ids(tokenizer, loading.load_config(folder).vocab_size, f"{field}: {subject.tokenizer}")
    return tokenizer


def _doing(request: EvaluationRequest) -> str:
    question = request.question
    title = question.title if isinstance(question, Text) else question.benchmark.title
    return f"{request.subject.label} on {title}"
