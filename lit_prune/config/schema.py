"""What is asked: the sections of a cell (settings.py changes them, address.py names what they ask for).

A cell is the whole recipe of one measurement, and everything in it is identity. Where and how fast it runs (device,
workers, store) is never in here. No torch.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

EVIDENCE = ("importance", "head_channels", "preactivations", "distances", "removals", "gradients")
"""What a calibration pass can measure, each a stage of its own: "importance" are the moments of every site."""

Size = int | float | Literal["auto"] | None
"""Target of one axis: a whole number is a count, a fraction in (0, 1] a share of the teacher, None keeps it, and
"auto" is whatever share meets a number of parameters."""


Scalar = bool | int | float | str | None
Changes = tuple[tuple[str, Scalar | tuple[Scalar, ...]], ...]
"""Dotted field and value, in the order they are made."""


class ConfigError(ValueError):
    """A request that cannot be met, in one line: what is wrong and what is allowed, after the field if it is one's."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        field, colon, problem = message.partition(": ")
        self.field, self.problem = (field, problem) if colon and " " not in field else ("", message)


@contextlib.contextmanager
def errors_of(fields: Mapping[str, str]) -> Iterator[None]:
    """Let errors name other fields: those of a section that is read in the place of another, or flags.

    `fields` maps sections or fields to what stands in their place, such as corpus -> evaluation.second_corpus.
    """
    try:
        yield
    except ConfigError as error:
        for old, new in fields.items():
            if error.field == old or error.field.startswith(f"{old}."):
                raise ConfigError(f"{new}{error.field.removeprefix(old)}: {error.problem}") from None
        raise


def renamed(default: Any, was: str, values: Mapping[str, str] = MappingProxyType({})) -> Any:
    """Declare a field that had another name, or values with other names (new -> old): addresses keep the old ones."""
    return field(default=default, metadata={"was": was, "values": values})


def later(default: Any, noop: Any, was: str | None = None, values: Mapping[str, str] = MappingProxyType({})) -> Any:
    """Declare a field added after results exist: left out of the address while it holds `noop`, so old ones stand.

    `was` and `values` are as for `renamed`.
    """
    return field(default=default, metadata={"noop": noop, "values": values} | ({"was": was} if was else {}))


@dataclass(frozen=True)
class Corpus:
    """Text, split by document into train, validation and calibration.

    A document is a file of plain text (or what `separator` parts), an article of WikiText, a row of JSON, CSV, Parquet
    or a hub data set, or a README. A source that is one single document is cut into three contiguous parts."""

    path: str = renamed("python", was="source")
    """"python" (this machine's standard library and its documentation topics), "python+dependencies" (and the
    source of six packages lit_prune depends on), "readmes" (the descriptions of the packages it depends on), a file or
    folder (.txt .md .tokens .json .jsonl .ndjson .csv, each also with .gz or .zst, and .parquet), or the id of a data
    set on the Hugging Face hub, which is streamed."""
    text_column: str = renamed("text", was="column")
    """Column that holds the text, in JSON, CSV, Parquet and hub data; dots lead into nested objects (meta.text)."""
    separator: str | None = later(None, noop=None)
    """Text between two documents of a text file, such as three newlines; None makes each file a document."""
    group: str | None = later(None, noop=None)
    """Column whose value is the same in rows that belong to the same split, such as a book's title; None splits rows
    by their text."""
    name: str | None = renamed(None, was="subset")
    """Configuration name of a hub data set."""
    loss_on: Literal["all", "assistant"] = later("all", noop="all")
    """Tokens that are scored where the column holds conversations (messages with a role and a content): all, or the
    assistant's turns alone. They are written with the tokenizer's chat template."""
    bos: bool | None = later(None, noop=None)
    """Begin every sequence of tokens with the tokenizer's begin-of-text token; None does so if the tokenizer begins
    texts with it. The loss may go down or up, as the model was trained. It takes one position of each sequence."""
    holdout_fraction: float = renamed(0.1, was="heldout")
    """Share of the documents kept for validation; the same share again is kept for calibration."""
    max_tokens: int | None = None
    """Tokens of the train split to take from the stream; None takes all there are."""
    fingerprint: str | None = None
    """sha256 of the text, or revision on the hub. Filled in by the program: it replaces `source` in the address."""


