"""The shape a student shall have: the request, in numbers that the teacher's family allows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lit_prune.config import ConfigError, Size, Student
from lit_prune.models.model_family import anatomy_of, head_dim_of
from lit_prune.models.shape import ModelShape, parameter_counter, shape_of


def target(student: Student, config: Any) -> ModelShape:
    """The shape a student's section asks of a teacher with this config.

    A share is rounded to the nearest size the family allows; a count is taken at its word; sizes that are "auto" all
    get the same share, the one that comes nearest to `student.parameters`.

    Raises:
        ConfigError: larger than the teacher, less than one, a count the family's config forbids, or a number of
            parameters that no share meets.
    """
    free = [name for name in ("layers", "hidden", "neurons", "heads") if getattr(student, name) == "auto"]
    if bool(free) != (student.parameters is not None):
        raise ConfigError("student.parameters: give it together with sizes that are auto, and only then")
    if not free:
        return _fixed(student, config)
    asked = (student, config.to_json_string(use_diff=False))
    if asked not in _FOUND:
        _FOUND[asked] = _nearest(student, config, free)
    return _FOUND[asked]


_FOUND: dict[tuple[Student, str], ModelShape] = {}
"""Shapes found for a number of parameters: a search takes half a second, and every check of a cell needs its shape."""


def _nearest(student: Student, config: Any, free: list[str]) -> ModelShape:
    count = parameter_counter(config)
    wanted = _wanted_parameters(student.parameters, count(shape_of(config)))

    def at(share: float) -> ModelShape:
        shares: dict[str, Any] = dict.fromkeys(free, share)
        return _fixed(replace(student, parameters=None, **shares), config)

    shapes = {at(i / _SHARES) for i in range(1, _SHARES + 1)}
    nearest = min(shapes, key=lambda shape: (abs(count(shape) - wanted), count(shape)))
    least, most = (f(map(count, shapes)) for f in (min, max))
    if not least <= wanted <= most:
        raise ConfigError(
            f"student.parameters: {wanted:,} asked for; with {', '.join(free)} free there can be {least:,} to {most:,}"
        )
    return nearest


def way_to(student: Student, config: Any) -> list[ModelShape]:
    """The shapes after each round of pruning: an equal part of the way, the last one the target (Minitron, 2.2).

    Raises:
        ConfigError: as `target`, or rounds that would do nothing.
    """
    whole, final = shape_of(config), target(student, config)
    sizes = ("layers", "hidden", "neurons", "heads", "kv_groups")
    if student.rounds > max(1, *(getattr(whole, name) - getattr(final, name) for name in sizes)):
        raise ConfigError(f"student.rounds: {student.rounds} rounds are more than there are sizes on the way")
    way = []
    for i in range(1, student.rounds):
        shares = {
            name: (have - (have - keep) * i / student.rounds) / have
            for name in sizes
            for have, keep in ((getattr(whole, name), getattr(final, name)),)
            if keep < have and not (name == "kv_groups" and have == whole.heads)  # there they go with their heads
        }
        way.append(_fixed(replace(student, parameters=None, **_NOTHING | shares), config))
    way.append(final)
    if len(set(way)) < len(way) or (student.rounds > 1 and way[0] == whole):
        raise ConfigError(f"student.rounds: {student.rounds} rounds are more than there are sizes on the way")
    return way


_NOTHING: dict[str, Any] = dict.fromkeys(("layers", "hidden", "neurons", "heads", "kv_groups"))

_SHARES = 1024
"""Steps in which a share is looked for."""


def _wanted_parameters(parameters: Size, whole: int) -> int:
    if isinstance(parameters, float) and 0 < parameters <= 1:
        return round(parameters * whole)
    if isinstance(parameters, int) and 1 <= parameters <= whole:
        return parameters
    raise ConfigError(f"student.parameters: {parameters} is neither a share in (0, 1] nor a count up to {whole:,}")


def _fixed(student: Student, config: Any) -> ModelShape:
    """The target where every size is a share, a count or None."""
    whole, anatomy = shape_of(config), anatomy_of(config)
    layers = _layers(student, whole.layers)
    heads, groups = _heads(student, whole)
    if anatomy.tied_width:
        heads = _heads_of_width(student, whole, head_dim_of(config), groups)
        groups = heads if whole.heads == whole.kv_groups else groups
        hidden = heads * head_dim_of(config)
    else:
        if anatomy.whole_heads and isinstance(student.heads, float) and not isinstance(student.hidden, float):
            heads, groups = _heads_that_divide(student, whole, heads, groups)
        if anatomy.whole_heads and student.hidden is None and whole.hidden % heads:
            raise ConfigError(_heads_forbidden(config, whole, heads, groups))
        step = heads if anatomy.whole_heads else 1
        why = "a multiple of the query heads, as its config demands"
        hidden = _units("student.hidden", student.hidden, whole.hidden, step, why)
    return ModelShape(layers, hidden, _units("student.neurons", student.neurons, whole.neurons, 1, ""), heads, groups)


def _layers(student: Student, whole: int) -> int:
    if not student.drop:
        return _units("student.layers", student.layers, whole, 1, "")
    if student.layers is not None:
        raise ConfigError("student.drop: it names the blocks to drop, so leave student.layers null")
    if wrong := [i for i in student.drop if not 0 <= i < whole]:
        raise ConfigError(f"student.drop: there is no block {wrong[0]}; there are 0 to {whole - 1}")
    if len(set(student.drop)) < len(student.drop) or len(student.drop) == whole:
        raise ConfigError("student.drop: each block may come once, and one must stay")
    return whole - len(student.drop)


def _heads(student: Student, whole: ModelShape) -> tuple[int, int]:
    """Query heads and KV groups; where every head has its own keys and values, a head goes with them."""
    if whole.heads == whole.kv_groups:
        if student.kv_groups is not None:
            raise ConfigError("student.kv_groups: every head of this teacher has its own; set student.heads instead")
        heads = _units("student.heads", student.heads, whole.heads, 1, "")
        return heads, heads
    if student.kv_groups == "auto":
        raise ConfigError("student.kv_groups: a count, a share or null; auto is for layers, hidden, neurons and heads")
    groups = _units("student.kv_groups", student.kv_groups, whole.kv_groups, 1, "")
    most = whole.heads // whole.kv_groups * groups
    size = most if student.heads is None else student.heads
    if isinstance(size, float):
        size = min(most, max(groups, round(size * whole.heads / groups) * groups)) if 0 < size <= 1 else size
    if isinstance(size, int) and most < size <= whole.heads:
        raise ConfigError(f"student.heads: {size} asked for, {groups} of the teacher's KV groups have {most}")
    why = "heads in equal number in each of the KV groups"
    return _units("student.heads", size, most, groups, why), groups


def _heads_forbidden(config: Any, whole: ModelShape, heads: int, groups: int) -> str:
    """What to say of a number of heads that does not divide the hidden channels, all of which stay."""
    step = 1 if whole.heads == whole.kv_groups else groups
    allowed = [n for n in range(step, whole.heads + 1, step) if whole.hidden % n == 0]
    carrier = ""
    if config.model_type == "llama" and not (config.attention_bias or config.mlp_bias):
        carrier = "; in a copy of the teacher with model_type mistral and sliding_window null in config.json, which"
        carrier += " computes the same, any number may stay"
    return (
        f"student.heads: must divide the {whole.hidden} hidden channels, as the config of {config.model_type} demands, "
        f"got {heads} (allowed: {', '.join(map(str, allowed))}{carrier})"
    )


def _heads_that_divide(student: Student, whole: ModelShape, heads: int, groups: int) -> tuple[int, int]:
    """Return heads and KV groups for a share of the heads: the nearest heads that divide the hidden channels."""
    hidden = whole.hidden if student.hidden is None else student.hidden
    assert isinstance(hidden, int)
    assert isinstance(student.heads, float)
    if hidden % heads == 0:
        return heads, groups
    alone = whole.heads == whole.kv_groups  # each head has its own keys and values
    step, most = (1, whole.heads) if alone else (groups, whole.heads // whole.kv_groups * groups)
    allowed = [n for n in range(step, most + 1, step) if hidden % n == 0]
    wanted = student.heads * whole.heads
    nearest = min(allowed, key=lambda n: (abs(n - wanted), n), default=heads)
    return nearest, nearest if alone else groups


def _heads_of_width(student: Student, whole: ModelShape, head_dim: int, groups: int) -> int:
    """Heads of a family whose heads together are as wide as the residual stream, which decides.

    KV groups that are shared keep equally many heads each.
    """
    size = whole.heads // whole.kv_groups
    step, most = (1, whole.heads) if size == 1 else (groups, size * groups)
    heads_of = "heads" if size == 1 else f"heads for each of {groups} KV groups"
    if student.hidden is None and student.heads is not None:
        return _heads(student, whole)[0]
    why = f"whole {heads_of} of {head_dim} channels, as the family's attention is as wide as the residual stream"
    width: Size = most * head_dim if student.hidden is None else student.hidden
    if isinstance(width, float) and 0 < width <= 1:
        unit = step * head_dim
        width = max(1, min(most // step, round(width * whole.hidden / unit))) * unit
    if isinstance(width, int) and most * head_dim < width <= whole.hidden:
        raise ConfigError(f"student.hidden: must be <= {most * head_dim}, which {groups} KV groups have, got {width}")
    heads = _units("student.hidden", width, whole.hidden, step * head_dim, why) // head_dim
    if isinstance(student.heads, int) and student.heads != heads:
        raise ConfigError(
            f"student.heads: {student.heads} of {head_dim} channels are not the {heads * head_dim} hidden ones this "
            f"family's attention is as wide as; leave it null, or give {heads}"
        )
    return heads


def _units(name: str, size: Size, whole: int, step: int, why: str) -> int:
    """The number of units a size stands for, a multiple of `step`."""
    if size is None:
        size = whole
    if isinstance(size, float):
        if not 0 < size <= 1:
            raise ConfigError(f"{name}: a share lies in (0, 1], not {size}; a whole number is a count")
        size = max(step, min(whole // step, round(size * whole / step)) * step)
    assert isinstance(size, int)
    if not 1 <= size <= whole:
        raise ConfigError(f"{name}: {size} asked for, the teacher has {whole}")
    if size % step:
        below, above = size - size % step, size - size % step + step
        nearest = " and ".join(str(n) for n in (below, above) if 0 < n <= whole)
        raise ConfigError(f"{name}: {size} is not {why} (of {step}); the nearest allowed are {nearest}")
    return size
