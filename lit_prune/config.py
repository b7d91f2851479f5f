"""What is asked: the sections of a cell, how they are changed, and the address each stage gets from them.

A cell is the whole recipe of one measurement. Everything in it is identity: the address of a stage is a hash of the
sections that stage reads. Where and how fast it runs (device, workers, store) is never in here. No torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml

SCHEMA = {"tokens": 1, "teacher": 1, "importance": 1, "student": 1, "cell": 1}
"""Meaning of each stage's artifacts; raised by hand when a stage computes something else from the same sections."""

Size = int | float | None
"""Target of one axis: a whole number is a count, a fraction in (0, 1] a share of the teacher, None keeps it."""


class ConfigError(ValueError):
    """A request that cannot be met; its message is one line that says what is wrong and what is allowed."""


def later(default: Any, noop: Any) -> Any:
    """A field added after results exist: left out of the address while it holds `noop`, so old addresses stand."""
    return field(default=default, metadata={"noop": noop})


@dataclass(frozen=True)
class Corpus:
    """Text, split by document into train, validation and calibration."""

    source: str = "python"
    """"python" (this machine's standard library and its documentation topics), "python+dependencies" (and the
    source of six packages lit_prune depends on), a file or folder (.txt .txt.gz .json .jsonl .parquet), or the id
    of a data set on the Hugging Face hub, which is streamed."""
    column: str = "text"
    """Column that holds the text, in JSON, Parquet and hub data."""
    subset: str | None = None
    """Configuration name of a hub data set."""
    heldout: float = 0.1
    """Share of the documents kept for validation; the same share again is kept for calibration."""
    max_tokens: int | None = None
    """Tokens of the train split to take from the stream; None takes all there are."""
    fingerprint: str | None = None
    """sha256 of the text, or revision on the hub. Filled in by the program: it replaces `source` in the address."""


@dataclass(frozen=True)
class Optim:
    """AdamW with linear warm-up and cosine decay, stepped once a batch."""

    lr: float = 1e-3
    """Peak learning rate."""
    min_lr: float = 1e-5
    """Learning rate at the last step."""
    warmup: int = 10
    """Steps of linear warm-up."""
    beta1: float = 0.9
    """Decay of the first moment. The papers do not state theirs."""
    beta2: float = 0.95
    """Decay of the second moment. The papers do not state theirs."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; vectors (norms, biases) have none."""
    clip: float = 1.0
    """Largest global gradient norm."""


@dataclass(frozen=True)
class Pretraining:
    """A Llama with grouped-query attention and an untied head, trained from random weights. The defaults are the
    recipe of the teacher that ships with the package."""

    corpus: Corpus = Corpus(source="python+dependencies")
    """Text to train on; its train split also trains the byte-level BPE tokenizer."""
    vocab_size: int = 2048
    """Entries of the tokenizer."""
    hidden: int = 192
    """Width of the residual stream."""
    layers: int = 6
    """Blocks."""
    heads: int = 6
    """Query heads."""
    kv_heads: int = 2
    """Key/value groups."""
    head_dim: int = 32
    """Width of one head."""
    neurons: int = 512
    """Width of the MLP."""
    block: int = 256
    """Tokens in a sequence."""
    batch: int = 8
    """Sequences in a step."""
    steps: int = 7000
    """Optimizer steps."""
    optim: Optim = Optim(lr=3e-3, min_lr=1e-4, warmup=200)
    """Optimizer and schedule."""
    seed: int = 0
    """Seed of the initial weights and the data order."""


@dataclass(frozen=True)
class Teacher:
    """The model that is compressed and then imitated."""

    model: str | None = "python-3.1M"
    """A teacher that ships with the package, a folder in Hugging Face layout, or a hub id; None trains one."""
    pretraining: Pretraining | None = None
    """How to train the teacher where `model` is None."""
    fingerprint: str | None = None
    """sha256 of the weights, or revision on the hub. Filled in by the program: it replaces `model` in the address."""


@dataclass(frozen=True)
class Importance:
    """One forward pass of the teacher over calibration data; every criterion reads its statistics."""

    samples: int = 128
    """Calibration sequences (1,024 in the papers)."""
    block: int = 256
    """Tokens in a sequence."""
    seed: int = 0
    """Seed of the draw from the calibration split."""


@dataclass(frozen=True)
class Student:
    """What is kept of the teacher, and by which score."""

    criterion: str = "activation"
    """Score that ranks the units of each axis."""
    batch: Literal["l2", "mean", "var"] = "l2"
    """Aggregation of activation scores over sequences (Minitron, section 2.2)."""
    seq: Literal["l2", "mean", "var"] = "mean"
    """Aggregation of activation scores over the tokens of a sequence."""
    hidden: Size = 0.75
    """Hidden channels to keep, the same in every block."""
    neurons: Size = 0.6875
    """MLP neurons to keep in each block."""
    heads: Size = 0.667
    """Query heads to keep in each block, in equal number inside every KV group."""
    model: str | None = later(None, noop=None)
    """An already small model (folder or hub id) to start from instead of pruning the teacher."""
    fingerprint: str | None = later(None, noop=None)
    """sha256 of `model`'s weights. Filled in by the program."""


