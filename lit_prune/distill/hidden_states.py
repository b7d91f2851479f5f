"""Hidden states of teacher and student that are compared, and the hooks that read them.

A state is read after the norm that follows it (Minitron, section 3): the embedding output after the first layer's input
norm, a layer's output after the next layer's input norm (the final norm for the last layer, the norm before the MLP if
the next layer has no attention), a layer's MLP input after the norm before the MLP. In families without such norms it
is read without one. Queries, keys and values are the outputs of their linears, before a query or key norm and before
rotary embedding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.hooks import RemovableHandle

from lit_prune.config import ConfigError, Distill
from lit_prune.models.model_family import anatomy_of, head_dim_of, layers_of
from lit_prune.models.shape import widths_of

VECTORS = ("query", "key", "value")
"""The vectors that attention projects from a layer's input, in the order of fused projections."""

State = tuple[str, int]
"""("output", i): the residual stream after i layers, so ("output", 0) is the embedding; ("mlp", i): the MLP input of
layer i; ("query", i), ("key", i), ("value", i): the queries, keys and values of layer i."""

States = dict[State, Tensor]
"""State -> its values, [batch, seq, width]."""


class Pair(NamedTuple):
    """A state of the teacher and the state of the student that is matched to it."""

    teacher: State
    student: State


def pairs_of(distill: Distill, teacher_layers: int, student_layers: int) -> list[Pair]:
    """Return the pairs of hidden states that a recipe matches.

    Raises:
        ConfigError: if a map is not teacher:student, or names a layer that does not exist.
    """
    pairs = [Pair(("output", 0), ("output", 0))] if distill.match_embedding else []
    for name, kind, after in (("match_mlp_input", "mlp", 0), ("match_layer_output", "output", 1)):
        for teacher, student in _maps(distill, name, teacher_layers, student_layers):
            pairs.append(Pair((kind, teacher + after), (kind, student + after)))
    return pairs


def relations_of(distill: Distill, teacher_layers: int, student_layers: int) -> list[Pair]:
    """Return the pairs of queries, of keys and of values whose relations a recipe compares.

    Raises:
        ConfigError: as `pairs_of`.
    """
    maps = _maps(distill, "match_attention", teacher_layers, student_layers)
    return [Pair((kind, teacher), (kind, student)) for teacher, student in maps for kind in VECTORS]


def check_relation_heads(distill: Distill, *configs: Any) -> None:
    """Check that the number of relation heads divides the head width of models with these configs.

    It then divides the vectors into equal parts for any number of heads, which differs between queries and keys, and
    between teacher and student.

    Raises:
        ConfigError: if it does not.
    """
    for width in map(head_dim_of, configs):
        if distill.relation_heads < 1 or width % distill.relation_heads:
            raise ConfigError(
                f"distill.relation_heads: {distill.relation_heads} is no divisor of {width}, the width of a head"
            )


def check_sublayers(states: Iterable[State], config: Any, whose: str) -> None:
    """Check that the layers of a model with this config have the attention or the MLP in which states are read.

    Raises:
        ConfigError: if one has not.
    """
    for kind, index in states:
        shape = widths_of(config, index) if kind != "output" else None
        if shape and not (shape.intermediate_size if kind == "mlp" else shape.num_attention_heads):
            field, part = ("match_mlp_input", "an MLP") if kind == "mlp" else ("match_attention", "attention")
            raise ConfigError(f"distill.{field}: must name layers with {part}, got layer {index} of {whose}, without")


def _maps(distill: Distill, name: str, teacher_layers: int, student_layers: int) -> list[tuple[int, int]]:
    """Return the pairs (layer of the teacher, layer of the student) that a field of the recipe maps."""
    maps = []
    for text in getattr(distill, name):
        theirs, colon, ours = text.partition(":")
        if not colon:
            raise ConfigError(f"distill.{name}: {text!r} is not teacher:student, like 29:13 or last-2:last-2")
        teacher = _index(theirs, teacher_layers, f"distill.{name}: teacher layer")
        maps.append((teacher, _index(ours, student_layers, f"distill.{name}: student layer")))
    return maps


