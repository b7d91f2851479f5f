"""The shape a student shall have: the request, in numbers that the teacher's family allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lit_prune.config import ConfigError, Size, Student
from lit_prune.models.anatomy import anatomy_of


@dataclass(frozen=True)
class Shape:
    """Units kept: hidden channels, neurons in each block, query heads in each block."""

    hidden: int
    neurons: int
    heads: int


def shape_of(config: Any) -> Shape:
    """The shape of a Hugging Face config."""
    return Shape(config.hidden_size, config.intermediate_size, config.num_attention_heads)


def target(student: Student, config: Any) -> Shape:
    """The shape a student's section asks of a teacher with this config.

    A share is rounded to the nearest size the family allows; a count is taken at its word.

    Raises:
        ConfigError: larger than the teacher, less than one, or a count the family's config forbids.
    """
    whole, groups = shape_of(config), config.num_key_value_heads
    heads = _units(
        "student.heads", student.heads, whole.heads, groups, "heads in equal number in each of the KV groups"
    )
    step = heads if anatomy_of(config).whole_heads else 1
    hidden = _units(
        "student.hidden",
        student.hidden,
        whole.hidden,
        step,
        "a multiple of the query heads, as its config demands",
    )
    return Shape(hidden, _units("student.neurons", student.neurons, whole.neurons, 1, ""), heads)


def _units(name: str, size: Size, whole: int, step: int, why: str) -> int:
    """The number of units a size stands for, a multiple of `step`."""
    if size is None:
        size = whole
    if isinstance(size, float):
        if not 0 < size <= 1:
            raise ConfigError(f"{name}: a share lies in (0, 1], not {size}; a whole number is a count")
        size = max(step, round(size * whole / step) * step)
    if not 1 <= size <= whole:
        raise ConfigError(f"{name}: {size} asked for, the teacher has {whole}")
    if size % step:
        below, above = size - size % step, size - size % step + step
        nearest = " and ".join(str(n) for n in (below, above) if 0 < n <= whole)
        raise ConfigError(f"{name}: {size} is not {why} (of {step}); the nearest allowed are {nearest}")
    return size
