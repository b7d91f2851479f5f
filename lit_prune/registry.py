"""Registries of interchangeable parts by name. The test suite covers every registered part. No torch.

Other packages can add parts: a module in their entry point group `lit_prune.plugins` registers them on import. It is
imported when a registry is first read.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from lit_prune.config import ConfigError, unknown
from lit_prune.config.table import Table

Part = TypeVar("Part")

PLUGINS = "lit_prune.plugins"
"""Entry point group of modules that register parts."""
_HOME = {
    "logit_losses": "lit_prune.losses.logit", "hidden_losses": "lit_prune.losses.hidden",
    "criteria": "lit_prune.importance.criteria", "layer_allocators": "lit_prune.pruning.allocate",
    "width_allocators": "lit_prune.pruning.allocate", "methods": "lit_prune.methods",
    "teachers": "lit_prune.models.named_teachers",
}  # fmt: skip
"""Name of a registry -> the module that defines it."""
_EXPERIMENTS = "lit_prune.experiments"
"""Package whose modules each define a table."""
_tables: dict[str, Table] = {}
"""Tables that plugins or callers registered."""
_loaded: list[str] = []
"""Plugins that are imported or being imported."""


def names() -> dict[str, list[str]]:
    """Return the names of all parts, grouped by registry."""
    return {registry: list(_registry(registry)) for registry in _HOME}


def _registry(name: str) -> Any:
    return getattr(importlib.import_module(_HOME[name]), name)


def __getattr__(name: str) -> Any:
    """Return the registry of that name, such as `lit_prune.registry.logit_losses`."""
    if name in _HOME:
        return _registry(name)
    raise AttributeError(f"module 'lit_prune.registry' has no attribute {name!r}")


def tables() -> list[str]:
    """Return the names of all tables, shipped or added by `register_table`."""
    load_plugins()
    return sorted({*_shipped_tables(), *_tables})


def table_of(name: str) -> Table:
    """Return the table of that name.

    Raises:
        ConfigError: if there is no such table.
    """
    if name not in tables():
        raise ConfigError(unknown("table", name, tables()))
    return _tables[name] if name in _tables else importlib.import_module(f"{_EXPERIMENTS}.{name}").TABLE


def register_table(table: Table) -> Table:
    """Register a table under its name.

    Raises:
        ValueError: if the name is taken.
    """
    if table.name in _tables or table.name in _shipped_tables():
        raise ValueError(f"table {table.name!r} is registered twice")
    _tables[table.name] = table
    return table


def _shipped_tables() -> list[str]:
    return [name.rpartition(".")[2] for name in _modules_of(_EXPERIMENTS)]


@functools.cache
def _modules_of(package: str) -> list[str]:
    return [f"{package}.{module.name}" for module in pkgutil.iter_modules(importlib.import_module(package).__path__)]


@functools.cache
def _plugins() -> tuple[EntryPoint, ...]:
    """Return the plugins of all installed packages, cached because the search takes 30 ms."""
    return tuple(entry_points(group=PLUGINS))


def load_plugins() -> None:
    """Import the modules of the entry point group `lit_prune.plugins`, each once.

    Raises:
        ConfigError: if a module cannot be imported.
    """
    for plugin in _plugins():
        if plugin.value in _loaded:
            continue
        _loaded.append(plugin.value)  # before the import, which may itself read a registry
        try:
            plugin.load()
        except Exception as error:
            raise ConfigError(f"plugin {plugin.name}: cannot be imported ({type(error).__name__}: {error})") from error


class Registry(Generic[Part]):
    """Parts of one kind, by name; the decorator `register` adds one."""

    def __init__(self, kind: str, package: str | None = None, absent: Mapping[str, str] = MappingProxyType({})) -> None:
        self.kind = kind
        self.package = package
        """Package whose modules register parts; they are imported when the registry is first read."""
        self.absent = absent
        """Name in lower case -> why there is no such part, for names that users may expect."""
        self._parts: dict[str, Part] = {}

    def register(self, name: str) -> Callable[[Part], Part]:
        """Return a decorator that adds a part under this name.

        Raises:
            ValueError: if the name is taken.
        """

        def add(part: Part) -> Part:
            if name in self._parts:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._parts[name] = part
            return part

        return add

    def __getitem__(self, name: str) -> Part:
        """Return the part of that name.

        Raises:
            ConfigError: if there is no such part.
        """
        self._load()
        if name in self._parts:
            return self._parts[name]
        if name.lower() in self.absent:
            raise ConfigError(f"{self.kind}: must be implemented, got {name!r}: {self.absent[name.lower()]}")
        raise ConfigError(unknown(self.kind, name, self._parts))

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._parts))

    def _load(self) -> None:
        for name in _modules_of(self.package) if self.package else ():
            importlib.import_module(name)
        load_plugins()
