"""What is asked: the sections of a cell (overrides.py changes them, address.py names what they ask for).

A cell is the whole recipe of one measurement, and everything in it is identity. Where and how fast it runs (device,
workers, store) is never in here. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge

from lit_prune.config.corpus import Corpus
from lit_prune.config.fields import Changes, Count, Natural, Positive, SeqLen, later, renamed
from lit_prune.config.precision import Precision
from lit_prune.config.prune import PruneMethod, default_method
from lit_prune.config.training import Distill, Finetuning, Pretraining

EVIDENCE = ("importance", "head_channels", "preactivations", "distances", "removals", "gradients")
"""What a calibration pass can measure, each a stage of its own: "importance" are the moments of every site."""


@dataclass(frozen=True)
class Teacher:
    """The model that is compressed and then imitated."""

    model: str | None = "python-3.1M"
    """A teacher by name (`lit-prune teachers` lists them), a folder in Hugging Face layout, a .gguf file, or a hub id;
    None trains one."""
    pretraining: Pretraining | None = None
    """How to train the teacher where `model` is None."""
    finetune: Finetuning | None = later(None, noop=None, was="correction")
    """How to fine-tune it on `corpus` first; None takes it as it is."""
    fingerprint: str | None = None
    """sha256 of the weights, or revision on the hub. Filled in by the program: it replaces `model` in the address."""


@dataclass(frozen=True)
class Calibration:
    """One forward pass of the teacher over calibration data; every criterion reads its statistics."""

    num_sequences: Count = renamed(128, was="samples")
    """Calibration sequences (1,024 in the papers)."""
    seq_len: SeqLen = renamed(256, was="block")
    """Tokens in a sequence."""
    seed: Natural = 0
    """Seed of the draw from the calibration split."""
    precision: Precision = later("32-true", noop="32-true")
    """Arithmetic of the passes; auto is what this machine computes fastest. Statistics are summed in float64."""


@dataclass(frozen=True)
class ThroughputTest:
    """Requests that the student and its teacher serve in turns: prompts are read, and each is continued greedily."""

    batch_size: Count = renamed(8, was="batch")
    """Sequences served at once."""
    prompt_len: Count = renamed(128, was="prompt")
    """Tokens of each prompt."""
    max_new_tokens: Annotated[int, Ge(2)] = renamed(32, was="new")
    """Tokens that each prompt is continued by."""
    num_repeats: Count = renamed(9, was="repeats")
    """Requests of each of the two that are timed, after one of warm-up."""
    precision: Literal["32-true", "bf16-true"] = "32-true"
    """Weights and arithmetic of both."""


@dataclass(frozen=True)
class TaskTest:
    """Accuracy in tasks whose files lie in a folder, with the prompts of lm-eval, which must be installed."""

    names: tuple[str, ...] = ("hellaswag", "piqa", "blimp")
    """Tasks, as `lit-prune evaluate --tasks` names them."""
    data_dir: str = "tasks"
    """Folder of their files, as their authors publish them."""
    num_documents: Count | None = 500
    """Documents of each task, the first ones, of all its subtasks in equal number; None takes all."""
    num_fewshot: Natural = 0
    """Examples before each document."""
    fingerprint: str | None = None
    """sha256 of the files and the version of lm-eval. Filled in by the program: it replaces `data_dir` in the
    address."""


@dataclass(frozen=True)
class Evaluation:
    """Language-model loss on the validation split, and what else there is to measure of a student."""

    num_sequences: Count = renamed(64, was="blocks")
    """Validation sequences, drawn once and the same for every cell."""
    seq_len: SeqLen = renamed(256, was="block")
    """Tokens in a sequence."""
    precision: Precision = later("32-true", noop="32-true")
    """Arithmetic of the forward passes, of student and teacher; auto is what this machine computes fastest. Losses are
    taken from the logits in float32 and summed in float64."""
    num_validations: Natural = later(0, noop=0, was="checks")
    """Equal parts of the retraining after each of which the student is evaluated, and once before the first; 0
    evaluates it at the end only."""
    second_corpus: Corpus | None = later(None, noop=None, was="second")
    """Another text to measure the language-model loss on, on its own validation split."""
    throughput: ThroughputTest | None = later(None, noop=None, was="speed")
    """Measure on this machine how fast the student serves requests, and in how much memory, beside its teacher."""
    tasks: TaskTest | None = later(None, noop=None)
    """Measure the student's accuracy in tasks too: a table then has a column of each, and of their mean."""


