"""Tasks that a model can be evaluated on: the papers' benchmarks with their shots, and any other task of lm-eval.

Imports neither torch nor lm-eval, so that the address of a result, and whether it exists, is known without them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_prune.config import ConfigError
from lit_prune.evaluate.definitions import data_sets, harness_folder, harness_version
from lit_prune.evaluate.local_tasks import LOCAL, digest_of_files, subtasks_of

SCHEMA = 1
"""Version of the measurement, part of the address; increase it when the measurement changes."""
SEED = 1234
"""Seed of the few-shot examples and of sampled text; lm-eval's default."""

_SAMPLES = 20
_SAMPLED = {"do_sample": True, "temperature": 0.2, "top_p": 0.95}


@dataclass(frozen=True)
class Benchmark:
    """A task of lm-eval, or of `evaluate/lm_eval_tasks`, and its settings."""

    task: str
    """Its name in lm-eval."""
    title: str
    """Its name in a table."""
    metric: str | None = None
    """The metric that the papers report; None: all of the task. Values are lm-eval's: acc_norm divides the
    log-likelihood of a choice by its length in characters, acc_bytes by that in UTF-8 bytes."""
    shots: int | None = None
    """Few-shot examples before each document; None: the task's default."""
    data: str | None = None
    """Data set on the hub; None: the one of its definition."""
    folder: str | None = None
    """Folder of the definition in lm-eval; None searches all of lm-eval, "" is `lm_eval_tasks`."""
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    """Fields that override the definition."""
    unsafe: bool = False
    """Whether the task runs code that the model writes."""


PAPER = (
    Benchmark("winogrande", "Winogrande", "acc", 5, "allenai/winogrande", "winogrande"),
    Benchmark("arc_challenge", "ARC-Challenge", "acc_norm", 25, "allenai/ai2_arc", "arc"),
    Benchmark("mmlu", "MMLU", "acc", 5, "cais/mmlu", "mmlu"),
    Benchmark("hellaswag", "HellaSwag", "acc_norm", 10, "Rowan/hellaswag", "hellaswag"),
    Benchmark("gsm8k", "GSM8K", "exact_match,strict-match", 5, "openai/gsm8k", "gsm8k"),
    Benchmark("truthfulqa_mc2", "TruthfulQA", "acc", 0, "truthfulqa/truthful_qa", "truthfulqa"),
    Benchmark("xlsum_english", "XL-Sum English 20 %", "rougeL", 0, "csebuetnlp/xlsum", ""),
    Benchmark(
        "mbpp", "MBPP", "pass_at_1,all", 0, "google-research-datasets/mbpp", "mbpp", unsafe=True,
        options={
            "num_fewshot": 0, "repeats": _SAMPLES, "generation_kwargs": {"until": ["[DONE]"], **_SAMPLED},
            "filter_list": [{"name": "all", "filter": [{"function": "take_first_k", "k": _SAMPLES}]}],
        },
    ),
    Benchmark(
        "humaneval", "HumanEval", "pass@1,create_test", 0, "openai/openai_humaneval", "humaneval", unsafe=True,
        options={
            "repeats": _SAMPLES,
            "generation_kwargs": {
                "until": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"], "max_gen_toks": 1024, **_SAMPLED,
            },
        },
    ),
)  # fmt: skip
"""Compact Language Models, Tables 2 to 4; n = 20 samples at temperature 0.2 and top-p 0.95 for written programs."""

_OTHERS = (
    Benchmark("piqa", "PIQA", data="baber/piqa", folder="piqa"),
    Benchmark("arc_easy", "ARC-Easy", data="allenai/ai2_arc", folder="arc"),
    Benchmark("blimp", "BLiMP", "acc", data="nyu-mll/blimp", folder="blimp"),
)
KNOWN = {benchmark.task: benchmark for benchmark in (*PAPER, *_OTHERS)}


@dataclass(frozen=True)
class Question:
    """A benchmark with its shots, its limit and the version of its data."""

    benchmark: Benchmark
    shots: int | None = None
    limit: int | None = None
    """Number of documents of every subtask, the first ones; None: all."""
    local: Path | None = None
    """Folder of the task's files; None: the hub."""
    text: str = field(default="", compare=False)
    """sha256 of the local files, or the revision on the hub."""

    @property
    def about(self) -> dict[str, Any]:
        """The fields that the address hashes, without those of the model."""
        return {
            "stage": "benchmark", "schema": SCHEMA, "task": self.benchmark.task, "shots": self.shots,
            "limit": self.limit, "seed": SEED, "options": self.benchmark.options, "text": self.text,
            "origin": "hub" if self.local is None else "files", "lm_eval": harness_version(),
        }  # fmt: skip


