"""YAML as profiles and --set values are read. No torch."""

from __future__ import annotations

import re
from typing import Any

import yaml

from lit_prune.config import ConfigError


class _DuplicateKey(yaml.YAMLError):
    """A mapping has the same key twice."""


class _Yaml(yaml.SafeLoader):
    """YAML without the surprises of its version 1.1, where 1e-3 is text and 29:13 is 1753 minutes.

    A key that a mapping has twice is an error, as in YAML 1.2; PyYAML takes the last value.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Raises _DuplicateKey if a key comes twice."""
        keys: set[str] = set()
        for key, _ in node.value:
            if key.value in keys:
                raise _DuplicateKey(f"keys must be unique, got {key.value!r} again in line {key.start_mark.line + 1}")
            if isinstance(key, yaml.ScalarNode):
                keys.add(key.value)
        return super().construct_mapping(node, deep)


_Yaml.yaml_implicit_resolvers = {}
for _tag, _text, _first in (
    ("null", r"~|null|", [*"~nN", ""]),
    ("bool", r"true|false", [*"tTfF"]),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", [*"-+0123456789"]),
    ("float", r"[-+]?(\d+e[-+]?\d+|(\d[0-9_]*\.\d*|\.\d+)(e[-+]?\d+)?)", [*"-+.0123456789"]),
):
    _pattern = re.compile(f"({_text})$", re.IGNORECASE | re.ASCII)
    _Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)


def read_yaml(text: str, where: str) -> Any:
    """Parse YAML; `where` begins the message of an error.

    Raises:
        ConfigError: if the text is no YAML, or a mapping has a key twice.
    """
    try:
        return yaml.load(text, _Yaml)
    except _DuplicateKey as error:
        raise ConfigError(f"{where}: {error}") from None
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ConfigError(f"{where}: cannot be read as YAML ({problem})") from None
