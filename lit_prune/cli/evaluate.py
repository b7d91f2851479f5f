"""`lit-prune evaluate`: lm-eval tasks and perplexity of any model, in the layout of the papers' tables."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from lit_prune import cpu
from lit_prune.cli.process import Output, Verb
from lit_prune.config import ConfigError, Execution
from lit_prune.config.overrides import is_unicode
from lit_prune.cpu.threads import share_the_machine
from lit_prune.escape import terminal_text
from lit_prune.store import DEFAULT_ROOT, Store

if TYPE_CHECKING:
    from lit_prune.evaluate.benchmark_tasks import Question
    from lit_prune.evaluate.model_ref import ModelRef
    from lit_prune.evaluate.text_task import Text

OLD_FLAGS = {
    "--beside": "--paper-table", "--shots": "--num-fewshot", "--local": "--task-data-dir", "--text": "--corpus",
    "--column": "--text-column",
}  # fmt: skip
"""Former flags -> their names now."""
_NEEDS = {
    "num_fewshot": "tasks", "text_column": "corpus", "window": "corpus", "stride": "corpus", "windows": "corpus",
}  # fmt: skip
"""Field of the flags -> the field without which it has no effect."""


@dataclasses.dataclass(frozen=True)
class CliArgs:
    """Measure models on lm-eval tasks and on texts (perplexity, bits per byte), and compare them with the first one."""

    model: tuple[str, ...]
    """Models: a teacher by name, a folder, a .gguf file, a hub id, or the first digits of an address (cell/3f2a).
    label=MODEL sets the name in the table."""
    tasks: str = ""
    """Tasks, separated by commas: names of lm-eval such as piqa,blimp,arc_easy, each with its default few-shot
    examples, or paper: the papers' tasks with the papers' numbers of few-shot examples (Winogrande 5, ARC-Challenge 25,
    MMLU 5, HellaSwag 10, GSM8K 5, TruthfulQA 0, XL-Sum English 0 on every fifth article; with --unsafe-code also MBPP
    and HumanEval)."""
    corpus: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Text for perplexity and bits per byte: a file, a folder, a hub data set, python, docstrings or readmes."""
    task_data_dir: Path | None = None
    """Folder with the data of tasks, as their authors publish it: BLiMP.zip, piqa/, arc/, hellaswag_val_full.txt.bz2,
    xlsum/. With it, piqa, blimp and its subtasks, arc_easy, arc_challenge, hellaswag and xlsum_english need no
    network."""
    limit: int | None = None
    """Use only the first N documents of every task (of BLiMP: of each subtask) and text, for a quick trial."""
    num_fewshot: int | None = None
    """Few-shot examples before each document; default: the papers' number, else the task's own."""
    text_column: str | None = None
    """Column of a data set of --corpus that holds the text; default: text."""
    window: int | None = None
    """Tokens of --corpus scored in one forward pass; default: the model's positions, at most 2048."""
    stride: int | None = None
    """Tokens between the starts of two windows; default: the window. Every token is scored once."""
    windows: Literal["sliding", "rolling"] = "sliding"
    """Windows over --corpus. sliding: one every --stride tokens. rolling: the windows and byte and word counts of
    lm-eval, to compare bits per byte and word perplexity with lm-eval."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer; needed only for an address whose teacher no longer exists."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the models; part of a result's address."""
    unsafe_code: bool = False
    """Run code that models generate, on this machine with your permissions; MBPP and HumanEval need it."""
    batch_size: int = 16
    """Prompts in a forward pass."""
    paper_table: str = "minitron_8b"
    """Published results to print beside yours: minitron_8b, minitron_4b, pruned_8b, pruned_4b (Minitron, Tables 2, 3,
    4), in_practice (In Practice, Table 1), or none."""
    store: str = DEFAULT_ROOT
    """Folder of all results; results in it are reused."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Device of the models; auto uses a GPU if there is one."""
    devices: int = 1
    """GPUs of one machine, or processes on a CPU, that measure a model together: each reads its share of the
    documents."""
    cpu: Literal["auto", "plain"] = "plain" if os.environ.get("LIT_PRUNE_CPU") == "plain" else "auto"
    """On a CPU: auto selects the fastest kernels, plain uses PyTorch's defaults. Results agree up to rounding."""
    threads: int | None = None
    """Threads on a CPU; default: one per idle core."""


def run(flags: CliArgs) -> int:
    """Measure what is missing, print the table and write it; return 1 if a measurement failed."""
    share_the_machine()
    cpu.choose(Execution(accelerator=flags.accelerator, cpu=flags.cpu, threads=flags.threads))
    return _run(flags, Output())