def questions(
    tasks: Iterable[str], *, shots: int | None = None, limit: int | None = None, local: Path | None = None,
    unsafe: bool = False,
) -> list[Question]:  # fmt: skip
    """Return the questions for names of tasks; `paper` means the papers' tasks, those that run code only if `unsafe`.

    Raises:
        ConfigError: if a name is unknown, a file is missing, the hub cannot be reached, a task runs code without
            `unsafe`, or lm-eval is not installed.
    """
    harness_version()
    for name, number, least in (("num-fewshot", shots, 0), ("limit", limit, 1)):
        if number is not None and number < least:
            raise ConfigError(f"--{name}: must be >= {least}, got {number}")
    requested = []
    for name in dict.fromkeys(tasks):
        if name == "paper":
            requested += [benchmark for benchmark in PAPER if unsafe or not benchmark.unsafe]
        else:
            requested.append(_benchmark(name, local, unsafe))
    if not requested:
        raise ConfigError("--tasks: none given; paper, or names of lm-eval such as piqa,blimp")
    return [_question(benchmark, shots, limit, local) for benchmark in dict.fromkeys(requested)]


def _benchmark(name: str, local: Path | None, unsafe: bool) -> Benchmark:
    """Return the benchmark with a name."""
    if name in KNOWN:
        found = KNOWN[name]
    elif local is not None and name in subtasks_of("blimp", local):
        found = Benchmark(name, name, "acc", folder="blimp")
    else:
        found = _of_harness(name)
    if found.unsafe and not unsafe:
        raise ConfigError(f"--tasks: {name} runs programs that the model writes; say --unsafe-code if you want that")
    return found


def _of_harness(name: str) -> Benchmark:
    """Return a task of lm-eval that is not in the papers. Searches the definitions as text, which takes a second."""
    names, unsafe = set(KNOWN), False
    for path in harness_folder().rglob("*.yaml"):
        content = path.read_text(errors="replace")
        here = set(re.findall(r"^(?:task|group|tag):[ \t]*[\"']?([\w.+-]+)", content, re.MULTILINE))
        if "tag:" in content:
            here |= set(re.findall(r"^[ \t]*- [\"']?([\w.+-]+)[\"']?$", content, re.MULTILINE))
        unsafe |= name in here and "unsafe_code: true" in content
        names |= here
    if name not in names:
        near = difflib.get_close_matches(name, names, n=5)
        raise ConfigError(
            f"--tasks: lm-eval has no task {name!r}; " + (f"near: {', '.join(near)}" if near else "paper is always one")
        )
    return Benchmark(name, name, unsafe=unsafe)


def _question(benchmark: Benchmark, shots: int | None, limit: int | None, local: Path | None) -> Question:
    number = benchmark.shots if shots is None else shots
    files = "blimp" if benchmark.folder == "blimp" else benchmark.task
    if local is not None and files in LOCAL:
        return Question(benchmark, number, limit, local, digest_of_files(files, local))
    return Question(benchmark, number, limit, None, hub_revision(benchmark))


def hub_revision(benchmark: Benchmark) -> str:
    """Return the commit of the data set: that of the copy in the local cache, or else the newest one.

    Raises:
        ConfigError: if the hub cannot be reached.
    """
    if benchmark.data is None:
        names = data_sets(benchmark.task, benchmark.folder)
        return " ".join(f"{name}@{_revision(name, benchmark)}" for name in names)
    return f"{benchmark.data}@{_revision(benchmark.data, benchmark)}"


def _revision(data: str, benchmark: Benchmark) -> str:
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(data, "README.md", repo_type="dataset")
        return Path(cached).parent.name if isinstance(cached, str) else str(HfApi().dataset_info(data, timeout=10).sha)
    except Exception as error:  # the types depend on the hub client's HTTP library
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        known = LOCAL.get(benchmark.task)
        files = f"; --task-data-dir takes a folder with {known.names}" if known else ""
        raise ConfigError(
            f"--tasks: the data of {benchmark.task}, {data}, cannot be reached ({reason}){files}"
        ) from None
