"""How cells are changed and read: strict overrides by dotted path, --set values, profiles. No torch."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from lit_prune.config import Cell, ConfigError, Distill, Execution, Placement, PruneMethod, errors_of, unknown_field
from lit_prune.config.fields import of_parent, plain_scalar
from lit_prune.config.prune import DEFAULT_METHOD, method_class, method_names
from lit_prune.config.renames import current_change
from lit_prune.config.runtime import OF_CLUSTERS
from lit_prune.config.sections import begin_of, section_of, sections
from lit_prune.config.yaml_loader import read_yaml

Node = TypeVar("Node")


def build(kind: type[Node], plain: Mapping[str, Any]) -> Node:
    """Return a section built from plain data, with strict names and types.

    Raises:
        ConfigError: if a field is unknown or a value has the wrong type; names the dotted path.
    """
    import pydantic

    try:
        text = json.dumps(plain, default=plain_scalar)
        return _adapter(kind, tuple(method_names())).validate_json(text, strict=True)  # type: ignore[arg-type]
    except pydantic.ValidationError as error:
        raise ConfigError(_explain(kind, error.errors(), plain)) from None


@functools.cache
def _adapter(kind: type, methods: tuple[str, ...]) -> Any:
    """Return the validator of a section; `methods` are the names of all methods, which the `prune` section may have."""
    import pydantic

    for section in sections(kind):  # an unknown field is an error in each
        section.__pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # type: ignore[attr-defined]
    return pydantic.TypeAdapter(kind)


def _explain(kind: type, errors: list[Any], plain: Mapping[str, Any]) -> str:
    """Return one line about the first wrong field; a union fails once for each of its members, all of them allowed."""
    for path, value in flatten(plain):
        if not is_unicode(value):
            return f"{path}: must be valid UTF-8, got {value!r}"
    paths = [_path(kind, error) for error in errors]
    if errors[0]["type"] == "unexpected_keyword_argument":
        return unknown_field(paths[0], fields_of(kind))
    here = [_rule(error["msg"]) for path, error in zip(paths, errors, strict=True) if path == paths[0]]
    return f"{paths[0]}: must be {' or '.join(dict.fromkeys(here))}, got {errors[0]['input']!r}"


def _path(kind: type | None, error: Any) -> str:
    """Return the dotted path of an error: fields and places in lists, without the members of unions."""
    *location, last = error["loc"]
    parts = []
    for part in [*location, last]:
        names = [field.name for field in dataclasses.fields(kind)] if kind else []
        if kind and issubclass(kind, PruneMethod) and part in method_names():
            kind = method_class(part)
        elif isinstance(part, int) or part in names:
            parts.append(str(part))
            kind = section_of(kind, part) if kind and isinstance(part, str) else None
    return ".".join([*parts, last] if error["type"] == "unexpected_keyword_argument" else parts)


def _rule(message: str) -> str:
    """Return the rule of a pydantic error in the wording of our errors."""
    rule = message.removeprefix("Input should be ")
    for words, sign in _SIGNS.items():
        rule = rule.replace(words, sign)
    return rule


_SIGNS = {
    "greater than or equal to": ">=", "less than or equal to": "<=", "greater than": ">", "less than": "<",
}  # fmt: skip


def is_unicode(value: Any) -> bool:
    """Return False for a string with bytes that are not UTF-8, which names of files may have."""
    return not isinstance(value, str) or value.encode(errors="ignore").decode() == value


def fields_of(kind: Any, prefix: str = "") -> list[str]:
    """Return dotted paths of all fields of a section, except those that the program fills in."""
    paths: list[str] = []
    for field in dataclasses.fields(kind):
        section = section_of(kind, field.name)
        if section is not None:
            paths += fields_of(section, f"{prefix}{field.name}.")
        elif field.name != "fingerprint":
            paths.append(prefix + field.name)
    return paths


def plain_of(node: Any) -> dict[str, Any]:
    """Return a section as nested dicts."""
    plain = dataclasses.asdict(node)
    if isinstance(node, Cell) and node.parent is not None:
        plain["parent"] = dict(node.parent)
    return plain


def check_flags(flags: Execution | Placement) -> None:
    """Check that runtime flags are in the ranges of their fields.

    Raises:
        ConfigError: if one is not; its name is that of the flag.
    """
    with errors_of({field.name: f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(flags)}):
        build(type(flags), plain_of(flags))


def check_placement(placement: Placement) -> None:
    """Check the flags of a placement.

    Raises:
        ConfigError: as `check_flags`, and if a flag has no effect at this place.
    """
    check_flags(placement)
    for name, places in OF_CLUSTERS.items():
        if getattr(placement, name) != getattr(Placement, name) and placement.on not in places:
            raise ConfigError(f"--{name}: must be given with --on {' or '.join(places)}, got --on {placement.on}")


def described(node: Any) -> Any:
    """Return every field of a cell by name, that of its parent within it, as data of which each leaf is a scalar.

    A fingerprint stands for the places that hold the content.
    """
    if not dataclasses.is_dataclass(node):
        return ", ".join(map(str, node)) if isinstance(node, tuple) else node
    plain = {f.name: described(getattr(node, f.name)) for f in dataclasses.fields(node)}
    if isinstance(node, Cell):
        plain["parent"] = described(parent_of(node))
    elif plain.get("fingerprint"):
        plain = {name: value for name, value in plain.items() if name not in _PLACES}
    return plain


_PLACES = ("path", "model", "plan_path", "init_from", "data_dir")
"""Fields that a fingerprint stands for: changing one makes the fingerprint invalid."""


BUDGETS = {f.name: f.default for f in dataclasses.fields(Distill) if f.name in ("max_steps", "max_tokens", "max_flops")}
"""Fields that set the length of the retraining: setting one resets the others to their defaults."""


def refuse_two_budgets(changes: Mapping[str, Any]) -> None:
    """Check that changes set at most one length of the retraining.

    Raises:
        ConfigError: if they set more than one.
    """
    given: dict[str, list[str]] = {}
    for path in changes:
        cell, _, name = path.rpartition("distill.")
        if name in BUDGETS and changes[path] is not None:
            given.setdefault(cell, []).append(path)
    for paths in given.values():
        if len(paths) > 1:
            raise ConfigError(
                f"{paths[0]}: must be the only length (max_steps, max_tokens or max_flops), got {' and '.join(paths)}"
            )


def override(node: Node, changes: Mapping[str, Any]) -> Node:
    """Return the same node with dotted fields changed; the one mechanism behind profiles, grid axes and --set.

    Raises:
        ConfigError: a path that does not exist or a value of the wrong type.
    """
    changed = _changed(node, changes)
    if isinstance(changed, Cell):
        parents_of(changed)
    return changed


def parent_of(cell: Cell) -> Cell | None:
    """Return the cell whose student is pruned: this cell with the changes of `parent`, which override all others.

    Raises:
        ConfigError: as `override`.
    """
    if cell.parent is None:
        return None
    with of_parent():
        return _changed(dataclasses.replace(cell, parent=None), dict(cell.parent))


def parents_of(cell: Cell) -> list[Cell]:
    """Return the parent of a cell, its parent, and so on.

    Raises:
        ConfigError: as `override`.
    """
    parent = parent_of(cell)
    if parent is None:
        return []
    with of_parent():
        return [parent, *parents_of(parent)]


def _changed(node: Node, changes: Mapping[str, Any]) -> Node:
    """`override`, with the changes of a parent noted and not yet carried out."""
    plain = dataclasses.asdict(node)  # type: ignore[call-overload]
    for path, value in sorted(changes.items(), key=_method_first):
        first, _, rest = path.partition(".")
        if first == "parent" and isinstance(node, Cell):
            plain["parent"] = _noted(plain["parent"], rest, value)
            continue
        *parents, name = path.split(".")
        place: Any = plain
        kind: type | None = type(node)
        for parent in parents:
            section = section_of(kind, parent) if kind else None
            if kind and section and place.get(parent) is None:
                place[parent] = plain_of(begin_of(kind, parent))
            place, kind = place.get(parent) if isinstance(place, dict) else None, section
        if not isinstance(place, dict) or name not in place:
            raise ConfigError(_unknown(path, type(node), parents, place))
        if parents[-1:] == ["prune"] and name == "method":
            if value != place["method"]:  # the settings of another method mean nothing to this one
                place.clear()
                place.update(plain_of(method_class(value)()))
            continue
        if parents[-1:] == ["distill"] and name in BUDGETS and value is not None:
            place.update({other: default for other, default in BUDGETS.items() if other != name})
        if name in _PLACES and place[name] != value:
            place["fingerprint"] = None
        place[name] = plain_of(value) if dataclasses.is_dataclass(value) else value
    return build(type(node), plain)


def _method_first(change: tuple[str, Any]) -> bool:
    """Return the key that puts the choice of a method before the settings that are given with it."""
    return not f".{change[0]}".endswith(".prune.method")


def _unknown(path: str, kind: type, parents: list[str], place: Any) -> str:
    """Return one line about a field that does not exist."""
    if parents[-1:] == ["prune"] and isinstance(place, dict) and place["method"] != DEFAULT_METHOD:
        allowed = ", ".join(name for name in place if name != "fingerprint")
        return f"{path}: unknown field of method {place['method']} (allowed: {allowed})"
    if parents[-1:] == ["prune"] and (others := _methods_with(path.rpartition(".")[2])):
        return f"{path}: unknown field of method {DEFAULT_METHOD} (methods with it: {', '.join(others)})"
    return unknown_field(path, fields_of(kind))


def _methods_with(name: str) -> list[str]:
    """Return the methods that have a setting of this name."""
    return [method for method in method_names() if name in {f.name for f in dataclasses.fields(method_class(method))}]


def _noted(parent: Any, path: str, value: Any) -> list[tuple[str, Any]] | None:
    """Return the changes of a parent after one more, which replaces those of the same fields."""
    if dataclasses.is_dataclass(value):
        value = plain_of(value)
    if not path and value is None:
        return None
    if not path and not isinstance(value, Mapping) and value != ():
        raise ConfigError(f"parent: must be fields of a cell, {{}} or null, got {value!r}")
    found = dict(parent or ())
    for name, new in flatten({path: value} if path else dict(value)):
        if new == {}:  # a section begins, and keeps what it has
            found[name] = found.get(name) or ()
            continue
        found = {old: kept for old, kept in found.items() if old != name and not old.startswith(f"{name}.")}
        found[name] = new
    return list(found.items())


def parse_setting(text: str, flag: str = "--set") -> tuple[str, Any]:
    """("distill.max_steps", 50) from "distill.max_steps=50"; the value is read as YAML. Errors name the flag.

    Raises:
        ConfigError: no "=", or a value that is no YAML.
    """
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"{flag}: must be field=value, got {text!r}")
    return current_change(path.strip(), read_yaml(value, f"{flag} {path.strip()}"))


def flatten(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted paths and values of nested mappings."""
    for name, value in plain.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
