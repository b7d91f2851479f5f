"""Hugging Face configs of teachers and students, inferred before the models exist."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from lit_prune.config import Cell, ConfigError, Profile, Teacher
from lit_prune.config.overrides import parents_of
from lit_prune.models import loading
from lit_prune.models.files import MASKS


def teacher_config(cell: Cell) -> Any:
    """Return the Hugging Face config of the teacher, which need not exist yet."""
    if cell.teacher.pretraining is not None:
        from lit_prune.models.llama import config_of

        return config_of(cell.teacher.pretraining)
    if cell.teacher.model is None:
        raise ConfigError("teacher: give either model or pretraining, and set the other to null")
    return loading.load_config(loading.locate(cell.teacher.model, cell.teacher.fingerprint, weights=False))


def pruned_configs(cell: Cell) -> Iterator[tuple[Cell, Any]]:
    """Yield the ancestors of a cell, oldest first, and the cell, each with the Hugging Face config that it prunes.

    That is the config of the teacher, or of the parent's student; neither need exist yet.

    Raises:
        ConfigError: if the layers of a parent's student differ in width, as such a model cannot be pruned.
    """
    config = None
    chain = [cell, *parents_of(cell)][::-1]
    for parent, current in zip([None, *chain], chain, strict=False):
        config = teacher_config(current) if parent is None else _parent_config(parent, config)
        yield current, config


def _parent_config(cell: Cell, pruned: Any) -> Any:
    """Return the config of a parent's student."""
    config = config_of_student(cell, pruned)
    if not cell.prune.equal_layers or config.is_heterogeneous:
        raise ConfigError("parent.prune: its layers differ in width; only equally wide ones can be pruned further")
    return config


def pruned_config(cell: Cell) -> Any:
    """Return the Hugging Face config of the model that is pruned, which need not exist yet."""
    *_, (_, config) = pruned_configs(cell)
    return config


def imitated_config(cell: Cell) -> Any:
    """Return the Hugging Face config of the model that the student imitates."""
    return pruned_config(cell) if cell.distill.imitate == "parent" else teacher_config(cell)


def config_of_student(cell: Cell, pruned: Any = None) -> Any:
    """Return the Hugging Face config of the student of a model with the config `pruned`; neither need exist yet.

    Raises:
        ConfigError: if that model cannot be pruned to this student.
    """
    student = cell.prune
    if student.init_from is None:
        return student.config_of(pruned or pruned_config(cell))
    place = loading.locate(student.init_from, student.fingerprint, weights=False, field="prune.init_from")
    return loading.load_config(place)


def prunes_sparse(cell: Cell) -> bool:
    """Return whether the teacher of a cell or the model that it prunes has masked weights; neither need exist yet."""
    chain = [cell, *parents_of(cell)]
    folders = [loading.local_folder(one.prune.init_from) for one in chain[1:] if one.prune.init_from is not None]
    folders += [loading.local_folder(one.teacher.model) for one in chain if one.teacher.model is not None]
    stored = any(folder is not None and (folder / MASKS).is_file() for folder in folders)
    return stored or any(one.prune.sparse for one in chain[1:])


def keeps_all(student: Any, config: Any) -> bool:
    """Return whether a student with config `student` has as many units as a model with `config`."""
    from lit_prune.models.shape import shape_of

    if student.is_heterogeneous or type(student) is not type(config):
        return False
    return shape_of(student) == shape_of(config) and getattr(student, "ranks", None) == getattr(config, "ranks", None)


def deep_teacher(profile: Profile, least: int) -> tuple[Teacher, int]:
    """Return a teacher of at least `least` layers and its number of layers: the profile's own, or else its deep one.

    Raises:
        ConfigError: if neither has that many layers.
    """
    found = {}
    for teacher in filter(None, (profile.cell.teacher, profile.deep_teacher)):
        layers = teacher_config(dataclasses.replace(profile.cell, teacher=teacher)).num_hidden_layers
        if layers >= least:
            return teacher, layers
        found[teacher.model or "one trained"] = layers
    have = ", ".join(f"{name} has {layers}" for name, layers in found.items())
    raise ConfigError(f"teacher: at least {least} layers are needed ({have}); see deep_teacher in configs/quick.yaml")
