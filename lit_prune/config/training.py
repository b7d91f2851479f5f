"""Sections of a cell that train a model. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from lit_prune.config.corpus import Corpus
from lit_prune.config.fields import ConfigError, Count, Fraction, Natural, NonNegative, Positive, SeqLen, later, renamed
from lit_prune.config.precision import Precision


@dataclass(frozen=True)
class Optimizer:
    """AdamW or SGD with linear warm-up and cosine decay; one step per batch."""

    lr: Positive = 1e-3
    """Peak learning rate."""
    min_lr: NonNegative = 1e-5
    """Learning rate at the last step of a run longer than `warmup_steps`."""
    warmup_steps: Natural = renamed(10, was="warmup")
    """Steps of linear warm-up. A run that is not longer has no decay and ends at lr * max_steps / warmup_steps."""
    schedule_steps: Count | None = later(None, noop=None)
    """Steps of the whole schedule if the run is only a part of it, as in iterative pruning; None is the run's steps."""
    schedule_start: Natural = later(0, noop=0)
    """Step of the schedule at which the run begins, 0-based."""
    beta1: Fraction = 0.9
    """Decay of the first moment, or the momentum of SGD. The papers do not state theirs."""
    beta2: Fraction = 0.95
    """Decay of the second moment. The papers do not state theirs."""
    weight_decay: NonNegative = 0.1
    """Decoupled weight decay of matrices; vectors (norms, biases) have none. With SGD it is part of the gradient."""
    max_grad_norm: Positive = renamed(1.0, was="clip")
    """Maximum global norm to which gradients are clipped."""
    algorithm: Literal["adamw", "sgd"] = later("adamw", noop="adamw")
    """AdamW, or SGD with the momentum `beta1`; `beta2` is for AdamW alone."""


def check_decay(optimizer: Optimizer, place: str) -> None:
    """Check that the learning rate does not rise where it should decay; `place` is the path of the section.

    Raises:
        ConfigError: if the last rate is above the peak.
    """
    if optimizer.min_lr > optimizer.lr:
        raise ConfigError(f"{place}.min_lr: must be <= {place}.lr, {optimizer.lr:g}, got {optimizer.min_lr:g}")


@dataclass(frozen=True)
class Pretraining:
    """A Llama with grouped-query attention and an untied head, trained from random weights. The defaults are the
    recipe of the teacher that ships with the package."""

    corpus: Corpus = Corpus(path="python+dependencies")
    """Text to train on; its train split also trains the byte-level BPE tokenizer."""
    vocab_size: Annotated[int, Ge(257)] = 2048
    """Entries of the tokenizer."""
    hidden_size: Count = renamed(192, was="hidden")
    """Width of the residual stream."""
    num_hidden_layers: Count = renamed(6, was="layers")
    """Layers."""
    num_attention_heads: Count = renamed(6, was="heads")
    """Query heads."""
    num_key_value_heads: Count = renamed(2, was="kv_heads")
    """Key/value groups."""
    head_dim: Count = 32
    """Width of one head."""
    intermediate_size: Count = renamed(512, was="neurons")
    """Width of the MLP."""
    seq_len: SeqLen = renamed(256, was="block")
    """Tokens in a sequence."""
    batch_size: Count = renamed(8, was="batch")
    """Sequences in a step."""
    max_steps: Count = renamed(7000, was="steps")
    """Optimizer steps."""
    optimizer: Optimizer = renamed(Optimizer(lr=3e-3, min_lr=1e-4, warmup_steps=200), was="optim")
    """Optimizer and schedule."""
    seed: Natural = 0
    """Seed of the initial weights and the data order."""


@dataclass(frozen=True)
class Finetuning:
    """Light fine-tuning of the unpruned teacher with cross-entropy on the cell's text, before it is pruned and imitated
    (In Practice, section on teacher correction)."""

    max_steps: Count = renamed(100, was="steps")
    """Optimizer steps."""
    seq_len: SeqLen = renamed(256, was="block")
    """Tokens in a sequence."""
    batch_size: Count = renamed(8, was="batch")
    """Sequences in a step."""
    precision: Precision = "32-true"
    """Precision of the training steps; auto selects the fastest on this machine."""
    optimizer: Optimizer = renamed(Optimizer(lr=6e-4, min_lr=1e-4, warmup_steps=10), was="optim")
    """Optimizer and schedule. In the paper the peak is a fifth of that of the teacher's pretraining, after 120 steps of
    warm-up. The default is a fifth of that of the teacher that ships with the package."""
    seed: Natural = 0
    """Seed of the order of the data."""


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (LoRA), trained instead of the weights and merged into them at the end."""

    rank: Count = 8
    """Rank of each adapter."""
    alpha: Positive = 16.0
    """An adapter is multiplied by alpha / rank."""
    dropout: Fraction = 0.0
    """Share of each adapter's input that is dropped."""
    target_modules: tuple[str, ...] | None = renamed(None, was="targets")
    """Linear modules of the layers that get an adapter, such as q_proj or down_proj; None is all of them."""
    quantize: Literal["nf4"] | None = later(None, noop=None)
    """Type in which the linears of all layers are frozen under the adapters (QLoRA); None leaves them as they are. nf4
    has 4 bits and needs bitsandbytes; the student is saved dequantised."""


