"""Benchmarks and texts for any model, found again by their address, in the layout of the papers' tables.

python -m lit_prune.cli.evaluate --model python-3.1M --tasks piqa,blimp --local ../shared/data/tasks
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from lit_prune import cpu
from lit_prune.cli.process import begin, stop_on_signals
from lit_prune.config import ConfigError, Execution
from lit_prune.config.overrides import is_unicode
from lit_prune.cpu.threads import share_the_machine
from lit_prune.escape import printable, terminal_text
from lit_prune.store import DEFAULT_ROOT, Store

if TYPE_CHECKING:
    from lit_prune.evaluate.benchmark_tasks import Question
    from lit_prune.evaluate.model_ref import ModelRef
    from lit_prune.evaluate.text_task import Text


@dataclasses.dataclass(frozen=True)
class CliArgs:
    """What models get in benchmarks, and on texts.

    --tasks paper: those of the papers with their shots (Winogrande 5, ARC-Challenge 25, MMLU 5, HellaSwag 10, GSM8K 5,
    TruthfulQA 0, XL-Sum English 0 on every fifth article; with --unsafe-code also MBPP and HumanEval). Any other name
    is one of lm-eval, put with the shots it has by itself. With --local, piqa, blimp (or one of its parts), arc_easy,
    arc_challenge, hellaswag and xlsum_english are read from files as their authors publish them, and need no network.
    """

    model: tuple[str, ...]
    """Models: a shipped teacher, a folder, a hub model, or the first digits of an address in the store (cell/3f2a): a
    teacher, a correction, a student, a cell. label=MODEL gives it a name of yours. The others are compared with the
    first."""
    tasks: str = ""
    """Benchmarks, parted by commas: paper, or names of lm-eval such as piqa,blimp,arc_easy."""
    text: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A text (file, folder, hub data set, python, readmes) for perplexity and bits per byte; several times."""
    local: Path | None = None
    """Folder with the tasks' files: BLiMP.zip, piqa/, arc/, hellaswag_val_full.txt.bz2, xlsum/."""
    limit: int | None = None
    """Only the first so many documents of every task (of BLiMP: of each part) and text: to see that it runs."""
    shots: int | None = None
    """Examples before each document, instead of the papers' number; where a task fixes none, it stays none."""
    column: str | None = None
    """Column of a data set of --text that holds the text; "text" by default."""
    window: int | None = None
    """Tokens that --text is read in at once; by default the model's positions, at most 2048."""
    stride: int | None = None
    """Tokens from one window to the next; the window by default. Every token is scored once."""
    windows: Literal["sliding", "rolling"] = "sliding"
    """How --text is cut into windows. sliding: one each --stride tokens. rolling: those of lm-eval, with its counts of
    bytes and words: use it to compare bits per byte and word perplexity with numbers of lm-eval."""
    tokenizer: str | None = None
    """Folder or hub model whose tokenizer is taken; needed where the teacher of an address is nowhere to be found."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the models; part of an answer's address."""
    unsafe_code: bool = False
    """Run the programs that models write, on this machine and as you: MBPP and HumanEval do."""
    batch_size: int = 16
    """Prompts at once."""
    beside: str = "minitron_8b"
    """Columns of the papers beside ours, where they have the benchmark: minitron_8b, minitron_4b, pruned_8b, pruned_4b
    (Minitron, Tables 2, 3, 4), in_practice (In Practice, Table 1), or none."""
    store: str = DEFAULT_ROOT
    """Folder where every answer is kept and found again."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where models run; auto takes a GPU where there is one."""
    cpu: Literal["auto", "plain"] = "plain" if os.environ.get("LIT_PRUNE_CPU") == "plain" else "auto"
    """On a processor: auto takes what is fastest, plain is PyTorch as it is. Results agree to rounding."""
    threads: int | None = None
    """Threads on a processor; None: one for each idle core."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 all is well, 1 an answer failed, 2 a bad request."""
    flags = tyro.cli(CliArgs, args=argv, prog="python -m lit_prune.cli.evaluate")
    begin("evaluate: reading the request", argv)
    stop_on_signals()
    share_the_machine()
    try:
        cpu.choose(Execution(accelerator=flags.accelerator, cpu=flags.cpu, threads=flags.threads))
        return _run(flags, Console())
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ConfigError, OSError) as error:
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return 2


