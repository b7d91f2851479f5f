"""One student: the evidence its scores need, and the plan they give, round by round."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from lit_prune.config import ConfigError, Student, expand
from lit_prune.importance.criteria import CalibrationStats, Scores, check_axes, criteria
from lit_prune.models.model_family import anatomy_of
from lit_prune.models.shape import ModelShape, shape_of
from lit_prune.pruning import surgery
from lit_prune.pruning.allocate import block_allocators, hidden_channels, residual_merges, width_allocators
from lit_prune.pruning.plan import Indices, LayerPlan, PrunePlan
from lit_prune.pruning.target import target, way_to

Measure = Callable[[Any, frozenset[str]], CalibrationStats]
"""(model, names of evidence) -> the evidence."""

RESIDUAL = {"paper": 1.0, "opposite": -1.0}
"""Weight of the difference to the pruned head."""


def evidence_names(student: Student, config: Any) -> frozenset[str]:
    """What a calibration pass must measure for a student to be cut from a teacher with this config."""
    if student.plan or student.model or student.weights == "random":
        return frozenset()
    wanted = _axes_by_criterion(student, shape_of(config), target(student, config))
    return frozenset().union(*(criteria[name].needs for name in wanted))


def check(student: Student, config: Any) -> None:
    """See that a student can be cut from a teacher with this config.

    Raises:
        ConfigError: a shape there cannot be, a criterion that does not score what is cut, settings that exclude each
            other, a plan that does not fit.
    """
    if student.plan:
        _check_alone(student, "plan", _WITH_PLAN)
        load_plan(student).check(config)
        surgery.smaller_config(config, load_plan(student))
        return
    if student.weights == "random":
        _check_alone(student, "weights", ("widths", "head_residual"))
    if student.rounds > 1 and (student.drop or student.widths != "uniform" or student.head_residual != "off"):
        raise ConfigError("student.rounds: more than one goes with neither drop, widths=global nor head_residual")
    way = way_to(student, config)
    for name, axes in _axes_by_criterion(student, shape_of(config), way[-1]).items():
        check_axes(name, axes)
    surgery.smaller_config(config, first_units(config, way[-1]))
    if student.head_residual == "off":
        return
    if way[-1].kv_groups < shape_of(config).kv_groups < shape_of(config).heads:
        raise ConfigError("student.head_residual: merges heads within KV groups, so all groups must be kept")
    if anatomy_of(config).query is None:
        raise ConfigError(f"student.head_residual: {config.model_type} keeps queries, keys and values in one matrix")


_WITH_PLAN = ("layers", "kv_groups", "parameters", "drop", "rounds", "widths", "head_residual")


def _check_alone(student: Student, field: str, others: tuple[str, ...]) -> None:
    """See that nothing is asked for that a field would leave without effect."""
    for other in others:
        if getattr(student, other) != getattr(_DEFAULT, other):
            raise ConfigError(f"student.{other}: has no effect where student.{field} is given; leave it as it is")


_DEFAULT = Student()


def config_of(student: Student, config: Any) -> Any:
    """The config of a student cut from a teacher with this config, before its units are chosen.

    Where `widths` are global it has the uniform ones, which are as many parameters.

    Raises:
        ConfigError: a shape there cannot be, or a plan that does not fit.
    """
    plan = load_plan(student) if student.plan else first_units(config, target(student, config))
    plan.check(config)
    return surgery.smaller_config(config, plan)


def num_blocks(student: Student, config: Any) -> int:
    """Blocks of the student that is cut from a teacher with this config."""
    return len(load_plan(student).blocks) if student.plan else target(student, config).layers


def load_plan(student: Student) -> PrunePlan:
    """The plan a student's section names.

    Raises:
        ConfigError: there is none, or the file is no plan.
    """
    assert student.plan is not None
    return PrunePlan.load(expand(student.plan))


def make_plan(teacher: Any, student: Student, measure: Measure) -> PrunePlan:
    """Score, allocate and, in rounds, cut and score again; indices refer to the teacher (Minitron, section 2.2).

    Raises:
        ConfigError: as `check`.
    """
    if student.plan:
        return load_plan(student)
    model, plan = teacher, PrunePlan.everything(shape_of(teacher.config))
    for i, shape in enumerate(way_to(student, teacher.config)):
        if i:
            model = surgery.apply(teacher, plan)
        plan = _round(model, student, shape, measure).after(plan)
    return plan


def first_units(config: Any, shape: ModelShape) -> PrunePlan:
    """The plan that keeps the first units of each axis: a shape, where weights do not matter."""
    whole = shape_of(config)
    per_group, size = shape.heads // shape.kv_groups, whole.heads // whole.kv_groups
    heads = tuple(g * size + i for g in range(shape.kv_groups) for i in range(per_group))
    blocks = (LayerPlan(i, tuple(range(shape.neurons)), heads) for i in range(shape.layers))
    return PrunePlan(whole, tuple(range(shape.hidden)), tuple(blocks))


def _round(model: Any, student: Student, shape: ModelShape, measure: Measure) -> PrunePlan:
    """The plan that leads from a model to a shape."""
    whole, config = shape_of(model.config), model.config
    wanted = _axes_by_criterion(student, whole, shape)
    evidence = measure(model, frozenset().union(*(criteria[name].needs for name in wanted)))
    scores: Scores = {}
    for name, axes in wanted.items():
        found = criteria[name].score(evidence, student)
        scores |= {axis: found[axis] for axis in axes}
    kept = _blocks(student, scores, whole.layers, whole.layers - shape.layers)
    blocks = width_allocators[student.widths](scores, kept, shape, config)
    if student.head_residual != "off" and shape.heads < whole.heads:
        weight = RESIDUAL[student.head_residual]
        blocks = tuple(
            dataclasses.replace(block, merges=residual_merges(scores["head"][block.index], block, whole, weight))
            for block in blocks
        )
    return PrunePlan(whole, hidden_channels(scores, shape.hidden, whole.hidden), blocks)


def _blocks(student: Student, scores: Scores, whole: int, drop: int) -> Indices:
    if student.drop:
        return tuple(i for i in range(whole) if i not in student.drop)
    return block_allocators[student.blocks].choose(scores, whole, drop) if drop else tuple(range(whole))


def _axes_by_criterion(student: Student, whole: ModelShape, shape: ModelShape) -> dict[str, set[str]]:
    """Criterion -> the axes it must score to get from one shape to another."""
    wanted: dict[str, set[str]] = {}
    for axis, size in (("hidden", "hidden"), ("neuron", "neurons"), ("head", "heads")):
        if getattr(shape, size) < getattr(whole, size):
            wanted.setdefault(student.criterion, set()).add(axis)
    reads = block_allocators[student.blocks].reads
    if shape.layers < whole.layers and not student.drop and reads:
        wanted.setdefault(student.block_criterion, set()).add(reads)
    return wanted