def _index(text: str, num_layers: int, what: str) -> int:
    match = re.fullmatch(r"(\d+)|last(?:-(\d+))?", text.strip())
    index = -1 if not match else int(match[1]) if match[1] else num_layers - 1 - int(match[2] or 0)
    if not 0 <= index < num_layers:
        raise ConfigError(f"{what} {text!r} is not one of 0 to {num_layers - 1} or last, last-1, ...")
    return index


class HiddenStateReader:
    """Read the wanted states in the forward pass that runs inside `with`.

    Hooks exist only inside `with`, since other runs reuse the teacher and the student is saved.
    """

    def __init__(self, model: nn.Module | None, wanted: list[State]) -> None:
        self._model, self._wanted = model, set(wanted)
        self._handles: list[RemovableHandle] = []
        self._batch = 0

    def __enter__(self) -> States:
        seen: States = {}
        if self._model is not None and self._wanted:
            layers = layers_of(self._model)
            self._handles = [layers[0].register_forward_pre_hook(self._measure)]
            self._handles += [self._hook(layers, state, seen) for state in self._wanted]
            for index in {index for _, index in self._wanted if index < len(layers)}:
                if isinstance(layers[index], FSDPModule):
                    self._handles += _as_outputs(layers[index], [one for one in self._wanted if one[1] == index], seen)
        return seen

    def __exit__(self, *raised: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _measure(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._batch = len(inputs[0])

    def _hook(self, layers: list[nn.Module], state: State, seen: States) -> RemovableHandle:
        """Register and return the hook of a state: on the norm that outputs it, else on the module that reads it."""

        def keep(value: Tensor) -> None:  # OPT's MLP flattens them to [batch * seq, width]
            seen[state] = value if value.dim() == 3 else value.unflatten(0, (self._batch, -1))

        assert self._model is not None
        anatomy = anatomy_of(self._model.config)
        kind, index = state
        if kind in VECTORS:
            own = anatomy.query is not None
            linear = layers[index].get_submodule(anatomy.attention_input[VECTORS.index(kind) if own else 0])
            cut = (lambda made: made) if own else _vectors_in(self._model, layers[index], kind)
            return linear.register_forward_hook(lambda module, inputs, output: keep(cut(output)))
        if index == len(layers):
            norm = self._model.get_submodule(anatomy.final_norm)
            return norm.register_forward_hook(lambda module, inputs, output: keep(output))
        absent = not widths_of(self._model.config, index).num_attention_heads
        name = anatomy.mlp_norm if kind == "mlp" or absent else anatomy.input_norm
        if name is not None:
            norm = layers[index].get_submodule(name)
            return norm.register_forward_hook(lambda module, inputs, output: keep(output))
        reader = layers[index].get_submodule(anatomy.mlp or "") if kind == "mlp" else layers[index]
        return reader.register_forward_pre_hook(lambda module, inputs: keep(inputs[0]))


def _as_outputs(layer: nn.Module, states: list[State], seen: States) -> list[RemovableHandle]:
    """Make FSDP take states for outputs of their layer, whose weights it gathers once an output gets a gradient.

    Otherwise the weights would be missing where an objective compares a state but does not read the layer's output.
    """
    return [
        layer.register_forward_hook(
            lambda module, inputs, output: (output, [seen[one] for one in states]), prepend=True
        ),
        layer.register_forward_hook(lambda module, inputs, output: output[0]),
    ]


def _vectors_in(model: nn.Module, layer: nn.Module, kind: str) -> Callable[[Tensor], Tensor]:
    """Return a function that extracts the queries, keys or values from the output of a fused projection.

    They are concatenated if the family's description says so, and otherwise interleaved per head, as in GPT-NeoX.
    """
    anatomy, place = anatomy_of(model.config), VECTORS.index(kind)
    (path,) = anatomy.attention_input
    if not any(isinstance(axis, tuple) for axis in anatomy.axes_of(f"{path}.weight")):
        head_dim = head_dim_of(model.config)
        return lambda made: made.unflatten(-1, (-1, len(VECTORS), head_dim))[..., place, :].flatten(-2)
    into = anatomy.axes_of(f"{anatomy.attention_output}.weight").index("head")
    queries = layer.get_parameter(f"{anatomy.attention_output}.weight").shape[into]

    def cut(made: Tensor) -> Tensor:
        others = (made.shape[-1] - queries) // 2
        return made.split((queries, others, others), -1)[place]

    return cut
