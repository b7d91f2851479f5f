"""Enumerate the shapes of a search: all combinations of a space that the family and the bounds allow.

Parameters are counted from configs; the table that uses the search measures the loss of each shape.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lit_prune import cpu
from lit_prune.config import ConfigError, Prune, SearchSpace, errors_of, name_of_shape
from lit_prune.config.renames import former_sizes
from lit_prune.evaluate.throughput import speedup
from lit_prune.models.random_weights import random_model
from lit_prune.models.shape import ModelShape, parameter_counter, shape_of
from lit_prune.pruning import surgery
from lit_prune.pruning.prune import first_units
from lit_prune.pruning.target import target
from lit_prune.store import Node, Store
from lit_prune.store.address import digest
from lit_prune.store.environment import environment


@dataclass(frozen=True)
class Candidate:
    """A shape of the space."""

    shape: ModelShape
    parameters: int
    """Parameters of the whole model, tied weights counted once."""

    @property
    def changes(self) -> dict[str, int]:
        """Settings of a student of this shape; its other sizes, such as `num_key_value_heads`, stay unset."""
        return {
            f"prune.{axis}": getattr(self.shape, axis)
            for axis in ("num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_size")
        }

    @property
    def label(self) -> str:
        """Its row in a table."""
        return name_of_shape(
            self.shape.num_hidden_layers,
            self.shape.num_attention_heads,
            self.shape.intermediate_size,
            self.shape.hidden_size,
        )


def candidates(config: Any, space: SearchSpace) -> list[Candidate]:
    """Return the shapes of a space for a teacher with this config, in the order of the paper's list.

    Layers descend, then heads, neurons and hidden channels ascend (Minitron, Table 19).

    Combinations that the family's config forbids are skipped.

    Raises:
        ConfigError: if no shape can have a choice, `neurons` and `expansion` are both set, a bound is no number
            of parameters, or no shape lies within the bounds.
    """
    count = parameter_counter(config)
    least, most = _window(space, count(shape_of(config)))
    found = [Candidate(shape, count(shape)) for shape in _shapes(config, space)]
    inside = [candidate for candidate in found if least <= candidate.parameters <= most]
    if not inside:
        raise ConfigError(_nearest(found, least, most))
    return sorted(
        inside,
        key=lambda c: (
            -c.shape.num_hidden_layers,
            c.shape.num_attention_heads,
            c.shape.intermediate_size,
            c.shape.hidden_size,
        ),
    )


@dataclass(frozen=True)
class Search:
    """A search space for students of one teacher; speeds are for [batch, seq_len] tokens on this machine."""

    config: Any
    """The teacher's."""
    space: SearchSpace
    batch: int
    seq_len: int
    speeds: Path
    """Folder of measured speeds, kept so that timing noise does not change the rows of a table."""

    @functools.cached_property
    def inside(self) -> list[Candidate]:
        """Return the candidates within the bounds of the space.

        Raises:
            ConfigError: as `candidates`.
        """
        return candidates(self.config, self.space)

    @property
    def _node(self) -> Node:
        teacher = [self.config.model_type, former_sizes(dataclasses.asdict(shape_of(self.config)))]
        return Node(self.speeds / digest([*teacher, [one.label for one in self.inside], self.batch, self.seq_len]))

    @property
    def measured(self) -> bool:
        """Whether the speeds that the space requires are known."""
        return self.space.speedup is None or self._node.result is not None

    def measure(self) -> None:
        """Measure the speeds that the space requires, with random weights, unless they are known."""
        if not self.measured:
            Store(self.speeds).check_writable(self._node.folder)
            cpu.prepare()
            speeds = _speeds(self.inside, random_model(self.config), self.batch, self.seq_len)
            self._node.finish(speeds, **environment())

    def found(self) -> list[Candidate]:
        """Return the candidates that are fast enough, or all if their speeds are not measured yet.

        Raises:
            ConfigError: as `inside`, or if none is fast enough.
        """
        ratios = self._node.result
        if self.space.speedup is None or ratios is None:
            return self.inside
        fast = [candidate for candidate in self.inside if ratios[candidate.label] >= self.space.speedup]
        if not fast:
            best = max(ratios, key=ratios.__getitem__)
            raise ConfigError(
                f"search_space.speedup: must be at most that of the fastest shape, {ratios[best]:.2f} ({best}), got "
                f"{self.space.speedup:g}"
            )
        return fast


