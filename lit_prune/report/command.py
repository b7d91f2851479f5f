"""Build the command that reproduces a report, and its flags that change the profile. No torch."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from lit_prune.config import ConfigError
from lit_prune.config.overrides import parse_setting

if TYPE_CHECKING:
    from lit_prune.report.report import ReportRequest


def command(request: ReportRequest) -> str:
    """Return the shell command that reproduces a report."""
    words = ["python", "-m", f"lit_prune.experiments.{request.table.name}", "--profile", request.profile]
    return " ".join([shlex.join(words), extra_flags(request)]).strip()


def extra_flags(request: ReportRequest) -> str:
    """Return the flags beyond the profile, such as `--set seed=1 --seeds 5`; empty for a plain profile."""
    words = [word for path, value in sorted(request.settings.items()) for word in ("--set", f"{path}={literal(value)}")]
    return shlex.join([*words, *request.flags])


def literal(value: Any) -> str:
    """Format a value so that `--set` parses it back."""
    return value if isinstance(value, str) and _parses_back(value) else json.dumps(value)


def _parses_back(text: str) -> bool:
    try:
        return parse_setting(f"field={text}")[1] == text
    except ConfigError:  # for example a control character
        return False