@dataclass(frozen=True)
class Optimizer:
    """AdamW with linear warm-up and cosine decay, stepped once a batch."""

    lr: float = 1e-3
    """Peak learning rate."""
    min_lr: float = 1e-5
    """Learning rate at the last step of a run longer than `warmup`."""
    warmup_steps: int = renamed(10, was="warmup")
    """Steps of linear warm-up. A run of no more steps has no decay and ends at lr * steps / warmup."""
    beta1: float = 0.9
    """Decay of the first moment. The papers do not state theirs."""
    beta2: float = 0.95
    """Decay of the second moment. The papers do not state theirs."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; vectors (norms, biases) have none."""
    max_grad_norm: float = renamed(1.0, was="clip")
    """Largest global gradient norm."""


@dataclass(frozen=True)
class Pretraining:
    """A Llama with grouped-query attention and an untied head, trained from random weights. The defaults are the
    recipe of the teacher that ships with the package."""

    corpus: Corpus = Corpus(path="python+dependencies")
    """Text to train on; its train split also trains the byte-level BPE tokenizer."""
    vocab_size: int = 2048
    """Entries of the tokenizer."""
    hidden_size: int = renamed(192, was="hidden")
    """Width of the residual stream."""
    num_hidden_layers: int = renamed(6, was="layers")
    """Blocks."""
    num_attention_heads: int = renamed(6, was="heads")
    """Query heads."""
    num_key_value_heads: int = renamed(2, was="kv_heads")
    """Key/value groups."""
    head_dim: int = 32
    """Width of one head."""
    intermediate_size: int = renamed(512, was="neurons")
    """Width of the MLP."""
    seq_len: int = renamed(256, was="block")
    """Tokens in a sequence."""
    batch_size: int = renamed(8, was="batch")
    """Sequences in a step."""
    max_steps: int = renamed(7000, was="steps")
    """Optimizer steps."""
    optimizer: Optimizer = renamed(Optimizer(lr=3e-3, min_lr=1e-4, warmup_steps=200), was="optim")
    """Optimizer and schedule."""
    seed: int = 0
    """Seed of the initial weights and the data order."""


@dataclass(frozen=True)
class Finetuning:
    """Light fine-tuning of the unpruned teacher with cross-entropy on the cell's text, before it is pruned and imitated
    (In Practice, section on teacher correction)."""

    max_steps: int = renamed(100, was="steps")
    """Optimizer steps."""
    seq_len: int = renamed(256, was="block")
    """Tokens in a sequence."""
    batch_size: int = renamed(8, was="batch")
    """Sequences in a step."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Arithmetic of the training steps."""
    optimizer: Optimizer = renamed(Optimizer(lr=6e-4, min_lr=1e-4, warmup_steps=10), was="optim")
    """Optimizer and schedule. The paper's peak is a fifth of that of the teacher's own training, after 120 steps of
    warm-up; this is a fifth for the teacher that ships with the package."""
    seed: int = 0
    """Seed of the order of the data."""


@dataclass(frozen=True)
class Teacher:
    """The model that is compressed and then imitated."""

    model: str | None = "python-3.1M"
    """A teacher that ships with the package, a folder in Hugging Face layout, or a hub id; None trains one."""
    pretraining: Pretraining | None = None
    """How to train the teacher where `model` is None."""
    finetune: Finetuning | None = later(None, noop=None, was="correction")
    """How to fine-tune it on `corpus` first; None takes it as it is."""
    fingerprint: str | None = None
    """sha256 of the weights, or revision on the hub. Filled in by the program: it replaces `model` in the address."""


@dataclass(frozen=True)
class Calibration:
    """One forward pass of the teacher over calibration data; every criterion reads its statistics."""

    num_sequences: int = renamed(128, was="samples")
    """Calibration sequences (1,024 in the papers)."""
    seq_len: int = renamed(256, was="block")
    """Tokens in a sequence."""
    seed: int = 0
    """Seed of the draw from the calibration split."""


