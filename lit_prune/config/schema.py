"""The sections of a cell and of a profile (overrides.py changes them, address.py hashes them).

A cell fully describes one measurement, and every field of it is part of the address of its result. Settings that
change only where and how fast it runs (device, workers, store) are not part of a cell. No torch.
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
"""Statistics that a calibration pass can collect, each a stage of its own; "importance" are the activation moments."""


@dataclass(frozen=True)
class Teacher:
    """The model that is compressed and then imitated."""

    model: str | None = "python-3.1M"
    """A teacher by name (`lit-prune teachers` lists them), a folder in Hugging Face layout, a .gguf file, or a hub id;
    None trains a new teacher by `teacher.pretraining`."""
    pretraining: Pretraining | None = None
    """How to train the teacher if `model` is None."""
    finetune: Finetuning | None = later(None, noop=None, was="correction")
    """How to fine-tune the teacher on `corpus` before it is pruned; None does not fine-tune it."""
    fingerprint: str | None = None
    """sha256 of the weights, or revision on the hub. Filled in by the program: it replaces `model` in the address."""


@dataclass(frozen=True)
class Calibration:
    """The pass of the teacher over calibration sequences that collects the statistics of all criteria."""

    num_sequences: Count = renamed(128, was="samples")
    """Calibration sequences (1,024 in the papers)."""
    seq_len: SeqLen = renamed(256, was="block")
    """Tokens in a sequence."""
    seed: Natural = 0
    """Seed of the draw from the calibration split."""
    precision: Precision = later("32-true", noop="32-true")
    """Precision of the passes; auto selects the fastest on this machine. Statistics are summed in float64."""


@dataclass(frozen=True)
class ThroughputTest:
    """Requests that the student and its teacher serve in turns: prompts are processed and continued greedily."""

    batch_size: Count = renamed(8, was="batch")
    """Sequences served at once."""
    prompt_len: Count = renamed(128, was="prompt")
    """Tokens of each prompt."""
    max_new_tokens: Annotated[int, Ge(2)] = renamed(32, was="new")
    """Tokens generated after each prompt."""
    num_repeats: Count = renamed(9, was="repeats")
    """Timed requests of each model, after one warm-up request."""
    precision: Literal["32-true", "bf16-true"] = "32-true"
    """Precision of the weights and the arithmetic of both models."""


@dataclass(frozen=True)
class TaskTest:
    """Accuracy on tasks that are read from files in a folder, with the prompts of lm-eval, which must be installed."""

    names: tuple[str, ...] = ("hellaswag", "piqa", "blimp")
    """Tasks, as `lit-prune evaluate --tasks` names them."""
    data_dir: str = "tasks"
    """Folder with the files of the tasks, as their authors publish them."""
    num_documents: Count | None = 500
    """Number of documents of each task: its first ones, equally many of each subtask; None uses all."""
    num_fewshot: Natural = 0
    """Few-shot examples before each document."""
    fingerprint: str | None = None
    """sha256 of the files and the version of lm-eval. Filled in by the program: it replaces `data_dir` in the
    address."""


@dataclass(frozen=True)
class BasinTest:
    """Volume of the region of weights around the student in which the validation loss is not much higher
    (arXiv 1906.03291), by random directions in which every filter moves in proportion to its norm.

    The estimate is biased low in many dimensions: compare only models with as many weights, and as many directions."""

    num_directions: Count = 20
    """Random directions."""
    epsilon: Positive = 0.1
    """Rise of the loss that ends the region, in nats per token."""
    num_sequences: Count = 8
    """Validation sequences over which the loss is measured."""
    tolerance: Positive = 1e-3
    """Relative error of each radius."""
    seed: Natural = 0
    """Seed of the directions, the same for every cell."""


@dataclass(frozen=True)
class Evaluation:
    """Language-model loss on the validation split, and optional further measurements of a student."""

    num_sequences: Count = renamed(64, was="blocks")
    """Validation sequences, drawn once and the same for every cell."""
    seq_len: SeqLen = renamed(256, was="block")
    """Tokens in a sequence."""
    precision: Precision = later("32-true", noop="32-true")
    """Precision of the forward passes of student and teacher; auto selects the fastest on this machine. Losses are
    computed from float32 logits and summed in float64."""
    num_validations: Natural = later(0, noop=0, was="checks")
    """Validations during the retraining, at equal distances, plus one before it; 0 evaluates only at the end."""
    second_corpus: Corpus | None = later(None, noop=None, was="second")
    """Another text on whose validation split the language-model loss is measured as well."""
    throughput: ThroughputTest | None = later(None, noop=None, was="speed")
    """Measure the speed and memory of the student relative to its teacher on this machine; None does not."""
    tasks: TaskTest | None = later(None, noop=None)
    """Measure the student's accuracy on tasks as well. A table then has one column per task and one of their mean."""
    basin: BasinTest | None = later(None, noop=None)
    """Measure the volume of the basin of the student's loss as well; None does not."""


@dataclass(frozen=True)
class Cell:
    """One measurement: a teacher is pruned, the student is distilled and evaluated."""

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
    """Seed of the retraining: the order of the data and newly initialised weights."""
    parent: Changes | None = later(None, noop=None, was="source")
    """The cell whose retrained student is pruned instead of the teacher; null for none. It inherits every field of this
    cell except those set under `parent.*`, such as `parent.prune.num_hidden_layers`; `{}` changes nothing. A parent may
    have a parent, to any depth. The sizes of `prune` are then shares of the parent's student."""


Choices = tuple[int | float | None, ...]
"""Sizes of one axis to choose from: counts, shares of the teacher in (0, 1], or None for the teacher's size. An axis
without choices keeps the teacher's size."""


@dataclass(frozen=True)
class SearchSpace:
    """Candidate shapes: every combination of the choices that meets the bounds on parameters and speed
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
    """Minimum speedup over the teacher in forward tokens/s, measured on this machine; None sets no bound."""


def name_of_shape(layers: int, heads: int, neurons: int, hidden: int) -> str:
    """Return a shape of the space as a row of a table."""
    return f"{layers} layers, {heads} heads, {neurons} neurons, {hidden} hidden"


@dataclass(frozen=True)
class Profile:
    """The scale at which a table is run."""

    cell: Cell
    """The base cell."""
    seeds: Count = 3
    """Seeds of every row that is retrained."""
    calibration_seeds: Count = renamed(3, was="draws")
    """Seeds of every row that is not retrained; each draws other calibration sequences."""
    second_corpus: Corpus = renamed(Corpus(path="readmes", holdout_fraction=0.45), was="second_text")
    """The second text of tables that measure the loss on two texts (WikiText2 in the papers)."""
    new_text: Changes = (("corpus.path", "readmes"), ("corpus.holdout_fraction", 0.2))
    """Fields of the cell that select a text on which the teacher was not trained. Tables about a fine-tuned teacher use
    it for the second training phase and for distillation."""
    search_space: SearchSpace | None = renamed(None, was="search")
    """Shapes that `search_ablation` compares; None if the profile has none."""
    deep_teacher: Teacher | None = None
    """A teacher for tables that need more layers than the teacher of the cell has; None if there is no other."""
