"""Training FLOPs from Hugging Face configs alone; no weights are allocated.

A multiply-add counts as two FLOPs. Only matrix products are counted; norms, activation functions, softmax and the
optimizer are negligible.

The backward pass adds one product for each factor that requires a gradient, as in autograd. A value requires a gradient
if a trained weight precedes it, so frozen layers below the lowest trained weight have no backward pass, and frozen
layers above it compute only the gradients of activations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lit_prune.models.model_family import ModelFamily, anatomy_of, head_dim_of
from lit_prune.models.shape import parameter_shapes, widths_of


@dataclass(frozen=True)
class Trainable:
    """The trained weights of a model; all by default."""

    last: int | None = None
    """Train only this many last layers, the final norm and the head (and with it a tied embedding)."""
    rank: int | None = None
    """Train only LoRA adapters of this rank."""
    targets: tuple[str, ...] = ()
    """Names, within a layer, of the linear modules with an adapter."""

    def layer(self, index: int, num_layers: int) -> bool:
        """Return whether all weights of a layer are trained."""
        return self.rank is None and (self.last is None or index >= num_layers - self.last)

    def embedding(self, config: Any) -> bool:
        """Return whether the embedding is trained."""
        return self.rank is None and (self.last is None or config.tie_word_embeddings)

    @property
    def head(self) -> bool:
        """Whether the head is trained."""
        return self.rank is None


class Value(NamedTuple):
    """A vector that a model computes for each token."""

    width: int
    requires_grad: bool


@dataclass
class Products:
    """FLOPs per token of the matrix products of a training step."""

    flops: float = 0.0
    values: dict[tuple[str, int], Value] = field(default_factory=dict)
    """Hidden states that a loss may read, keyed as in `lit_prune.distill.hidden_states`."""

    def multiply(self, count: float, *requires_grad: bool) -> bool:
        """Add a product of `count` multiplications, and the gradients of the factors that require one.

        Returns whether the product requires a gradient.
        """
        self.flops += 2 * count * (1 + sum(requires_grad))
        return any(requires_grad)


def num_multiplied(config: Any) -> int:
    """Return the number of weights that multiply every token: all linears of the layers, and the head, tied or not."""
    anatomy = anatomy_of(config)
    inside = sum(math.prod(shape) for name, shape in parameter_shapes(config).items() if anatomy.is_linear(name))
    return inside + config.vocab_size * config.hidden_size


def forward_flops(config: Any, seq_len: int, *, causal: bool = True) -> float:
    """Return the FLOPs per token of a forward pass over sequences of `seq_len` tokens, including the head.

    Attention counts the positions that a token attends to; without `causal` also the masked ones, as in kernels that
    do not skip them (see `minitron_step`).
    """
    heads = [widths_of(config, i).num_attention_heads for i in range(config.num_hidden_layers)]
    seen = [attended(seq_len, window, causal) for window in windows_of(config)]
    attention = sum(4 * n * head_dim_of(config) * positions for n, positions in zip(heads, seen, strict=True))
    return 2 * num_multiplied(config) + attention


def training_flops(student: Any, seq_len: int, teacher: Any = None, *, causal: bool = True) -> float:
    """Return the FLOPs per token of training all weights of a student, plus its teacher's forward pass, if any."""
    own = training_products(student, seq_len, Trainable(), causal=causal).flops
    return own if teacher is None else own + forward_flops(teacher, seq_len, causal=causal)


def minitron_step(student: Any, teacher: Any = None, *, batch: int = 1152, seq_len: int = 4096) -> float:
    """Return the FLOPs of an optimizer step as in the paper, which counts masked positions too (Minitron, 4.1)."""
    return batch * seq_len * training_flops(student, seq_len, teacher, causal=False)


def training_products(
    config: Any, seq_len: int, trainable: Trainable, *, causal: bool = True, head_gradient: bool = True
) -> Products:
    """Return the products of the forward and the backward pass of a model over sequences of `seq_len` tokens.

    Without `head_gradient` the logits are computed, but no loss of them is minimised.
    """
    found, num_layers = Products(), config.num_hidden_layers
    shapes = parameter_shapes(config)
    stream = trainable.embedding(config)
    for index, window in enumerate(windows_of(config)):
        stream = _Layer(config, index, shapes, trainable, found).add(stream, attended(seq_len, window, causal))
    last = stream or trainable.layer(num_layers - 1, num_layers)
    found.values["output", num_layers] = Value(config.hidden_size, last)
    found.multiply(config.vocab_size * config.hidden_size, head_gradient and last, head_gradient and trainable.head)
    return found