@dataclass(frozen=True)
class Prune:
    """What is kept of the teacher, and by which score."""

    width_criterion: str = renamed("activation", was="criterion")
    """Score that ranks the units of each axis."""
    batch_aggregation: Literal["l2", "mean", "var"] = renamed("l2", was="batch")
    """Aggregation of activation scores over sequences (Minitron, section 2.2)."""
    seq_aggregation: Literal["l2", "mean", "var"] = renamed("mean", was="seq")
    """Aggregation of activation scores over the tokens of a sequence."""
    hidden_size: Size = renamed(0.75, was="hidden")
    """Hidden channels to keep, the same in every block."""
    intermediate_size: Size = renamed(0.6875, was="neurons")
    """MLP neurons to keep in each block."""
    num_attention_heads: Size = renamed(0.667, was="heads")
    """Query heads to keep in each block, in equal number inside every KV group."""
    num_key_value_heads: Size = later(None, noop=None, was="kv_groups")
    """KV groups to keep in each block, each with its query heads; None keeps all."""
    num_hidden_layers: Size = later(None, noop=None, was="layers")
    """Blocks to keep; None keeps all."""
    num_parameters: Size = later(None, noop=None, was="parameters")
    """Parameters to keep, a count or a share of the teacher's: the sizes that are "auto" all get the share that comes
    nearest to it."""
    drop_layers: tuple[int, ...] = later((), noop=(), was="drop")
    """Blocks to drop, 0-based, instead of a number of `layers` chosen by score."""
    layer_criterion: str = later("influence", noop="influence", was="block_criterion")
    """Score that ranks the blocks."""
    layer_selection: str = later(
        "lowest_score",
        noop="lowest_score",
        was="blocks",
        values={"lowest_score": "lowest", "last": "tail", "last_but_final": "tail_but_last"},
    )
    """Which blocks go: those that score lowest one by one, the contiguous span that scores lowest as a whole, the last
    ones, or the last ones but the very last."""
    width_allocation: str = later("uniform", noop="uniform", was="widths")
    """Neurons and heads of each block: as many in every one, or wherever they score highest across the model, with as
    many parameters in all."""
    num_iterations: int = later(1, noop=1, was="rounds")
    """Rounds of importance estimation, each followed by an equal part of the pruning (Minitron, section 2.2)."""
    head_merging: Literal["off", "paper", "reversed_sign"] = later(
        "off", noop="off", was="head_residual", values={"reversed_sign": "opposite"}
    )
    """Add the difference to pruned heads back to the weakest kept ones: as printed (Minitron, section 2.3: the query
    weights become 2 kept - pruned), or with the opposite sign (they become those of the pruned head)."""
    init: Literal["teacher", "random"] = later("teacher", noop="teacher", was="weights")
    """Where the student's weights come from; random ones of the same shape are training from scratch."""
    plan_path: str | None = later(None, noop=None, was="plan")
    """A plan (plan.json of another run, perhaps edited) to carry out instead of making one."""
    init_from: str | None = later(None, noop=None, was="model")
    """An already small model (folder or hub id) to start from instead of pruning the teacher."""
    fingerprint: str | None = later(None, noop=None)
    """sha256 of `model`'s weights or of `plan`. Filled in by the program."""


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (LoRA), which are trained in the place of the weights and merged into them at the end."""

    rank: int = 8
    """Rank of each adapter."""
    alpha: float = 16.0
    """An adapter is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Share of each adapter's input that is dropped."""
    target_modules: tuple[str, ...] | None = renamed(None, was="targets")
    """Linear layers of the blocks that get one, such as q_proj or down_proj; None is all of them."""