def _run(flags: CliArgs, console: Console) -> int:
    """Measure what is missing, print the table, and write it."""
    from lit_prune.evaluate.benchmark_tasks import questions
    from lit_prune.evaluate.model_ref import subject
    from lit_prune.evaluate.runner import Asked, EvaluationRunner
    from lit_prune.evaluate.text_task import text

    store, beside = Store(flags.store), None if flags.beside == "none" else flags.beside
    _check(flags)
    names = [name.strip() for name in flags.tasks.split(",") if name.strip()]
    ours = [text(source, flags.column, flags.window, flags.stride, flags.limit, flags.windows) for source in flags.text]
    how: dict[str, Any] = {
        "shots": flags.shots,
        "limit": flags.limit,
        "local": flags.local,
        "unsafe": flags.unsafe_code,
    }
    put: list[Question | Text] = [*(questions(names, **how) if names else []), *ours]
    subjects = [subject(name, store, flags.tokenizer) for name in flags.model]
    # Only now: what reads tables takes a while to import, and has nothing to say where the request is wrong.
    from lit_prune.render.evaluations import benchmark_table, check_labels, print_table, write_table

    subjects = _told_apart(subjects)
    check_labels([one.label for one in subjects], beside)
    asked = [Asked(one, question, flags.dtype) for one in subjects for question in put]
    failed = 0
    if missing := [one for one in asked if one.node(store).result is None]:
        _quiet()
        if flags.unsafe_code:
            os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # what runs the programs asks for it
        from lit_prune.cli.progress import ProgressBar

        runner = EvaluationRunner(
            store, accelerator=flags.accelerator, batch_size=flags.batch_size, progress=ProgressBar
        )
        failed = runner.run(missing)
    if not any(one.node(store).result for one in asked):
        return 1  # there is no table of nothing; what failed has been said
    nodes = {one.subject.label: [each.node(store) for each in asked if each.subject == one.subject] for one in asked}
    table = benchmark_table(nodes, beside)
    print_table(table, console)
    for path in write_table(table, store.root / "reports" / "benchmarks"):
        console.print(terminal_text(f"written: {path}"), soft_wrap=True)
    return min(failed, 1)


def _check(flags: CliArgs) -> None:
    """See that something is asked, in numbers that can be.

    Raises:
        ConfigError: it is not.
    """
    if not flags.model:
        raise ConfigError("--model: none given; a shipped teacher, a folder, a hub model, or an address of the store")
    if not flags.tasks.strip(", ") and not flags.text:
        raise ConfigError("nothing is asked: give --tasks (paper, or names of lm-eval such as piqa,blimp) or --text")
    for name, texts in (("model", flags.model), ("text", flags.text)):
        for text in texts:
            if not is_unicode(text):
                raise ConfigError(f"--{name}: must be valid UTF-8, got {text!r}")
    for name, value in (("batch-size", flags.batch_size), ("limit", flags.limit)):
        if value is not None and value < 1:
            raise ConfigError(f"--{name}: {value} asked for, at least 1 is needed")


def _told_apart(subjects: list[ModelRef]) -> list[ModelRef]:
    """Models of which no two have one label: those that would are called by the place they lie in.

    Raises:
        ConfigError: there are two of one label in one place.
    """
    times = Counter(one.label for one in subjects)
    named = [one if times[one.label] == 1 else dataclasses.replace(one, label=one.model) for one in subjects]
    if len({one.label for one in named}) < len(named):
        raise ConfigError(f"--model: two are called {named[0].label}; give one a name of its own: label=MODEL")
    return named


def _quiet() -> None:
    """Let the libraries speak only of errors: progress is shown here."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in ("lm_eval", "transformers", "datasets", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    raise SystemExit(main())
