"""The target shape of a student: the requested sizes, resolved to numbers that the teacher's family allows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lit_prune.config import ConfigError, Prune, Size
from lit_prune.models.model_family import anatomy_of, head_dim_of
from lit_prune.models.shape import ModelShape, parameter_counter, shape_of


def target(student: Prune, config: Any, *, uniform: bool = True) -> ModelShape:
    """Return the shape that a `prune` section requests for a teacher with this config.

    A share is rounded to the nearest size that the family allows; a count is used as it is. All "auto" sizes get the
    same share, the one whose number of parameters is nearest to `prune.num_parameters`. Without `uniform` some layers
    stay whole; then a family whose heads must divide its hidden size demands that of those layers only.

    Raises:
        ConfigError: if a size is larger than the teacher's or less than one, the family's config forbids a count, or
            no share gives the number of parameters.
    """
    free = [
        name
        for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
        if getattr(student, name) == "auto"
    ]
    if bool(free) != (student.num_parameters is not None):
        raise ConfigError("prune.num_parameters: give it together with sizes that are auto, and only then")
    if not free:
        return _fixed(student, config, uniform)
    key = (student, config.to_json_string(use_diff=False))
    if key not in _FOUND:
        _FOUND[key] = _nearest(student, config, free)
    return _FOUND[key]


_FOUND: dict[tuple[Prune, str], ModelShape] = {}
"""Cache of `_nearest`: a search takes half a second, and every validation of a cell needs its shape."""


def _nearest(student: Prune, config: Any, free: list[str]) -> ModelShape:
    count = parameter_counter(config)
    wanted = _wanted_parameters(student.num_parameters, count(shape_of(config)))

    def at(share: float) -> ModelShape:
        shares: dict[str, Any] = dict.fromkeys(free, share)
        return _fixed(replace(student, num_parameters=None, **shares), config)

    shapes = {at(i / _SHARES) for i in range(1, _SHARES + 1)}
    nearest = min(shapes, key=lambda shape: (abs(count(shape) - wanted), count(shape)))
    least, most = (f(map(count, shapes)) for f in (min, max))
    if not least <= wanted <= most:
        raise ConfigError(
            f"prune.num_parameters: must be {least:,} to {most:,} with {', '.join(free)} free, got {wanted:,}"
        )
    return nearest


def way_to(student: Prune, config: Any, *, uniform: bool = True) -> list[ModelShape]:
    """Return the shape after each iteration: equal steps, the last of which reaches the target (Minitron, 2.2).

    `uniform` is as for `target`.

    Raises:
        ConfigError: as `target`, or if an iteration would change nothing.
    """
    whole, final = shape_of(config), target(student, config, uniform=uniform)
    sizes = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    if student.num_iterations > max(1, *(getattr(whole, name) - getattr(final, name) for name in sizes)):
        raise ConfigError(
            f"prune.num_iterations: {student.num_iterations} rounds are more than there are sizes on the way"
        )
    way = []
    for i in range(1, student.num_iterations):
        shares = {
            name: (have - (have - keep) * i / student.num_iterations) / have
            for name in sizes
            for have, keep in ((getattr(whole, name), getattr(final, name)),)
            if keep < have
            and not (
                name == "num_key_value_heads" and have == whole.num_attention_heads
            )  # multi-head attention: pruned with their heads
        }
        way.append(_fixed(replace(student, num_parameters=None, **_NOTHING | shares), config))
    way.append(final)
    if len(set(way)) < len(way) or (student.num_iterations > 1 and way[0] == whole):
        raise ConfigError(
            f"prune.num_iterations: {student.num_iterations} rounds are more than there are sizes on the way"
        )
    return way


_NOTHING: dict[str, Any] = dict.fromkeys(
    ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
)

_SHARES = 1024
"""Number of shares that `_nearest` tries."""


def _wanted_parameters(parameters: Size, whole: int) -> int:
    if isinstance(parameters, float) and 0 < parameters <= 1:
        return round(parameters * whole)
    if isinstance(parameters, int) and 1 <= parameters <= whole:
        return parameters
    raise ConfigError(f"prune.num_parameters: {parameters} is neither a share in (0, 1] nor a count up to {whole:,}")


def _fixed(student: Prune, config: Any, uniform: bool = True) -> ModelShape:
    """Return the target shape of settings in which every size is a share, a count or None."""
    whole, anatomy = shape_of(config), anatomy_of(config)
    divides = uniform and anatomy.whole_heads
    layers = _layers(student, whole.num_hidden_layers)
    heads, groups = _heads(student, whole)
    if anatomy.tied_width:
        heads = _heads_of_width(student, whole, head_dim_of(config), groups)
        groups = heads if whole.num_attention_heads == whole.num_key_value_heads else groups
        hidden = heads * head_dim_of(config)
    else:
        if divides and not isinstance(student.hidden_size, float):
            heads, groups = _heads_that_divide(student, whole, heads, groups)
        if divides and student.hidden_size is None and whole.hidden_size % heads:
            raise ConfigError(_heads_forbidden(config, whole, heads, groups))
        step = heads if divides else 1
        why = "a multiple of the query heads, as its config demands"
        hidden = _units("prune.hidden_size", student.hidden_size, whole.hidden_size, step, why)
    return ModelShape(
        layers,
        hidden,
        _units("prune.intermediate_size", student.intermediate_size, whole.intermediate_size, 1, ""),
        heads,
        groups,
    )


def _layers(student: Prune, whole: int) -> int:
    if not student.drop_layers:
        return _units("prune.num_hidden_layers", student.num_hidden_layers, whole, 1, "")
    if student.num_hidden_layers is not None:
        raise ConfigError("prune.drop_layers: must be empty where prune.num_hidden_layers is set, got both")
    if wrong := [i for i in student.drop_layers if not 0 <= i < whole]:
        raise ConfigError(f"prune.drop_layers: must be layers 0 to {whole - 1}, got {wrong[0]}")
    if len(set(student.drop_layers)) < len(student.drop_layers) or len(student.drop_layers) == whole:
        raise ConfigError(f"prune.drop_layers: must name no layer twice and not all, got {[*student.drop_layers]}")
    return whole - len(student.drop_layers)


def _heads(student: Prune, whole: ModelShape) -> tuple[int, int]:
    """Return the numbers of query heads and KV groups, which are equal in multi-head attention."""
    if whole.num_attention_heads == whole.num_key_value_heads:
        if student.num_key_value_heads is not None:
            raise ConfigError(
                "prune.num_key_value_heads: every head of this teacher has its own; set prune.num_attention_heads "
                "instead"
            )
        heads = _units("prune.num_attention_heads", student.num_attention_heads, whole.num_attention_heads, 1, "")
        return heads, heads
    if student.num_key_value_heads == "auto":
        raise ConfigError("prune.num_key_value_heads: must be a count, a share or null, got auto")
    groups = _units("prune.num_key_value_heads", student.num_key_value_heads, whole.num_key_value_heads, 1, "")
    most = whole.heads_per_group * groups
    size = most if student.num_attention_heads is None else student.num_attention_heads
    if isinstance(size, float):
        size = (
            min(most, max(groups, round(size * whole.num_attention_heads / groups) * groups)) if 0 < size <= 1 else size
        )
    if isinstance(size, int) and most < size <= whole.num_attention_heads:
        raise ConfigError(f"prune.num_attention_heads: must be <= {most}, the heads of {groups} KV groups, got {size}")
    why = "heads in equal number in each of the KV groups"
    return _units("prune.num_attention_heads", size, most, groups, why), groups


def _heads_forbidden(config: Any, whole: ModelShape, heads: int, groups: int) -> str:
    """Return the error message for a number of heads that does not divide the unpruned hidden size."""
    step = 1 if whole.num_attention_heads == whole.num_key_value_heads else groups
    allowed = [n for n in range(step, whole.num_attention_heads + 1, step) if whole.hidden_size % n == 0]
    if not allowed:  # no number of heads in these KV groups does
        allowed = [n for n in range(1, whole.num_attention_heads + 1) if whole.hidden_size % n == 0]
    carrier = ""
    if config.model_type == "llama" and not (config.attention_bias or config.mlp_bias):
        carrier = "; in a copy of the teacher with model_type mistral and sliding_window null in config.json, which"
        carrier += " computes the same, any number may stay"
    return (
        f"prune.num_attention_heads: must divide the {whole.hidden_size} hidden channels, as the config of "
        f"{config.model_type} demands, "
        f"got {heads} (allowed: {', '.join(map(str, allowed))}{carrier})"
    )


def _heads_that_divide(student: Prune, whole: ModelShape, heads: int, groups: int) -> tuple[int, int]:
    """Return the heads and KV groups nearest to a share of either, where heads must divide the hidden size.

    Counts of both are returned unchanged.
    """
    hidden = whole.hidden_size if student.hidden_size is None else student.hidden_size
    assert isinstance(hidden, int)
    size = whole.heads_per_group
    if hidden % heads == 0:
        return heads, groups
    if isinstance(student.num_attention_heads, float):
        alone = size == 1  # each head has its own keys and values
        step, most = (1, whole.num_attention_heads) if alone else (groups, size * groups)
        allowed = [n for n in range(step, most + 1, step) if hidden % n == 0]
        heads = _nearest_of(allowed, student.num_attention_heads * whole.num_attention_heads, heads)
        return heads, heads if alone else groups
    if student.num_attention_heads is None and isinstance(student.num_key_value_heads, float):
        allowed = [n for n in range(1, whole.num_key_value_heads + 1) if hidden % (n * size) == 0]
        groups = _nearest_of(allowed, student.num_key_value_heads * whole.num_key_value_heads, groups)
        return groups * size, groups
    return heads, groups


def _nearest_of(allowed: list[int], wanted: float, otherwise: int) -> int:
    """Return the allowed number nearest to the wanted one, the smaller of two; `otherwise` if none is allowed."""
    return min(allowed, key=lambda n: (abs(n - wanted), n), default=otherwise)


def _heads_of_width(student: Prune, whole: ModelShape, head_dim: int, groups: int) -> int:
    """Return the number of heads of a family whose heads together are as wide as the residual stream.

    The hidden size determines it. Shared KV groups keep equally many heads each.
    """
    size = whole.heads_per_group
    step, most = (1, whole.num_attention_heads) if size == 1 else (groups, size * groups)
    heads_of = "heads" if size == 1 else f"heads for each of {groups} KV groups"
    if student.hidden_size is None and student.num_attention_heads is not None:
        return _heads(student, whole)[0]
    why = f"whole {heads_of} of {head_dim} channels, as the family's attention is as wide as the residual stream"
    width: Size = most * head_dim if student.hidden_size is None else student.hidden_size
    if isinstance(width, float) and 0 < width <= 1:
        unit = step * head_dim
        width = max(1, min(most // step, round(width * whole.hidden_size / unit))) * unit
    if isinstance(width, int) and most * head_dim < width <= whole.hidden_size:
        raise ConfigError(
            f"prune.hidden_size: must be <= {most * head_dim}, which {groups} KV groups have, got {width}"
        )
    heads = _units("prune.hidden_size", width, whole.hidden_size, step * head_dim, why) // head_dim
    if isinstance(student.num_attention_heads, int) and student.num_attention_heads != heads:
        raise ConfigError(
            f"prune.num_attention_heads: {student.num_attention_heads} of {head_dim} channels are not the "
            f"{heads * head_dim} hidden ones this family's attention is as wide as; leave it null, or give {heads}"
        )
    return heads


def _units(name: str, size: Size, whole: int, step: int, why: str) -> int:
    """Return the number of units of a size: a share is rounded to a multiple of `step`, a count must be one."""
    if size is None:
        size = whole
    if isinstance(size, float):
        if not 0 < size <= 1:
            raise ConfigError(f"{name}: must be a whole number or a share in (0, 1], got {size}")
        size = max(step, min(whole // step, round(size * whole / step)) * step)
    assert isinstance(size, int)
    if not 1 <= size <= whole:
        raise ConfigError(f"{name}: must be 1 to {whole} of the model to prune, got {size}")
    if size % step:
        below, above = size - size % step, size - size % step + step
        nearest = " and ".join(str(n) for n in (below, above) if 0 < n <= whole)
        raise ConfigError(f"{name}: must be {why} (multiples of {step}; nearest: {nearest}), got {size}")
    return size
