"""Help texts of flags: the docstrings of their fields, as paragraphs. No torch."""

from __future__ import annotations

import dataclasses
import functools
import typing
from typing import Annotated, Any

import docstring_parser
import tyro

_SETTING = "FIELD=VALUE"
_PLACEHOLDERS = {
    "set": _SETTING, "add_row": _SETTING, "filter": _SETTING, "slurm": "OPTION=VALUE", "table": "TABLE",
    "tables": "[TABLE ...]", "names": "[NAME ...]",
    "keys": "[KEY KEY]", "section": "[SECTION]", "model": "MODEL", "corpus": "TEXT", "out": "DIR", "store": "DIR",
    "records": "DIR",
}  # fmt: skip
"""Name of a flag -> what its value is called in help; by default its type."""


@functools.cache
def documented(kind: type[Any]) -> None:
    """Give all fields of a dataclass, and of its sections, help texts that wrap at the width of the terminal.

    tyro keeps the line breaks of a field's docstring, which are those of the source.
    """
    for part in kind.__mro__:
        if not dataclasses.is_dataclass(part):
            continue
        hints = typing.get_type_hints(part, include_extras=True)
        docs = {param.arg_name: param.description or "" for param in docstring_parser.parse_from_object(part).params}
        for name in part.__annotations__:
            if docs.get(name):
                text = tyro.conf.arg(help=" ".join(docs[name].split()), metavar=_PLACEHOLDERS.get(name))
                part.__annotations__[name] = Annotated[hints[name], text]
            section = typing.get_type_hints(part).get(name)
            if isinstance(section, type) and dataclasses.is_dataclass(section):
                documented(section)