class _Layer:
    """The matrix products of one layer."""

    def __init__(
        self, config: Any, index: int, shapes: Mapping[str, tuple[int, ...]], trainable: Trainable, found: Products
    ) -> None:
        self.config, self.index, self.trainable, self.found = config, index, trainable, found
        self.anatomy, self.hidden, self.own = anatomy_of(config), config.hidden_size, widths_of(config, index)
        prefix = f"{self.anatomy.layers}.{index}."
        self.shapes = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
        self.trained = trainable.layer(index, config.num_hidden_layers)

    def add(self, stream: bool, positions: float) -> bool:
        """Add the products and return whether the residual stream after the layer requires a gradient.

        `stream` is the same before the layer. A token attends to `positions` positions.
        """
        anatomy, between = self.anatomy, stream
        if self.own.num_attention_heads:
            read = self._normed(stream, anatomy.input_norm)
            self._show("output", self.hidden, read)
            attended = self._linear(anatomy.attention_output, self._attention(read, positions), into_stream=True)
            between = self._shortcut("attention_shortcut", stream) or attended
        if not self.own.intermediate_size:
            return between
        mlp_reads = self._normed(stream if _is_parallel(self.config, anatomy) else between, anatomy.mlp_norm)
        self._show("mlp", self.hidden, mlp_reads)
        self.found.values.setdefault(("output", self.index), Value(self.hidden, mlp_reads))
        neurons = [self._linear(name, mlp_reads) for name in anatomy.mlp_input]
        made = self._linear(anatomy.mlp_output, any(neurons), into_stream=True)
        return self._shortcut("mlp_shortcut", between) or made

    def _attention(self, read: bool, positions: float) -> bool:
        """Add queries, keys and values, their scores and the weighted sum; return whether it requires a gradient."""
        linears = self.anatomy.attention_input
        made = [self._linear(name, read) for name in linears]
        query, key, value = made if len(made) > 1 else made * 3
        head_dim = head_dim_of(self.config)
        width, others = self.own.num_attention_heads * head_dim, self.own.num_key_value_heads * head_dim
        self._show("query", width, query)
        self._show("key", others, key)
        self._show("value", others, value)
        scores = self.found.multiply(width * positions, query, key)
        return self.found.multiply(width * positions, scores, value)

    def _linear(self, name: str, read: bool, *, into_stream: bool = False) -> bool:
        """Add a linear layer or its two factors, and adapters; return whether its output requires a gradient."""
        if f"{name}.weight" not in self.shapes:
            return self._linear(f"{name}.1", self._linear(f"{name}.0", read), into_stream=into_stream)
        first, second = self.shapes[f"{name}.weight"]
        made = self.found.multiply(first * second, read, self.trained)
        rank = self.trainable.rank
        if rank is None or name not in self.trainable.targets:
            return made
        stored_as_in_out = (self.anatomy.axes_of(f"{name}.weight")[0] == "hidden") != into_stream
        inputs, outputs = (first, second) if stored_as_in_out else (second, first)
        return self.found.multiply(rank * outputs, self.found.multiply(rank * inputs, read, True), True)

    def _shortcut(self, name: str, stream: bool) -> bool:
        """Add a shortcut, if the layer has one; return whether its output requires a gradient."""
        return self._linear(name, stream, into_stream=True) if f"{name}.weight" in self.shapes else stream

    def _normed(self, read: bool, norm: str | None) -> bool:
        """Return whether the output of a norm requires a gradient; some norms have no weights."""
        weighted = norm is not None and any(name.startswith(f"{norm}.") for name in self.shapes)
        return read or (self.trained and weighted)

    def _show(self, kind: str, width: int, requires_grad: bool) -> None:
        self.found.values[kind, self.index] = Value(width, requires_grad)


def _is_parallel(config: Any, anatomy: ModelFamily) -> bool:
    """Return whether attention and MLP both read the residual stream before the layer."""
    shares_norm = anatomy.mlp_norm is not None and anatomy.mlp_norm == anatomy.input_norm
    return shares_norm or getattr(config, "use_parallel_residual", False)


def windows_of(config: Any) -> list[int | None]:
    """Return the attention window of each layer in positions; None means unlimited."""
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in types]


def attended(seq_len: int, window: int | None = None, causal: bool = True) -> float:
    """Return the mean number of positions that a token of a sequence attends to, itself included."""
    reach = min(window or seq_len, seq_len)
    return (reach * (reach + 1) / 2 + (seq_len - reach) * reach) / seq_len if causal else reach