@dataclass(frozen=True)
class Cell:
    """One measurement: a teacher, pruned and distilled, evaluated."""

    corpus: Corpus = Corpus()
    """Text for calibration, retraining and validation."""
    teacher: Teacher = Teacher()
    """The model that is compressed."""
    calibration: Calibration = renamed(Calibration(), was="importance")
    """The calibration pass."""
    prune: PruneMethod = field(default_factory=default_method, metadata={"was": "student"})
    """The pruning method, `prune.method`, and its settings."""
    distill: Distill = Distill()
    """The retraining."""
    evaluation: Evaluation = Evaluation()
    """The measurement."""
    seed: Natural = 0
    """Seed of the retraining: the order of the data, and new weights where there are any."""
    parent: Changes | None = later(None, noop=None, was="source")
    """The cell whose retrained student is pruned instead of the teacher, by what it has different from this one:
    `parent.prune.num_hidden_layers` and so on, `{}` for nothing, null for no parent. It may have a parent in turn,
    to any depth,
    and as it lies inside this cell no chain leads back to itself. Sizes of `prune` are shares of its student."""


Choices = tuple[int | float | None, ...]
"""Sizes of one axis to choose among: counts, shares of the teacher in (0, 1], and None, which keeps the teacher's, as
an axis without choices does."""


@dataclass(frozen=True)
class SearchSpace:
    """Shapes to choose among: every combination of the choices that has the requested parameters and speed
    (Minitron, Table 12)."""

    num_hidden_layers: Choices = renamed((), was="layers")
    """Layers."""
    num_attention_heads: Choices = renamed((), was="heads")
    """Query heads of each layer."""
    intermediate_size: Choices = renamed((), was="neurons")
    """MLP neurons of each layer."""
    expansion: tuple[float, ...] = ()
    """MLP neurons of each layer as multiples of the hidden channels of the same shape, instead of
    `intermediate_size`."""
    hidden_size: Choices = renamed((), was="hidden")
    """Hidden channels."""
    min_params: int | float | None = renamed(None, was="least")
    """Fewest parameters, a count or a share of the teacher's; None sets no bound."""
    max_params: int | float | None = renamed(None, was="most")
    """Most parameters, a count or a share of the teacher's; None sets no bound."""
    speedup: Positive | None = None
    """Least throughput, in forward tokens/s over the teacher's, measured on this machine; None measures nothing."""


def name_of_shape(layers: int, heads: int, neurons: int, hidden: int) -> str:
    """Return a shape of the space as a row of a table."""
    return f"{layers} layers, {heads} heads, {neurons} neurons, {hidden} hidden"


@dataclass(frozen=True)
class Profile:
    """The scale a table is asked at."""

    cell: Cell
    """The base cell."""
    seeds: Count = 3
    """Seeds of every row that is retrained."""
    calibration_seeds: Count = renamed(3, was="draws")
    """Seeds of every row that is not, where a seed is a draw of calibration sequences: they cost little."""
    second_corpus: Corpus = renamed(Corpus(path="readmes", holdout_fraction=0.45), was="second_text")
    """Another text, for the tables that measure the loss on two (WikiText2 in the papers)."""
    new_text: Changes = (("corpus.path", "readmes"), ("corpus.holdout_fraction", 0.2))
    """Fields of the cell for a text the teacher was not trained on: the second training phase and the distillation text
    of the tables about a fine-tuned teacher."""
    search_space: SearchSpace | None = renamed(None, was="search")
    """Shapes that a search compares; None: there is nothing to search."""
    deep_teacher: Teacher | None = None
    """A teacher with enough layers for the tables that compare them, where that of the cell has too few; None: there is
    no other."""
