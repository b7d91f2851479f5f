"""Names for interchangeable parts. A name that is registered is tested by being registered. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from lit_prune.config import ConfigError, unknown

Part = TypeVar("Part")


class Registry(Generic[Part]):
    """Parts of one kind, by name; `register` is the decorator that adds one."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: dict[str, Part] = {}

    def register(self, name: str) -> Callable[[Part], Part]:
        """Add a part under a name that is still free."""

        def add(part: Part) -> Part:
            if name in self._parts:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._parts[name] = part
            return part

        return add

    def __getitem__(self, name: str) -> Part:
        """The part of that name.

        Raises:
            ConfigError: there is none.
        """
        if name not in self._parts:
            raise ConfigError(unknown(self.kind, name, self._parts))
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._parts))
