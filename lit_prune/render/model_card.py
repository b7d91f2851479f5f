"""Write the model card of a pruned or distilled model: README.md with metadata for the Hugging Face hub."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_prune.config import Cell
from lit_prune.config.overrides import flatten, plain_of
from lit_prune.escape import markdown_code, markdown_text

_DONE = {"prune": "pruned", "distill": "distilled"}
_DEFAULT = dict(flatten(plain_of(Cell())))


def model_card(
    cell: Cell,
    student: Mapping[str, Any],
    teacher: Mapping[str, Any],
    env: Mapping[str, Any],
    verb: str,
    shapes: Mapping[str, tuple[int, tuple[int, int]]] | None = None,
    module: str | None = None,
) -> str:
    """Return the card: base model, sizes cut and method, losses before and after, retraining, command, versions.

    `module` is what to import before transformers can load the model, None for a stock model.
    """
    from huggingface_hub import ModelCardData

    base, licence = str(cell.teacher.model), licence_of(cell)
    data = ModelCardData(
        license=licence, base_model=base if "/" in base and not Path(base).exists() else None,
        library_name="transformers", tags=["lit-prune", verb],
        pipeline_tag="text-generation",
    )  # fmt: skip
    rows = [("teacher", teacher)]
    if "lm_loss_before" in student:
        sizes = ("parameters", "sparsity", "nonzero_parameters")
        before = {name: student[name] for name in sizes if name in student} | {"lm_loss": student["lm_loss_before"]}
        rows.append(("student before distillation", before))
    rows.append(("student", student))
    lines = [
        "---", data.to_yaml(), "---", "", f"# {markdown_text(Path(base).name)}, {_DONE[verb]} with lit_prune", "",
        f"Base model: {markdown_text(base)}. Licence of the base model: {licence or 'not stated in its folder'}.", "",
        "| model | parameters | LM loss (nats/token) |", "|---|---:|---:|",
        *(f"| {name} | {size_text(found)} | {found['lm_loss']:.4f} |" for name, found in rows), "",
        f"Measured on {student['num_tokens']:,} validation tokens of {markdown_text(cell.corpus.path)}.", "",
        *_cut(shapes), *_loading(module), *_retraining(cell),
        "## Recipe", "", "Settings that differ from the defaults:", "",
        markdown_code("\n".join(f"{path} = {value}" for path, value in _changed(cell))), "",
        "Made by:", "", markdown_code(str(env.get("command", shlex.join(["lit-prune", verb])))), "",
        ", ".join(f"{name} {version}" for name, version in (env.get("versions") or {}).items() if version), "",
    ]  # fmt: skip
    return "\n".join(lines)


def size_text(found: Mapping[str, Any]) -> str:
    """Return the number of parameters, and for a sparse model how many are not zero.

    A sparse model has as many parameters as the dense one, and takes as much memory and time.
    """
    zeros = f"{found['nonzero_parameters']:,} not zero, {found['sparsity']:.1%} sparse" if "sparsity" in found else ""
    return f"{found['parameters']:,} ({zeros})" if zeros else f"{found['parameters']:,}"


def _cut(shapes: Mapping[str, tuple[int, tuple[int, int]]] | None) -> list[str]:
    """Return the lines of the sizes before and after, as a range if layers differ; plan.json has every index."""
    if not shapes:
        return []
    lines = (
        f"| {name} | {before:,} | {least:,}{f' to {most:,}' if most > least else ''} |"
        for name, (before, (least, most)) in shapes.items()
    )
    return ["## What was cut", "", "| size | teacher | student |", "|---|---:|---:|", *lines, ""]


def _loading(module: str | None) -> list[str]:
    """Return the lines on how to load a model that is no stock one."""
    if module is None:
        return []
    code = f"import {module}\nfrom transformers import AutoModelForCausalLM\n\n"
    code += 'model = AutoModelForCausalLM.from_pretrained("FOLDER")'
    return ["## Loading", "", "The model needs `lit_prune`:", "", markdown_code(code), ""]


def _retraining(cell: Cell) -> list[str]:
    """Return the published retraining of the method, and whether it was done; nothing for a given student."""
    if cell.prune.init_from is not None:
        return []
    published, fields = cell.prune.retraining, dict(flatten(plain_of(cell)))
    done = "done here" if cell.distill.max_steps else "not done here"
    if cell.distill.max_steps and any(fields.get(path) != value for path, value in published.items()):
        done = "retrained here with the settings below"
    settings = ", ".join(f"`{path}={json.dumps(value)}`" for path, value in published.items())
    name = markdown_text(cell.prune.method)
    return [f"Published retraining of {name}: {f'{settings}; {done}' if published else 'none'}.", ""]


def licence_of(cell: Cell) -> str | None:
    """Return the licence that the base model's own card states, or None."""
    from huggingface_hub import metadata_load, try_to_load_from_cache

    from lit_prune.models.loading import local_folder
    from lit_prune.models.sources import source_of

    model = str(cell.teacher.model)
    if source := source_of(model):
        return source.licence
    folder = local_folder(model)
    card = folder / "README.md" if folder else try_to_load_from_cache(model, "README.md")
    if not isinstance(card, (str, Path)) or not Path(card).is_file():
        return None
    try:
        stated = (metadata_load(card) or {}).get("license")
    except ValueError:
        return None
    return stated if isinstance(stated, str) else None


def _changed(cell: Cell) -> list[tuple[str, Any]]:
    """Return the fields of a cell that differ from the defaults."""
    fields = flatten(plain_of(cell))
    return [(path, value) for path, value in fields if value is not None and _DEFAULT.get(path) != value]
