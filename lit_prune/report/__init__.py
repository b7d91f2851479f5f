"""Combine the cells of a table: tidy frames, statistics and verdicts. No torch.

The names are imported on first use, since their modules import scipy, which the status of a table does not need.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_prune.report.report import Report as Report
    from lit_prune.report.report import ReportRequest as ReportRequest
    from lit_prune.report.report import assemble as assemble
    from lit_prune.report.report import complete as complete
    from lit_prune.report.report import histories as histories
    from lit_prune.report.report import rank_agreement as rank_agreement
    from lit_prune.report.report import reread as reread
    from lit_prune.report.report import summarise as summarise
    from lit_prune.report.report import with_statistics as with_statistics
    from lit_prune.report.verdicts import judge as judge

_OF_REPORT = (
    "Report", "ReportRequest", "assemble", "complete", "histories", "rank_agreement", "reread", "summarise",
    "with_statistics",
)  # fmt: skip
_HOME = {**dict.fromkeys(_OF_REPORT, "report"), "judge": "verdicts"}
"""Name -> the module that defines it, relative to the package."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lit_prune.report' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lit_prune.report.{_HOME[name]}"), name)
