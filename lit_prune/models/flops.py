"""What training costs in FLOPs, from Hugging Face configs alone: no weight is made.

A multiplication and its addition count as two. Only products of matrices are counted; norms, activation functions,
softmax and the optimizer are negligible beside them.

In training, each product also gives the gradient of every factor that requires one. That follows autograd: a value
requires a gradient if a trained weight comes before it, so frozen layers below the lowest trained weight have no
backward pass, and frozen layers above it compute the gradients of activations only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lit_prune.models.model_family import ModelFamily, anatomy_of, head_dim_of
from lit_prune.models.shape import meta_model


@dataclass(frozen=True)
class Trainable:
    """Which weights of a model are trained; all of them by default."""

    last: int | None = None
    """Train only so many last layers, the final norm and the head (with it the embedding, if they are tied)."""
    rank: int | None = None
    """Train only LoRA adapters of this rank."""
    targets: tuple[str, ...] = ()
    """Linear layers with an adapter, by their names in a layer."""

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
    """The FLOPs a token of the products of a training step."""

    flops: float = 0.0
    values: dict[tuple[str, int], Value] = field(default_factory=dict)
    """What an intermediate loss may read of the model, by the names of `lit_prune.distill.hidden_states`."""

    def multiply(self, count: float, *requires_grad: bool) -> bool:
        """Add a product of `count` multiplications and the gradients of those of its factors that require one.

        Returns whether the product requires a gradient.
        """
        self.flops += 2 * count * (1 + sum(requires_grad))
        return any(requires_grad)


def num_multiplied(config: Any) -> int:
    """Parameters that every token is multiplied by: all matrices but those looked up, and the head, tied or not."""
    anatomy = anatomy_of(config)
    inside = sum(p.numel() for name, p in meta_model(config).named_parameters() if anatomy.is_linear(name))
    return inside + config.vocab_size * config.hidden_size


def forward_flops(config: Any, seq_len: int, *, causal: bool = True) -> float:
    """FLOPs a token of a forward pass over sequences of `seq_len` tokens, the head included.

    Attention counts the positions a token may look at; without `causal` it counts masked ones too, as kernels that
    skip nothing do (see `minitron_step`).
    """
    layers, own = range(config.num_hidden_layers), config.is_heterogeneous
    heads = [(config.per_layer_config[i] if own else config).num_attention_heads for i in layers]
    seen = [attended(seq_len, window, causal) for window in _windows(config)]
    attention = sum(4 * n * head_dim_of(config) * positions for n, positions in zip(heads, seen, strict=True))
    return 2 * num_multiplied(config) + attention


def training_flops(student: Any, seq_len: int, teacher: Any = None, *, causal: bool = True) -> float:
    """FLOPs a token of training all weights of a student, and of the forward pass of its teacher if it has one."""
    own = training_products(student, seq_len, Trainable(), causal=causal).flops
    return own if teacher is None else own + forward_flops(teacher, seq_len, causal=causal)


def minitron_step(student: Any, teacher: Any = None, *, batch: int = 1152, seq_len: int = 4096) -> float:
    """FLOPs of an optimizer step as the paper counts them: attention to masked positions included (Minitron, 4.1)."""
    return batch * seq_len * training_flops(student, seq_len, teacher, causal=False)


def training_products(
    config: Any, seq_len: int, trainable: Trainable, *, causal: bool = True, head_gradient: bool = True
) -> Products:
    """Return the products of the forward and the backward pass of a model over sequences of `seq_len` tokens.

    Without `head_gradient` the logits are computed but no loss of theirs is minimised.
    """
    found, num_layers = Products(), config.num_hidden_layers
    sizes = {name: p.numel() for name, p in meta_model(config).named_parameters()}
    stream = trainable.embedding(config)
    for index, window in enumerate(_windows(config)):
        stream = _Layer(config, index, sizes, trainable, found).add(stream, attended(seq_len, window, causal))
    last = stream or trainable.layer(num_layers - 1, num_layers)
    found.values["output", num_layers] = Value(config.hidden_size, last)
    found.multiply(config.vocab_size * config.hidden_size, head_gradient and last, head_gradient and trainable.head)
    return found


class _Layer:
    """The products of one layer."""

    def __init__(self, config: Any, index: int, sizes: dict[str, int], trainable: Trainable, found: Products) -> None:
        self.config, self.index, self.trainable, self.found = config, index, trainable, found
        self.anatomy, self.hidden = anatomy_of(config), config.hidden_size
        prefix = f"{self.anatomy.layers}.{index}."
        self.sizes = {name.removeprefix(prefix): size for name, size in sizes.items() if name.startswith(prefix)}
        self.trained = trainable.layer(index, config.num_hidden_layers)

    def add(self, stream: bool, positions: float) -> bool:
        """Add the products; return whether the residual stream requires a gradient after the layer, as it does before
        it if `stream`. A token attends to `positions` positions."""
        anatomy = self.anatomy
        read = self._normed(stream, anatomy.input_norm)
        attended = self._linear(anatomy.attention_output, self._attention(read, positions), into_stream=True)
        mlp_reads = self._normed(stream if _is_parallel(self.config, anatomy) else stream or attended, anatomy.mlp_norm)
        neurons = [self._linear(name, mlp_reads) for name in anatomy.mlp_input]
        made = self._linear(anatomy.mlp_output, any(neurons), into_stream=True)
        self._show("output", self.hidden, read)
        self._show("mlp", self.hidden, mlp_reads)
        return stream or attended or made

    def _attention(self, read: bool, positions: float) -> bool:
        """Add queries, keys and values, their scores and the weighted sum; return whether it requires a gradient."""
        linears = self.anatomy.attention_input
        made = [self._linear(name, read) for name in linears]
        query, key, value = made if len(made) > 1 else made * 3
        own = self.config.per_layer_config[self.index] if self.config.is_heterogeneous else self.config
        width = own.num_attention_heads * head_dim_of(self.config)
        others = (sum(self.sizes[f"{name}.weight"] for name in linears) // self.hidden - width) // 2
        self._show("query", width, query)
        self._show("key", others, key)
        self._show("value", others, value)
        scores = self.found.multiply(width * positions, query, key)
        return self.found.multiply(width * positions, scores, value)

    def _linear(self, name: str, read: bool, *, into_stream: bool = False) -> bool:
        """Add a linear layer and its adapter; return whether its output requires a gradient."""
        size = self.sizes[f"{name}.weight"]
        made = self.found.multiply(size, read, self.trained)
        rank = self.trainable.rank
        if rank is None or name not in self.trainable.targets:
            return made
        inputs, outputs = (size // self.hidden, self.hidden) if into_stream else (self.hidden, size // self.hidden)
        return self.found.multiply(rank * outputs, self.found.multiply(rank * inputs, read, True), True)

    def _normed(self, read: bool, norm: str | None) -> bool:
        """Return whether the output of a norm requires a gradient; some norms have no weights."""
        weighted = norm is not None and any(name.startswith(f"{norm}.") for name in self.sizes)
        return read or (self.trained and weighted)

    def _show(self, kind: str, width: int, requires_grad: bool) -> None:
        self.found.values[kind, self.index] = Value(width, requires_grad)


def _is_parallel(config: Any, anatomy: ModelFamily) -> bool:
    """Return whether attention and MLP of a layer both read the stream that enters the layer."""
    shares_norm = anatomy.mlp_norm is not None and anatomy.mlp_norm == anatomy.input_norm
    return shares_norm or getattr(config, "use_parallel_residual", False)


def _windows(config: Any) -> list[int | None]:
    """Positions each layer's attention reaches back over; None is all of them."""
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in types]


def attended(seq_len: int, window: int | None = None, causal: bool = True) -> float:
    """Positions a token attends to, itself included, in the mean over a sequence."""
    reach = min(window or seq_len, seq_len)
    return (reach * (reach + 1) / 2 + (seq_len - reach) * reach) / seq_len if causal else reach
