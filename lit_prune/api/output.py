"""A compressed model, and the folder to which it is written. No torch until then."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_prune.config import Cell


@dataclass(frozen=True)
class Compressed:
    """A student with its metrics and its teacher's."""

    folder: Path
    """The student in Hugging Face layout, with its tokenizer."""
    cell: Cell
    """The recipe, with fingerprints."""
    student: Mapping[str, Any]
    """lm_loss (nats/token), perplexity, parameters and, after distillation, the losses before it."""
    teacher: Mapping[str, Any]
    """The same metrics of the teacher."""
    env: Mapping[str, Any]
    """Command, commit, versions and hardware."""
    plan: Path | None
    """plan.json: the kept indices of the teacher's units; None if nothing was pruned."""


def write(found: Compressed, target: Path, name: str) -> Compressed:
    """Copy the student, its plan and a model card to a folder: atomically if it does not exist.

    An existing one may be a mount point or the working directory, so it is filled, config.json last.
    """
    from lit_prune.models.loading import load_config
    from lit_prune.models.shape import loading_module
    from lit_prune.render.model_card import model_card

    there = target.is_dir()
    scratch = target / f".{os.getpid()}" if there else target.with_name(f".{target.name}.{os.getpid()}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copytree(found.folder, scratch)
        plan = None if found.plan is None or not found.plan.is_file() else target / "plan.json"
        if plan is not None and found.plan is not None:
            shutil.copyfile(found.plan, scratch / plan.name)
        shapes = None if plan is None else _shapes(found)
        module = loading_module(load_config(str(scratch)))
        card = model_card(found.cell, found.student, found.teacher, found.env, name, shapes, module)
        (scratch / "README.md").write_text(card)
        if there:
            for path in sorted(scratch.iterdir(), key=lambda path: path.name == "config.json"):
                path.rename(target / path.name)
            scratch.rmdir()
        else:
            scratch.rename(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return dataclasses.replace(found, folder=target, plan=plan)


def _shapes(found: Compressed) -> dict[str, tuple[int, tuple[int, int]]]:
    """Return name -> size of the teacher, and least and greatest of the layers of the student, if it changed."""
    from lit_prune.pruning.plan import PrunePlan

    assert found.plan is not None
    plan = PrunePlan.load(found.plan)
    layers = [vars(plan.shape_of_layer(layer)) for layer in plan.layers]
    ranges = {name: (min(s[name] for s in layers), max(s[name] for s in layers)) for name in vars(plan.original)}
    return {name: (size, ranges[name]) for name, size in vars(plan.original).items() if ranges[name] != (size, size)}