@dataclass(frozen=True)
class Distill:
    """L = ce_weight * L_CLM + kd_weight * L_logits + alpha * L_is (Minitron, section 3)."""

    logit_loss: str = "kld"
    """Loss between the vocabularies' distributions of teacher and student."""
    temperature: float = 1.0
    """Both logits are divided by it first."""
    scale_by_temperature_squared: bool = renamed(False, was="tau_squared")
    """Multiply L_logits by temperature squared; the papers do not."""
    mixture: float | None = later(None, noop=None, was="mix")
    """Parameter, above 0 and below 1, of a logit loss that compares with a mixture of teacher and student: of the
    teacher's share in it for jsd and skew_kld, of the student's for skew_reverse_kld; None is the published default."""
    top_k: int | None = later(None, noop=None)
    """L_logits over the teacher's likeliest tokens alone, both distributions renormalised over these; None takes the
    whole vocabulary. Validation always does."""
    ce_weight: float | Literal["balanced"] = renamed(0.0, was="w_clm")
    """Weight of the student's cross-entropy on the labels; "balanced" is that of all other terms together over L_CLM,
    detached, at every step."""
    kd_weight: float = renamed(1.0, was="w_logits")
    """Weight of the logit loss."""
    alpha: float | Literal["dynamic"] = 0.0
    """Weight of the intermediate loss; "dynamic" is L_logits / L_is, detached, at every step."""
    hidden_loss: str = "cosine"
    """Loss between intermediate states."""
    match_embedding: bool = renamed(False, was="embedding")
    """L_emb: compare the embedding output, read after the first block's norm."""
    match_mlp_input: tuple[str, ...] = renamed((), was="mlp_input")
    """L_i: "teacher:student" blocks (0-based, or last, last-1, ...) compared at the input of the MLP."""
    match_layer_output: tuple[str, ...] = renamed((), was="block_output")
    """L_o: "teacher:student" blocks compared at their output, read after the norm that follows."""
    match_attention: tuple[str, ...] = later((), noop=(), was="attention")
    """L_att: "teacher:student" blocks whose relations between tokens are compared: of queries, of keys and of values,
    as their linears give them, before rotary embedding."""
    relation_heads: int = later(8, noop=8)
    """Parts that queries, keys and values are each cut into for L_att, whatever heads the models have."""
    projection: Literal["shared", "per_pair"] = later("shared", noop="shared")
    """Linear map from the student's states to the teacher's width: one for all, or one for each pair of states. There
    is none where the widths are equal, nor for L_att."""
    seq_len: int = renamed(256, was="block")
    """Tokens in a sequence."""
    batch_size: int = renamed(8, was="batch")
    """Sequences in a step."""
    max_steps: int = renamed(100, was="steps")
    """Optimizer steps; 0 evaluates the pruned student as it is."""
    max_tokens: int | None = later(None, noop=None, was="tokens")
    """Budget in tokens instead of `steps`, which become the nearest whole number; None leaves it to them."""
    max_flops: float | None = later(None, noop=None, was="flops")
    """Budget in FLOPs of training the student and of the teacher's forward pass where the objective needs it, instead
    of `steps`; None leaves it to them."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Arithmetic of the training steps."""
    optimizer: Optimizer = renamed(Optimizer(), was="optim")
    """Optimizer and schedule."""
    teacher_optimizer: Optimizer | None = later(None, noop=None, was="teacher_optim")
    """Correct the teacher alongside: with every batch it takes a step of its own on cross-entropy, by this optimizer
    and schedule (In Practice, Figure 5); None leaves it as it is."""
    lora: Lora | None = later(None, noop=None)
    """Train low-rank adapters instead of the weights; needs peft."""
    train_last_layers: int | None = later(None, noop=None, was="last")
    """Train only so many last blocks, the final norm and the head (with it the embedding, where they are tied)."""

    @property
    def needs_teacher(self) -> bool:
        """Whether the objective has a term that compares with the teacher."""
        return bool(self.kd_weight or self.alpha)


@dataclass(frozen=True)
class ThroughputTest:
    """Requests that the student and its teacher serve in turns: prompts are read, and each is continued greedily."""

    batch_size: int = renamed(8, was="batch")
    """Sequences served at once."""
    prompt_len: int = renamed(128, was="prompt")
    """Tokens of each prompt."""
    max_new_tokens: int = renamed(32, was="new")
    """Tokens that each prompt is continued by."""
    num_repeats: int = renamed(9, was="repeats")
    """Requests of each of the two that are timed, after one of warm-up."""
    precision: Literal["32-true", "bf16-true"] = "32-true"
    """Weights and arithmetic of both."""


@dataclass(frozen=True)
class Evaluation:
    """Language-model loss on the validation split, and what else there is to measure of a student."""

    num_sequences: int = renamed(64, was="blocks")
    """Validation sequences, drawn once and the same for every cell."""
    seq_len: int = renamed(256, was="block")
    """Tokens in a sequence."""
    num_validations: int = later(0, noop=0, was="checks")
    """Equal parts of the retraining after each of which the student is evaluated, and once before the first; 0
    evaluates it at the end only."""
    second_corpus: Corpus | None = later(None, noop=None, was="second")
    """Another text to measure the language-model loss on, on its own validation split."""
    throughput: ThroughputTest | None = later(None, noop=None, was="speed")
    """Measure on this machine how fast the student serves requests, and in how much memory, beside its teacher."""


