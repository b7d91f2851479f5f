"""What is kept of a model: plain data that can be read, edited and applied to any model of the same shape.

Indices always refer to the original model.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_prune.config import ConfigError
from lit_prune.pruning.shape import Shape, shape_of
from lit_prune.store import write_json


@dataclass(frozen=True)
class PrunePlan:
    """The units to keep, in ascending order."""

    original: Shape
    """Shape of the model the indices refer to."""
    hidden: tuple[int, ...]
    """Hidden channels, the same in every block."""
    neurons: tuple[tuple[int, ...], ...]
    """Neurons of each block."""
    heads: tuple[tuple[int, ...], ...]
    """Query heads of each block, equally many in every KV group."""

    @property
    def kept(self) -> Shape:
        """Shape of what is left; every block alike."""
        return Shape(len(self.hidden), len(self.neurons[0]), len(self.heads[0]))

    def check(self, config: Any) -> None:
        """See that the plan fits a model.

        Raises:
            ConfigError: it was made for another shape.
        """
        if self.original != shape_of(config) or len(self.neurons) != config.num_hidden_layers:
            raise ConfigError(
                f"the plan is for {self.original} in {len(self.neurons)} blocks, the model has {shape_of(config)}"
            )

    def save(self, path: Path) -> None:
        """Write the plan as JSON."""
        write_json(path, dataclasses.asdict(self))

    @staticmethod
    def load(path: Path) -> PrunePlan:
        """Read a plan."""
        plain = json.loads(path.read_text())
        return PrunePlan(
            Shape(**plain["original"]), tuple(plain["hidden"]),
            tuple(map(tuple, plain["neurons"])), tuple(map(tuple, plain["heads"])),
        )  # fmt: skip