@dataclass(frozen=True)
class Distill:
    """L = w_clm * L_CLM + w_logits * L_logits + alpha * L_is (Minitron, section 3)."""

    logit_loss: str = "kld"
    """Loss between the vocabularies' distributions of teacher and student."""
    temperature: float = 1.0
    """Both logits are divided by it first."""
    tau_squared: bool = False
    """Multiply L_logits by temperature squared; the papers do not."""
    w_clm: float = 0.0
    """Weight of the student's cross-entropy on the labels."""
    w_logits: float = 1.0
    """Weight of the logit loss."""
    alpha: float | Literal["dynamic"] = 0.0
    """Weight of the intermediate loss; "dynamic" is L_logits / L_is, detached, at every step."""
    hidden_loss: str = "cosine"
    """Loss between intermediate states."""
    embedding: bool = False
    """L_emb: compare the embedding output, read after the first block's norm."""
    mlp_input: tuple[str, ...] = ()
    """L_i: "teacher:student" blocks (0-based, or last, last-1, ...) compared at the input of the MLP."""
    block_output: tuple[str, ...] = ()
    """L_o: "teacher:student" blocks compared at their output, read after the norm that follows."""
    block: int = 256
    """Tokens in a sequence."""
    batch: int = 8
    """Sequences in a step, over all devices."""
    steps: int = 100
    """Optimizer steps; 0 evaluates the pruned student as it is."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Arithmetic of the training steps."""
    optim: Optim = Optim()
    """Optimizer and schedule."""


@dataclass(frozen=True)
class Evaluation:
    """Language-model loss on the validation split."""

    blocks: int = 64
    """Validation sequences, drawn once and the same for every cell."""
    block: int = 256
    """Tokens in a sequence."""


@dataclass(frozen=True)
class Cell:
    """One measurement: a teacher, pruned and distilled, evaluated."""

    corpus: Corpus = Corpus()
    """Text for calibration, retraining and validation."""
    teacher: Teacher = Teacher()
    """The model that is compressed."""
    importance: Importance = Importance()
    """The calibration pass."""
    student: Student = Student()
    """The pruned shape."""
    distill: Distill = Distill()
    """The retraining."""
    evaluation: Evaluation = Evaluation()
    """The measurement."""
    seed: int = 0
    """Seed of the retraining: the order of the data, and new weights where there are any."""


@dataclass(frozen=True)
class Profile:
    """The scale a table is asked at."""

    cell: Cell
    """The base cell."""
    seeds: int = 3
    """Seeds of every row."""


Node = TypeVar("Node")

STAGES: dict[str, tuple[str, ...]] = {
    "teacher": ("teacher",),
    "tokens": ("teacher", "corpus"),
    "importance": ("teacher", "corpus", "importance"),
    "student": ("teacher", "corpus", "importance", "student"),
    "cell": ("teacher", "corpus", "importance", "student", "distill", "evaluation", "seed"),
}
"""The sections each stage reads: its own and all those upstream."""


def canonical(node: Any) -> Any:
    """The part of a node that is identity, as plain data: fingerprints replace places, declared no-ops are left out."""
    if not dataclasses.is_dataclass(node):
        return list(node) if isinstance(node, tuple) else node
    plain = {
        f.name: canonical(getattr(node, f.name))
        for f in dataclasses.fields(node)
        if "noop" not in f.metadata or getattr(node, f.name) != f.metadata["noop"]
    }
    if plain.get("fingerprint"):
        plain.pop("source", None)
        plain.pop("model", None)
    return plain


