"""Prose with real minus signs, and numbers that stay on the line of their symbol. No torch."""

from __future__ import annotations

import re

_MINUS, _UNBROKEN = "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"
# A hyphen before a number that nothing precedes, so no range, name, date or flag; or one of an exponent.
_NEGATIVE = re.compile(r"(?<![\w./\-\])])-(?=\.?\d)|(?<=\d[eE])-(?=\d)")
_STATISTIC = re.compile(rf"(?<!\w)(?:[pnd]|tau)\s(?:[=<>]\s)?(?=[+\-{_MINUS}]?\.?\d)")


def with_minus_signs(text: str) -> str:
    """Return prose with a minus sign for each hyphen that makes a number negative."""
    return _NEGATIVE.sub(_MINUS, text)


def unbroken(text: str) -> str:
    """Return prose in which p, n, d and tau stay on one line with their values, as in "p 0.002" and "n = 3"."""
    return _STATISTIC.sub(lambda found: re.sub(r"\s", _UNBROKEN, found[0]), text)