def _run(flags: CliArgs, console: Console) -> int:
    """`run`, on a console."""
    from lit_prune.evaluate.benchmark_tasks import questions
    from lit_prune.evaluate.model_ref import subject
    from lit_prune.evaluate.request import EvaluationRequest
    from lit_prune.evaluate.runner import EvaluationRunner
    from lit_prune.evaluate.text_task import text

    store, beside = Store(flags.store), None if flags.paper_table == "none" else flags.paper_table
    _check(flags)
    names = [name.strip() for name in flags.tasks.split(",") if name.strip()]
    how_read = flags.text_column, flags.window, flags.stride, flags.limit, flags.windows
    ours = [text(source, *how_read) for source in flags.corpus]
    how: dict[str, Any] = {
        "shots": flags.num_fewshot,
        "limit": flags.limit,
        "local": flags.task_data_dir,
        "unsafe": flags.unsafe_code,
    }
    put: list[Question | Text] = [*(questions(names, **how) if names else []), *ours]
    subjects = [subject(name, store, flags.tokenizer) for name in flags.model]
    # Only now: what reads tables takes a while to import, and has nothing to say where the request is wrong.
    from lit_prune.render.evaluations import benchmark_table, check_labels, print_table, write_table

    subjects = _with_distinct_labels(subjects)
    check_labels([one.label for one in subjects], beside)
    requests = [EvaluationRequest(one, question, flags.dtype) for one in subjects for question in put]
    failed = 0
    if missing := [one for one in requests if one.node(store).result is None]:
        _quiet()
        if flags.unsafe_code:
            os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # what runs the programs asks for it
        from lit_prune.cli.progress import ProgressBar

        runner = EvaluationRunner(
            store,
            accelerator=flags.accelerator,
            devices=flags.devices,
            batch_size=flags.batch_size,
            progress=ProgressBar,
        )
        failed = runner.run(missing)
    if not any(one.node(store).result for one in requests):
        return 1  # the failures have been printed
    nodes = {
        one.subject.label: [each.node(store) for each in requests if each.subject == one.subject] for one in requests
    }
    table = benchmark_table(nodes, beside)
    print_table(table, console)
    for path in write_table(table, store.root / "reports" / "benchmarks"):
        console.print(terminal_text(f"written: {path}"), soft_wrap=True)
    return min(failed, 1)


def _check(flags: CliArgs) -> None:
    """Validate the flags.

    Raises:
        ConfigError: if nothing is requested or a value is invalid.
    """
    if not flags.model:
        raise ConfigError("--model: must name a teacher, a folder, a .gguf file, a hub id or an address of the store")
    if not flags.tasks.strip(", ") and not flags.corpus:
        raise ConfigError("--tasks or --corpus: must be given (--tasks paper, or names of lm-eval such as piqa,blimp)")
    missing = {name for name in ("tasks", "corpus") if not getattr(flags, name)}
    for name, needed in _NEEDS.items():
        if needed in missing and getattr(flags, name) != getattr(CliArgs, name):
            raise ConfigError(f"--{name.replace('_', '-')}: must be given with --{needed}, got {getattr(flags, name)}")
    for name, texts in (("model", flags.model), ("corpus", flags.corpus)):
        for text in texts:
            if not is_unicode(text):
                raise ConfigError(f"--{name}: must be valid UTF-8, got {text!r}")
    for name, value in (("batch-size", flags.batch_size), ("limit", flags.limit)):
        if value is not None and value < 1:
            raise ConfigError(f"--{name}: must be at least 1, got {value}")
    if flags.devices != 1:  # torch is not needed to say that a request is wrong
        from lit_prune.parallel.processes import check_devices

        check_devices(flags.devices, flags.accelerator)


def _with_distinct_labels(subjects: list[ModelRef]) -> list[ModelRef]:
    """Return the models with distinct labels: folders of the same name get their path as label.

    Raises:
        ConfigError: if two have the same label and path, or were given the same label.
    """
    times = Counter(one.label for one in subjects)
    named = [
        dataclasses.replace(one, label=one.model)
        if times[one.label] > 1 and one.label == Path(one.model).resolve().name
        else one
        for one in subjects
    ]
    label, most = Counter(one.label for one in named).most_common(1)[0]
    if most > 1:
        raise ConfigError(f"--model: labels must be distinct, got {label} twice; set one with label=MODEL")
    return named


def _quiet() -> None:
    """Silence the libraries except for errors; progress is shown here."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in ("lm_eval", "transformers", "datasets", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)


VERB = Verb("evaluate", CliArgs, run, renamed=OLD_FLAGS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return VERB.main(argv)


if __name__ == "__main__":
    raise SystemExit(main())