def digest(plain: Any) -> str:
    """First 12 hexadecimal digits of the sha256 of canonical JSON."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def identity(cell: Cell, stage: str) -> dict[str, Any]:
    """What the address of `stage` is made of."""
    sections = {name: canonical(getattr(cell, name)) for name in STAGES[stage]}
    return {"stage": stage, "schema": {s: SCHEMA[s] for s in STAGES if set(STAGES[s]) <= set(sections)}, **sections}


def key(cell: Cell, stage: str = "cell") -> str:
    """Address of a stage of a cell."""
    return digest(identity(cell, stage))


def build(kind: type[Node], plain: Mapping[str, Any]) -> Node:
    """A node from plain data, strict in every name and type.

    Raises:
        ConfigError: an unknown field or a value of the wrong type, with the field's dotted path.
    """
    import pydantic

    try:
        return _adapter(kind).validate_json(json.dumps(plain), strict=True)
    except pydantic.ValidationError as error:
        raise ConfigError(_explain(kind, error.errors())) from None


_UNION_TAGS = {"int", "float", "str", "literal['dynamic']", "Pretraining", "Corpus"}


@functools.cache
def _adapter(kind: type) -> Any:
    import pydantic

    return pydantic.TypeAdapter(_forbidding(kind))


@functools.cache
def _forbidding(kind: type) -> type:
    """Mark a section and those nested in it so that an unknown field is an error."""
    strict = {"extra": "forbid", "allow_inf_nan": False}
    for section in (Corpus, Optim, Pretraining, Teacher, Importance, Student, Distill, Evaluation, Cell, Profile):
        section.__pydantic_config__ = strict  # type: ignore[attr-defined]
    return kind


def _explain(kind: type, errors: list[Any]) -> str:
    """One line about the first wrong field; a union fails once for each of its members, all of them allowed."""
    paths = [".".join(str(part) for part in error["loc"] if part not in _UNION_TAGS) for error in errors]
    if errors[0]["type"] == "unexpected_keyword_argument":
        return unknown("field", paths[0], fields_of(kind))
    here = [error["msg"] for path, error in zip(paths, errors, strict=True) if path == paths[0]]
    allowed = " or ".join(dict.fromkeys(message.removeprefix("Input should be ") for message in here))
    return f"{paths[0]}: should be {allowed}, not {errors[0]['input']!r}"


def unknown(what: str, name: str, allowed: Any) -> str:
    """One line for a name that does not exist, with the nearest one and all that do."""
    names = sorted(allowed)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; perhaps you meant {near[0]!r}" if near else ""
    return f"unknown {what} {name!r}{hint}; there are: {', '.join(names)}"


def fields_of(kind: Any, prefix: str = "") -> list[str]:
    """Dotted paths of all fields of a section, those filled in by the program left out."""
    paths: list[str] = []
    for f, value in _fields_and_defaults(kind):
        if f.name == "fingerprint":
            continue
        if dataclasses.is_dataclass(value):
            paths += fields_of(value, f"{prefix}{f.name}.")
        else:
            paths.append(prefix + f.name)
    return paths


def _fields_and_defaults(kind: Any) -> list[tuple[dataclasses.Field[Any], Any]]:
    nested = {"pretraining": Pretraining(), "cell": Cell()}
    return [(f, nested.get(f.name, f.default)) for f in dataclasses.fields(kind)]


def plain_of(node: Any) -> dict[str, Any]:
    """A node as nested dicts."""
    return dataclasses.asdict(node)


_PLACES = ("source", "model")
"""Fields a fingerprint stands for: where one is changed, the fingerprint is that of something else."""


def override(node: Node, changes: Mapping[str, Any]) -> Node:
    """The same node with dotted fields changed; the one mechanism behind profiles, grid axes and --set.

    Raises:
        ConfigError: a path that does not exist or a value of the wrong type.
    """
    plain = plain_of(node)
    for path, value in changes.items():
        *parents, name = path.split(".")
        place: Any = plain
        for parent in parents:
            if isinstance(place, dict) and parent == "pretraining" and place.get(parent, ()) is None:
                place[parent] = plain_of(Pretraining())
            place = place.get(parent) if isinstance(place, dict) else None
        if not isinstance(place, dict) or name not in place:
            raise ConfigError(unknown("field", path, fields_of(type(node))))
        if name in _PLACES and place[name] != value:
            place["fingerprint"] = None
        place[name] = value
    return build(type(node), plain)  # type: ignore[arg-type]


def parse_setting(text: str) -> tuple[str, Any]:
    """("distill.steps", 50) from "distill.steps=50"; the value is read as YAML.

    Raises:
        ConfigError: no "=", or a value that is no YAML.
    """
    path, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set takes field=value, not {text!r}")
    return path.strip(), _read_yaml(value, f"--set {path.strip()}")


class _Yaml(yaml.SafeLoader):
    """YAML without the surprises of its version 1.1, where 1e-3 is text and 29:13 is 1753 minutes."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


for _tag, _text, _first in (
    ("null", r"~|null|", [*"~nN", ""]),
    ("bool", r"true|false", [*"tTfF"]),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", [*"-+0123456789"]),
    ("float", r"[-+]?(\d+e[-+]?\d+|(\d[0-9_]*\.\d*|\.\d+)(e[-+]?\d+)?)", [*"-+.0123456789"]),
):
    _pattern = re.compile(f"({_text})$", re.IGNORECASE | re.ASCII)
    _Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)


def _read_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Yaml)
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ConfigError(f"{where}: cannot be read as YAML ({problem})") from None


def profiles_folder() -> Path:
    """Where the profiles lie: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parent
    beside = package.parent / "configs"
    return beside if beside.is_dir() and not (package / "configs").is_dir() else package / "configs"


def load_profile(name: str) -> Profile:
    """A profile by name or path of a YAML file.

    Raises:
        ConfigError: no such profile, or a field or value it may not have.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else profiles_folder() / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(unknown("profile", name, (p.stem for p in profiles_folder().glob("*.yaml"))))
    plain = _read_yaml(path.read_text(), str(path))
    if not isinstance(plain, dict):
        raise ConfigError(f"{path}: a profile is a mapping of sections, not {plain!r}")
    cell = override(Cell(), dict(_flatten({k: v for k, v in plain.items() if k != "seeds"})))
    return build(Profile, {"cell": plain_of(cell), "seeds": plain.get("seeds", 3)})


def _flatten(plain: Mapping[str, Any], prefix: str = "") -> Any:
    for name, value in plain.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def expand(path: str | os.PathLike[str]) -> Path:
    """A path as the shell would read it."""
    return Path(os.path.expandvars(path)).expanduser()
