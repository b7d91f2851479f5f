"""`lit-prune fields`: the settings of a cell and of a profile, with meaning, type and default. No torch."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import tyro
from rich.padding import Padding

from lit_prune.cli.process import Output, Verb
from lit_prune.config import Cell, ConfigError, Profile, PruneMethod, unknown_field
from lit_prune.config.prune import DEFAULT_METHOD, method_class, method_names
from lit_prune.config.sections import begin_of, section_of
from lit_prune.escape import terminal_text


@dataclass(frozen=True)
class Setting:
    """A field that --set or a profile accepts."""

    path: str
    type: str
    default: Any
    doc: str
    optional: str | None = None
    """The section around it that is null unless one of its fields is set."""

    @property
    def section(self) -> str:
        """The path without the last name."""
        return self.path.rpartition(".")[0]


@dataclass(frozen=True)
class CliArgs:
    """List the settings that --set and profiles accept, with their defaults and meaning."""

    section: tyro.conf.Positional[str | None] = None
    """Section (corpus, teacher, distill, distill.optimizer, ...) or field to explain in full; default: a summary of
    all."""


def settings() -> list[Setting]:
    """Return every field of a cell and of a profile; those of a profile alone come last."""
    cell = list(_settings(Cell, ""))
    return cell + [one for one in _settings(Profile, "") if one.path.partition(".")[0] != "cell"]


def _settings(kind: type, prefix: str, optional: str | None = None, values: Any = None) -> Iterator[Setting]:
    """Yield the fields of a section; `values` is the section that holds their defaults, by default those of `kind`."""
    import docstring_parser

    docs = {
        param.arg_name: param.description or ""
        for section in reversed(kind.__mro__[:-1])
        for param in docstring_parser.parse_from_object(section).params
    }
    for field in dataclasses.fields(kind):
        path, section = f"{prefix}{field.name}", section_of(kind, field.name)
        default = None if field.default is dataclasses.MISSING else field.default
        default = default if values is None else getattr(values, field.name)
        if section is not None and field.name != "cell":
            around = path if default is None else optional
            inside = default if isinstance(default, section) else begin_of(kind, field.name)
            yield from _settings(section, f"{path}.", around, inside)
        elif field.name not in ("cell", "fingerprint"):  # the program fills in fingerprints
            default = kind.name if issubclass(kind, PruneMethod) and field.name == "method" else default
            yield Setting(path, _named(str(field.type)), default, docs.get(field.name, ""), optional)


def _named(annotation: str) -> str:
    """Return a type as a person writes its values: aliases of the source spelled out, literals as alternatives."""
    for alias, meaning in _ALIASES.items():
        annotation = re.sub(rf"\b{alias}\b", meaning, annotation)
    annotation = re.sub(r"Annotated\[([^\]]*)\]", _with_range, annotation)
    return re.sub(r"Literal\[([^\]]*)\]", lambda literal: literal[1].replace(", ", " | "), annotation)


def _with_range(annotated: re.Match[str]) -> str:
    """Return `float > 0, < 1` for `Annotated[float, Gt(0), Lt(1)]`."""
    text = annotated[1].replace(", ", " ", 1)
    for name, sign in (("Ge", ">="), ("Gt", ">"), ("Le", "<="), ("Lt", "<")):
        text = re.sub(rf"{name}\(([^)]*)\)", rf"{sign} \1", text)
    return text


_ALIASES = {
    "Size": 'int | float | "auto" | None',
    "Changes": "fields of a cell",
    "Choices": "list of int | float | None",
    "Count": "int >= 1",
    "Natural": "int >= 0",
    "SeqLen": "int >= 2",
    "Positive": "float > 0",
    "NonNegative": "float >= 0",
    "Fraction": "float >= 0, < 1",
}


def run(flags: CliArgs) -> int:
    """Print the settings of the section: with their first sentences if all are listed, else with all that is said."""
    console, wanted = Output(), flags.section
    section, _, method = (wanted or "").partition(".")
    if section == "prune" and method in method_names():
        everything, wanted = list(_settings(method_class(method), "prune.")), "prune"
    else:
        everything = settings()
    found = [one for one in everything if wanted is None or one.path == wanted or one.path.startswith(f"{wanted}.")]
    if not found:
        names = {one.path: None for one in everything} | {one.section: None for one in everything if one.section}
        raise ConfigError(unknown_field(str(wanted), names))
    for section in dict.fromkeys(one.section for one in found):
        here = [one for one in found if one.section == section]
        note = " (null until one of its fields is set)" if here[0].optional == section else ""
        console.print(terminal_text(f"{section or 'cell and profile'}{note}", style="bold"))
        for one in here:
            doc = " ".join(one.doc.split())
            text = f"{doc} [{one.type}]" if wanted else re.sub(r"(?<=[a-z0-9)])\. .*", ".", doc)
            console.print(terminal_text(f"  {one.path} = {json.dumps(one.default)}"), soft_wrap=True)
            console.print(Padding(terminal_text(text, style="dim"), (0, 0, 0, 6)))
        console.print()
    if wanted == "prune":
        others = ", ".join(f"prune.{name}" for name in method_names() if name != DEFAULT_METHOD)
        console.print(terminal_text(f"Settings of other methods: lit-prune fields NAME, of {others}"), soft_wrap=True)
    return 0


VERB = Verb("fields", CliArgs, run)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return VERB.main(argv)
