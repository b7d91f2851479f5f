"""What is asked: the sections of a cell (settings.py changes them, address.py names what they ask for).

A cell is the whole recipe of one measurement, and everything in it is identity. Where and how fast it runs (device,
workers, store) is never in here. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lit_prune.config.fields import Changes, later, renamed
from lit_prune.config.prune import PruneMethod, default_method

EVIDENCE = ("importance", "head_channels", "preactivations", "distances", "removals", "gradients")
"""What a calibration pass can measure, each a stage of its own: "importance" are the moments of every site."""


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
    prune: PruneMethod = field(default_factory=default_method, metadata={"was": "student"})
    """The pruning method, `prune.method`, and its settings."""
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
