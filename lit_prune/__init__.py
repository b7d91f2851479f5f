"""Prune and distill language models, and reproduce the tables of the papers.

    import lit_prune as lp
    found = lp.prune("python-3.1M", num_parameters=0.5, out="small")
    found.student["lm_loss"], found.folder
    report = lp.run_table("loss_ablation", profile="quick")
    report.frame, report.claims

Submodules are imported on first use, and nothing is printed: pass `progress=lit_prune.cli.progress.ProgressBar` to see
progress.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_prune import registry as registry
    from lit_prune.api.compress import distill as distill
    from lit_prune.api.compress import prune as prune
    from lit_prune.api.measure import evaluate as evaluate
    from lit_prune.api.output import Compressed as Compressed
    from lit_prune.api.tables import load_report as load_report
    from lit_prune.api.tables import run_table as run_table
    from lit_prune.config import ConfigError as ConfigError
    from lit_prune.config import Execution as Execution

__version__ = "0.2.0"

_HOME = {
    "prune": "api.compress", "distill": "api.compress", "Compressed": "api.output", "evaluate": "api.measure",
    "run_table": "api.tables", "load_report": "api.tables", "ConfigError": "config", "Execution": "config",
}  # fmt: skip
"""Public name -> the module that defines it, relative to the package."""


class _Package(types.ModuleType):
    """The package; importing the subpackages `distill` and `evaluate` does not replace the functions of these names."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name == "registry":
        return importlib.import_module("lit_prune.registry")
    if name not in _HOME:
        raise AttributeError(f"module 'lit_prune' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lit_prune.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, "registry"])
