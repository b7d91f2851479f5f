"""Which intermediate states of teacher and student are compared, and how they are read.

A state is always read after the norm that follows it (Minitron, section 3): the embedding output after the first
block's input norm, a block's output after the next block's input norm (the final norm after the last block), a block's
MLP input after the norm before the MLP.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lit_prune.config import ConfigError, Distill
from lit_prune.models.anatomy import anatomy_of, blocks_of

State = tuple[str, int]
"""("output", i): the stream after i blocks, so ("output", 0) is the embedding; ("mlp", i): the MLP input of block i."""

States = dict[State, Tensor]
"""What was read, each [batch, seq, width]."""


class Pair(NamedTuple):
    """Two states that are made alike."""

    teacher: State
    student: State


def pairs_of(distill: Distill, teacher_blocks: int, student_blocks: int) -> list[Pair]:
    """The pairs a recipe names.

    Raises:
        ConfigError: a map that is not teacher:student, or a block one of them does not have.
    """
    pairs = [Pair(("output", 0), ("output", 0))] if distill.embedding else []
    for name, maps, kind, after in (
        ("mlp_input", distill.mlp_input, "mlp", 0),
        ("block_output", distill.block_output, "output", 1),
    ):
        for text in maps:
            theirs, colon, ours = text.partition(":")
            if not colon:
                raise ConfigError(f"distill.{name}: {text!r} is not teacher:student, like 29:13 or last-2:last-2")
            teacher = _index(theirs, teacher_blocks, f"distill.{name}: teacher block")
            student = _index(ours, student_blocks, f"distill.{name}: student block")
            pairs.append(Pair((kind, teacher + after), (kind, student + after)))
    return pairs


def _index(text: str, num_blocks: int, what: str) -> int:
    match = re.fullmatch(r"(\d+)|last(?:-(\d+))?", text.strip())
    index = -1 if not match else int(match[1]) if match[1] else num_blocks - 1 - int(match[2] or 0)
    if not 0 <= index < num_blocks:
        raise ConfigError(f"{what} {text!r} is not one of 0 to {num_blocks - 1} or last, last-1, ...")
    return index


class StateReader:
    """Takes the outputs of the norms that show the wanted states, in the forward pass inside `with`.

    Outside of it there is no hook: the same teacher serves the next run, and the student is kept.
    """

    def __init__(self, model: nn.Module | None, wanted: list[State]) -> None:
        self._norms = {state: _norm_after(model, state) for state in set(wanted)} if model is not None else {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> States:
        seen: States = {}
        self._handles = [norm.register_forward_hook(_keep(seen, s)) for s, norm in self._norms.items()]
        return seen

    def __exit__(self, *raised: object) -> None:
        for handle in self._handles:
            handle.remove()


def _keep(seen: States, state: State) -> Callable[[nn.Module, object, Tensor], None]:
    def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
        seen[state] = output

    return hook


def _norm_after(model: nn.Module, state: State) -> nn.Module:
    anatomy, blocks = anatomy_of(model.config), blocks_of(model)
    kind, index = state
    if kind == "mlp":
        return blocks[index].get_submodule(anatomy.mlp_norm)
    if index == len(blocks):
        return model.get_submodule(anatomy.final_norm)
    return blocks[index].get_submodule(anatomy.input_norm)
