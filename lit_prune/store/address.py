"""Addresses of results: the address of a stage is a hash of the sections of the cell that it reads. No torch."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from typing import Any

from lit_prune.config import EVIDENCE, Cell
from lit_prune.config.overrides import parent_of
from lit_prune.config.renames import former_name, former_value

SCHEMA = dict.fromkeys(("tokenizer", "tokens", "teacher", "correction", *EVIDENCE, "student", "cell"), 1)
"""Version of each stage; raise it when the stage computes something else from the same sections."""

_ALWAYS_HASHED = ("tokens", "teacher", "importance", "student", "cell")
"""Stages whose version is in all addresses downstream; that of a stage added later is included from 2 on."""

STAGES: dict[str, tuple[str, ...]] = {
    "tokenizer": ("teacher",),
    "teacher": ("teacher",),
    "tokens": ("teacher", "corpus"),
    "correction": ("teacher", "corpus"),
    **dict.fromkeys(EVIDENCE, ("teacher", "corpus", "source", "importance")),
    "student": ("teacher", "corpus", "source", "importance", "student"),
    "cell": ("teacher", "corpus", "source", "importance", "student", "distill", "evaluation", "seed"),
}
"""The sections that each stage reads, its own and all upstream, by the names used in hashes (see config.renames)."""

CACHE = "teacher_outputs"
"""Folder of the nodes that cache teacher outputs; these are recomputed if missing or damaged."""

_BEFORE_CORRECTION = ("tokenizer", "teacher", "tokens")
"""Stages before the fine-tuning of the teacher, whose settings their addresses exclude."""


def canonical(node: Any) -> Any:
    """Return the hashed part of a config value as plain data, with the names used in hashes.

    A fingerprint replaces the path or name of its model or plan. Fields equal to their `noop` value are left out.
    """
    if not dataclasses.is_dataclass(node):
        return list(node) if isinstance(node, tuple) else node
    plain = {
        name: canonical(former_value(f, value))
        for f, name in _hashed_fields(node.__class__)
        for value in (getattr(node, f.name),)
        if "noop" not in f.metadata or value != f.metadata["noop"]
    }
    if isinstance(node, Cell) and (parent := parent_of(node)):
        plain["source"] = canonical(parent)
    if plain.get("fingerprint"):
        plain.pop("source", None)
        plain.pop("model", None)
        plain.pop("plan", None)
        plain.pop("data_dir", None)
    return plain


@functools.cache
def _hashed_fields(kind: type) -> tuple[tuple[dataclasses.Field[Any], str], ...]:
    """Return the fields of a section with the names used in hashes."""
    return tuple((field, former_name(field)) for field in dataclasses.fields(kind))


def digest(plain: Any) -> str:
    """Return the first 12 hexadecimal digits of the sha256 of the canonical JSON."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def identity(cell: Cell, stage: str) -> dict[str, Any]:
    """Return the data that the address of `stage` hashes; for a parent it includes the data of its own address."""
    read = STAGES[stage]
    if stage in _BEFORE_CORRECTION:
        cell = dataclasses.replace(cell, teacher=dataclasses.replace(cell.teacher, finetune=None))
    fields = {former_name(f): f.name for f in dataclasses.fields(Cell)}
    sections = {name: canonical(getattr(cell, fields[name])) for name in read if name != "source"}
    if "source" in read and (parent := parent_of(cell)):
        sections["source"] = identity(parent, "cell")
    upstream = (s for s in STAGES if set(STAGES[s]) <= set(read) and (s == stage or not {s, stage} <= set(EVIDENCE)))
    if stage != "correction" and cell.teacher.finetune is None:
        upstream = (s for s in upstream if s != "correction")
    schema = {s: SCHEMA[s] for s in upstream if s in _ALWAYS_HASHED or SCHEMA[s] > 1}
    if "distill" in read and (cell.distill.lora is not None or cell.distill.train_last_layers is not None):
        schema["train_flops"] = 2  # version 1 counted gradients of frozen weights
    return {"stage": stage, "schema": schema, **sections}


def key(cell: Cell, stage: str = "cell") -> str:
    """Return the address of a stage of a cell."""
    return digest(identity(cell, stage))