@dataclass(frozen=True)
class DynamicLoading:
    """Dynamic batch loading over the domains of `corpus.domain` (Sheared LLaMA, 2310.06694, section 2.2).

    The share w of a domain in a batch begins with its share of the text. Every `interval` steps it becomes proportional
    to w exp(max(l - r, 0)), with the model's cross-entropy l on validation sequences of the domain and a reference r.
    """

    interval: Count = 50
    """Steps between changes of the shares."""
    references: tuple[float, ...] = ()
    """Cross-entropy to reach in each domain, in nats, in the order of the names of domains; empty takes that of the
    teacher before the first step. The paper predicts that of a model of the student's size."""
    num_sequences: Count = 32
    """Validation sequences of each domain, at most, that measure its loss (500 in the paper)."""


@dataclass(frozen=True)
class Distill:
    """L = ce_weight * L_CLM + kd_weight * L_logits + alpha * L_is (Minitron, section 3)."""

    imitate: Literal["teacher", "parent"] = later("teacher", noop="teacher")
    """Model whose outputs the student imitates: the teacher of the cell, or the retrained student of its parent."""
    logit_loss: str = "kld"
    """Loss between the next-token distributions of teacher and student."""
    temperature: Positive = 1.0
    """Divisor of the logits of both models."""
    scale_by_temperature_squared: bool = renamed(False, was="tau_squared")
    """Multiply L_logits by the square of the temperature; the papers do not."""
    mixture: Annotated[float, Gt(0), Lt(1)] | None = later(None, noop=None, was="mix")
    """Parameter of a logit loss that uses a mixture of teacher and student, above 0 and below 1; None is the published
    default. It is the teacher's share for jsd and skew_kld, the student's share for skew_reverse_kld."""
    top_k: int | None = later(None, noop=None)
    """Compute L_logits over this many of the teacher's most likely tokens, with both distributions renormalised; None
    uses the whole vocabulary, as validation always does."""
    ce_weight: NonNegative | Literal["balanced"] = renamed(0.0, was="w_clm")
    """Weight of the student's cross-entropy with the labels (L_CLM); "balanced" is the sum of all other terms divided
    by L_CLM, detached, at every step."""
    kd_weight: NonNegative = renamed(1.0, was="w_logits")
    """Weight of the logit loss."""
    alpha: NonNegative | Literal["dynamic"] = 0.0
    """Weight of the hidden loss (L_is); "dynamic" is L_logits / L_is, detached, at every step."""
    hidden_loss: str = "cosine"
    """Loss between hidden states."""
    match_embedding: bool = renamed(False, was="embedding")
    """L_emb: compare the embedding output, read after the first layer's norm."""
    match_mlp_input: tuple[str, ...] = renamed((), was="mlp_input")
    """L_i: "teacher:student" layers (0-based, or last, last-1, ...) compared at the input of the MLP."""
    match_layer_output: tuple[str, ...] = renamed((), was="block_output")
    """L_o: "teacher:student" layers compared at their output, read after the norm that follows."""
    match_attention: tuple[str, ...] = later((), noop=(), was="attention")
    """L_att: "teacher:student" layers whose relations between tokens are compared (MiniLMv2): of queries, keys and
    values, read at the outputs of their linear layers, before rotary embedding."""
    relation_heads: Count = later(8, noop=8)
    """Parts into which queries, keys and values are split for L_att, independent of the heads of the models."""
    projection: Literal["shared", "per_pair"] = later("shared", noop="shared")
    """Linear map from the student's states to the teacher's width: one shared map, or one per pair of states. Equal
    widths and L_att need none."""
    seq_len: SeqLen = renamed(256, was="block")
    """Tokens in a sequence."""
    batch_size: Count = renamed(8, was="batch")
    """Sequences in a step."""
    max_steps: Natural = renamed(100, was="steps")
    """Optimizer steps; 0 evaluates the pruned student as it is."""
    max_tokens: Count | None = later(None, noop=None, was="tokens")
    """Budget in tokens instead of `max_steps`, converted to the nearest number of steps; None uses `max_steps`."""
    max_flops: Positive | None = later(None, noop=None, was="flops")
    """Budget in FLOPs instead of `max_steps`: training the student, and the teacher's forward pass if the objective
    needs it; None uses `max_steps`."""
    precision: Precision = "32-true"
    """Precision of the training steps; auto selects the fastest on this machine."""
    optimizer: Optimizer = renamed(Optimizer(), was="optim")
    """Optimizer and schedule."""
    teacher_optimizer: Optimizer | None = later(None, noop=None, was="teacher_optim", begin=Finetuning().optimizer)
    """Optimizer and schedule to fine-tune the teacher alongside the student: the teacher takes one cross-entropy step
    with every batch (In Practice, Figure 5); None keeps the teacher fixed."""
    lora: Lora | None = later(None, noop=None)
    """Train low-rank adapters instead of the weights; needs peft."""
    dynamic_loading: DynamicLoading | None = later(None, noop=None)
    """Draw more sequences of the domains of the text whose loss exceeds a reference; None draws all sequences alike."""
    train_last_layers: Count | None = later(None, noop=None, was="last")
    """Train only this many last layers, the final norm and the output head (and the embedding if it is tied to the
    head); None trains all weights."""

    @property
    def needs_teacher(self) -> bool:
        """Whether the objective has a term that compares with the teacher."""
        return bool(self.kd_weight or self.alpha)
