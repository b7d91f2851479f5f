"""From a `prune` section to a plan: required statistics, scores and allocation, iteration by iteration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from lit_prune.config import ConfigError, Prune, PruneMethod, errors_of, expand
from lit_prune.importance.criteria import DEPTH, CalibrationStats, Scores, check_axes, criteria
from lit_prune.models.model_family import anatomy_of
from lit_prune.models.shape import ModelShape, shape_of
from lit_prune.pruning import surgery
from lit_prune.pruning.allocate import hidden_channels, layer_allocators, residual_merges, width_allocators
from lit_prune.pruning.plan import Indices, LayerPlan, PrunePlan
from lit_prune.pruning.target import target, way_to

Measure = Callable[[Any, frozenset[str]], CalibrationStats]
"""(model, names of statistics) -> the calibration statistics of the model."""

RESIDUAL = {"paper": 1.0, "reversed_sign": -1.0}
"""`head_merging` -> weight of the difference between the kept and the pruned head."""


def evidence_names(student: Prune, config: Any, *, uniform: bool = True) -> frozenset[str]:
    """Return the names of the statistics needed to prune a teacher with this config; `uniform` is as for `target`."""
    if student.plan_path or student.init_from or student.init == "random":
        return frozenset()
    wanted = _axes_by_criterion(student, shape_of(config), target(student, config, uniform=uniform))
    return frozenset().union(*(criteria[name].needs for name in wanted))


def check_names(student: Prune) -> None:
    """Check that the criteria and allocators of a `prune` section exist.

    Raises:
        ConfigError: if one does not.
    """
    for field in ("width_criterion", "layer_criterion"):
        with errors_of({"criterion": f"prune.{field}"}):
            _ = criteria[getattr(student, field)]
    _ = layer_allocators[student.layer_selection], width_allocators[student.width_allocation]


def check(student: Prune, config: Any, *, uniform: bool = True) -> None:
    """Check that a teacher with this config can be pruned by these settings; `uniform` is as for `target`.

    Raises:
        ConfigError: if the shape is impossible, a criterion does not score an axis that is cut, settings exclude each
            other, or the plan does not fit.
    """
    if student.plan_path:
        _check_alone(student, "plan_path", _WITH_PLAN)
        load_plan(student).check(config)
        surgery.smaller_config(config, load_plan(student))
        return
    if student.init == "random":
        _check_alone(student, "init", ("width_allocation", "head_merging"))
    if student.num_iterations > 1 and (
        student.drop_layers or student.width_allocation != "uniform" or student.head_merging != "off"
    ):
        raise ConfigError(
            "prune.num_iterations: must be 1 with drop_layers, width_allocation=global or head_merging, got "
            f"{student.num_iterations}"
        )
    way = way_to(student, config, uniform=uniform)
    for name, axes in _axes_by_criterion(student, shape_of(config), way[-1]).items():
        for axis in sorted(axes):
            with errors_of({"criterion": f"prune.{'layer' if axis in DEPTH else 'width'}_criterion"}):
                check_axes(name, [axis])
    if uniform:
        surgery.smaller_config(config, first_units(config, way[-1]))
    if student.head_merging == "off":
        return
    if way[-1].num_key_value_heads < shape_of(config).num_key_value_heads < shape_of(config).num_attention_heads:
        raise ConfigError("prune.head_merging: merges heads within KV groups, so all groups must be kept")
    if anatomy_of(config).query is None:
        raise ConfigError(f"prune.head_merging: {config.model_type} keeps queries, keys and values in one matrix")


_WITH_PLAN = (
    "num_hidden_layers",
    "num_key_value_heads",
    "num_parameters",
    "drop_layers",
    "num_iterations",
    "width_allocation",
    "head_merging",
)


def _check_alone(student: Prune, field: str, others: tuple[str, ...]) -> None:
    """Check that the settings which have no effect together with `field` keep their defaults."""
    for other in others:
        if getattr(student, other) != getattr(_DEFAULT, other):
            raise ConfigError(f"prune.{other}: has no effect where prune.{field} is given; leave it as it is")


_DEFAULT = Prune()


def shape_plan(student: Prune, config: Any, *, uniform: bool = True) -> PrunePlan:
    """Return a plan with the student's shape, before its units are chosen.

    With `width_allocation=global` this is the uniform plan, which has the same budget of parameters. `uniform` is as
    for `target`.

    Raises:
        ConfigError: if the shape is impossible, or the plan file is missing or invalid.
    """
    return load_plan(student) if student.plan_path else first_units(config, target(student, config, uniform=uniform))


def config_of(student: Prune, config: Any) -> Any:
    """Return the Hugging Face config of the student of a teacher with this config, before its units are chosen.

    Raises:
        ConfigError: if the shape is impossible or the plan does not fit.
    """
    plan = shape_plan(student, config)
    plan.check(config)
    return surgery.smaller_config(config, plan)


def load_plan(student: PruneMethod) -> PrunePlan:
    """Return the plan in the file `prune.plan_path`.

    Raises:
        ConfigError: if the file does not exist or is not a plan.
    """
    assert student.plan_path is not None
    return PrunePlan.load(expand(student.plan_path))


def make_plan(teacher: Any, student: Prune, measure: Measure, *, uniform: bool = True) -> PrunePlan:
    """Score and allocate, in each iteration on the model pruned so far (Minitron, section 2.2); return the whole plan.

    `uniform` is as for `target`.

    Raises:
        ConfigError: as `check`.
    """
    if student.plan_path:
        return load_plan(student)
    model, plan = teacher, PrunePlan.everything(shape_of(teacher.config))
    for i, shape in enumerate(way_to(student, teacher.config, uniform=uniform)):
        if i:
            model = surgery.apply(teacher, plan)
        plan = _round(model, student, shape, measure).after(plan)
    return plan


def first_units(config: Any, shape: ModelShape) -> PrunePlan:
    """Return the plan that keeps the first units of each axis, for uses in which only the shape matters."""
    whole = shape_of(config)
    heads = whole.heads_of(range(shape.num_key_value_heads), shape.heads_per_group)
    neurons = tuple(range(shape.intermediate_size))
    layers = (LayerPlan(i, neurons, heads) for i in range(shape.num_hidden_layers))
    return PrunePlan(whole, tuple(range(shape.hidden_size)), tuple(layers))


def _round(model: Any, student: Prune, shape: ModelShape, measure: Measure) -> PrunePlan:
    """Return the plan of one iteration, which prunes a model to a shape."""
    whole, config = shape_of(model.config), model.config
    wanted = _axes_by_criterion(student, whole, shape)
    evidence = measure(model, frozenset().union(*(criteria[name].needs for name in wanted)))
    scores: Scores = {}
    for name, axes in wanted.items():
        found = criteria[name].score(evidence, student)
        scores |= {axis: found[axis] for axis in axes}
    kept = _layers(student, scores, whole.num_hidden_layers, whole.num_hidden_layers - shape.num_hidden_layers)
    layers = width_allocators[student.width_allocation](scores, kept, shape, config)
    if student.head_merging != "off" and shape.num_attention_heads < whole.num_attention_heads:
        weight = RESIDUAL[student.head_merging]
        layers = tuple(
            dataclasses.replace(layer, merges=residual_merges(scores["head"][layer.index], layer, whole, weight))
            for layer in layers
        )
    return PrunePlan(whole, hidden_channels(scores, shape.hidden_size, whole.hidden_size), layers)


def _layers(student: Prune, scores: Scores, whole: int, drop: int) -> Indices:
    if student.drop_layers:
        return tuple(i for i in range(whole) if i not in student.drop_layers)
    return layer_allocators[student.layer_selection].choose(scores, whole, drop) if drop else tuple(range(whole))


def _axes_by_criterion(student: Prune, whole: ModelShape, shape: ModelShape) -> dict[str, set[str]]:
    """Return the axes that each criterion must score to prune `whole` to `shape`."""
    wanted: dict[str, set[str]] = {}
    for axis, size in (("hidden", "hidden_size"), ("neuron", "intermediate_size"), ("head", "num_attention_heads")):
        if getattr(shape, size) < getattr(whole, size):
            wanted.setdefault(student.width_criterion, set()).add(axis)
    reads = layer_allocators[student.layer_selection].reads
    if shape.num_hidden_layers < whole.num_hidden_layers and not student.drop_layers and reads:
        wanted.setdefault(student.layer_criterion, set()).add(reads)
    return wanted