@dataclass(frozen=True)
class Cell:
    """One measurement: a teacher, pruned and distilled, evaluated."""

    corpus: Corpus = Corpus()
    """Text for calibration, retraining and validation."""
    teacher: Teacher = Teacher()
    """The model that is compressed."""
    calibration: Calibration = renamed(Calibration(), was="importance")
    """The calibration pass."""
    prune: Prune = renamed(Prune(), was="student")
    """The pruned shape."""
    distill: Distill = Distill()
    """The retraining."""
    evaluation: Evaluation = Evaluation()
    """The measurement."""
    seed: int = 0
    """Seed of the retraining: the order of the data, and new weights where there are any."""
    parent: Changes | None = later(None, noop=None, was="source")
    """The cell whose retrained student is pruned instead of the teacher, by what it has different from this one:
    `parent.prune.num_hidden_layers` and so on, `{}` for nothing, null for no source. It may have a source in turn,
    to any depth,
    and as it lies inside this cell no chain leads back to itself. Sizes of `student` are shares of its student."""


Choices = tuple[int | float | None, ...]
"""Sizes of one axis to choose among: counts, shares of the teacher in (0, 1], and None, which keeps the teacher's, as
an axis without choices does."""


@dataclass(frozen=True)
class SearchSpace:
    """Shapes to choose among: every combination of the choices that has the parameters and the speed asked for
    (Minitron, Table 12)."""

    num_hidden_layers: Choices = renamed((), was="layers")
    """Blocks."""
    num_attention_heads: Choices = renamed((), was="heads")
    """Query heads of each block."""
    intermediate_size: Choices = renamed((), was="neurons")
    """MLP neurons of each block."""
    expansion: tuple[float, ...] = ()
    """MLP neurons of each block as multiples of the hidden channels of the same shape, instead of `neurons`."""
    hidden_size: Choices = renamed((), was="hidden")
    """Hidden channels."""
    min_params: int | float | None = renamed(None, was="least")
    """Fewest parameters, a count or a share of the teacher's; None sets no bound."""
    max_params: int | float | None = renamed(None, was="most")
    """Most parameters, a count or a share of the teacher's; None sets no bound."""
    speedup: float | None = None
    """Least throughput, in forward tokens/s over the teacher's, measured on this machine; None measures nothing."""


def name_of_shape(layers: int, heads: int, neurons: int, hidden: int) -> str:
    """A shape of the space as a row of a table."""
    return f"{layers} layers, {heads} heads, {neurons} neurons, {hidden} hidden"


@dataclass(frozen=True)
class Profile:
    """The scale a table is asked at."""

    cell: Cell
    """The base cell."""
    seeds: int = 3
    """Seeds of every row that is retrained."""
    calibration_seeds: int = renamed(3, was="draws")
    """Seeds of every row that is not, where a seed is a draw of calibration sequences: they cost little."""
    second_corpus: Corpus = renamed(Corpus(path="readmes", holdout_fraction=0.45), was="second_text")
    """Another text, for the tables that measure the loss on two (WikiText2 in the papers)."""
    new_text: Changes = (("corpus.path", "readmes"), ("corpus.holdout_fraction", 0.2))
    """Fields of the cell for a text the teacher was not trained on: the second training phase and the distillation text
    of the tables about a fine-tuned teacher."""
    search_space: SearchSpace | None = renamed(None, was="search")
    """Shapes that a search compares; None: there is nothing to search."""
    deep_teacher: Teacher | None = None
    """A teacher with enough blocks for the tables that compare them, where that of the cell has too few; None: there is
    no other."""


def unknown(what: str, name: str, allowed: Any) -> str:
    """Return one line for a name that does not exist, with the nearest one and all that do."""
    names = sorted(allowed)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; perhaps you meant {near[0]!r}" if near else ""
    return f"unknown {what} {name!r}{hint}; there are: {', '.join(names)}"


def _alike(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def unknown_field(path: str, fields: Iterable[str]) -> str:
    """Return one line for a field that does not exist, with the three nearest ones and the command that lists all."""

    def distance(field: str) -> float:
        wanted, name = path.rpartition(".")[2], field.rpartition(".")[2]
        return -_alike(path, field) - max(_alike(wanted, word) for word in (name, *name.split("_")))

    *first, last = (repr(field) for field in sorted(fields, key=distance)[:3])
    near = f"{', '.join(first)} or {last}" if first else last
    return f"unknown field {path!r}; perhaps you meant {near}; `lit-prune fields` lists all"


def expand(path: str | os.PathLike[str]) -> Path:
    """A path as the shell would read it."""
    return Path(os.path.expandvars(path)).expanduser()