def _speeds(found: Sequence[Candidate], teacher: Any, batch: int, seq_len: int) -> dict[str, float]:
    """Return label -> throughput relative to the teacher's, with which each takes turns."""
    ratios = {}
    for candidate in found:
        student = surgery.apply(teacher, first_units(teacher.config, candidate.shape))
        ratios[candidate.label] = speedup(student, teacher, batch, seq_len, _REPEATS).ratio
    return ratios


_REPEATS = 25
"""Timed passes per model. On a busy machine one model measured twice differed by up to 1.17x with 9, 1.06x with 25."""


def _shapes(config: Any, space: SearchSpace) -> set[ModelShape]:
    """Return all combinations the family allows.

    Raises:
        ConfigError: if a choice occurs in none of them.
    """
    if space.intermediate_size and space.expansion:
        raise ConfigError("search_space: give either intermediate_size or expansion, and leave the other empty")
    shapes: set[ModelShape] = set()
    possible: set[tuple[int, str]] = set()
    refused: list[tuple[set[tuple[int, str]], ConfigError]] = []
    for choice in _combinations(space):
        # Compared as text: 1 (a count) equals 1.0 (a share).
        sizes = {(axis, repr(size)) for axis, size in enumerate(choice)}
        try:
            with errors_of({"prune": "search_space"}):
                shapes.add(_shape(config, *choice))
            possible |= sizes
        except ConfigError as error:
            refused.append((sizes, error))
    for sizes, reason in refused:
        if not sizes <= possible:
            raise reason
    return shapes


def _combinations(space: SearchSpace) -> Iterator[tuple[Any, ...]]:
    axes = (
        space.num_hidden_layers,
        space.num_attention_heads,
        space.intermediate_size,
        space.expansion,
        space.hidden_size,
    )
    return itertools.product(*(choices or (None,) for choices in axes))


def _shape(config: Any, layers: Any, heads: Any, neurons: Any, expansion: float | None, hidden: Any) -> ModelShape:
    """Return the shape of a combination.

    Raises:
        ConfigError: if it is larger than the teacher, or one the family's config forbids.
    """
    shape = target(
        Prune(num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=neurons, hidden_size=hidden),
        config,
    )
    if expansion is None:
        return shape
    wanted, there_are = round(expansion * shape.hidden_size), shape_of(config).intermediate_size
    if not 1 <= wanted <= there_are:
        raise ConfigError(
            f"search_space.expansion: {expansion:g} x {shape.hidden_size} are {wanted} neurons, the teacher has "
            f"{there_are}"
        )
    return replace(shape, intermediate_size=wanted)


def _window(space: SearchSpace, whole: int) -> tuple[int, int]:
    """Return the fewest and the most parameters."""
    least, most = _bound("min_params", space.min_params, 0, whole), _bound("max_params", space.max_params, whole, whole)
    if least > most:
        raise ConfigError(f"search_space: min_params is {least:,} and max_params {most:,}")
    return least, most


def _bound(name: str, size: int | float | None, otherwise: int, whole: int) -> int:
    if size is None:
        return otherwise
    if isinstance(size, float) and 0 < size <= 1:
        return round(size * whole)
    if isinstance(size, int) and size >= 1:
        return size
    raise ConfigError(f"search_space.{name}: {size} is neither a share in (0, 1] nor a whole number of parameters")


def _nearest(found: Sequence[Candidate], least: int, most: int) -> str:
    """Return the message if no candidate lies within the bounds."""

    def described(candidate: Candidate) -> str:
        return f"{candidate.parameters:,} ({candidate.label})"

    below = max((c for c in found if c.parameters < least), key=lambda c: c.parameters, default=None)
    above = min((c for c in found if c.parameters > most), key=lambda c: c.parameters, default=None)
    nearest = " and ".join(described(candidate) for candidate in (below, above) if candidate)
    return f"search_space: no shape has {least:,} to {most:,} parameters; the nearest have {nearest}"
