"""Typeset prose: real minus signs, and no line break between a symbol and its number. No torch."""

from __future__ import annotations

import re

_MINUS, _UNBROKEN = "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"
# A hyphen before a number, not in a range, name, date or flag; or one in an exponent.
_NEGATIVE = re.compile(r"(?<![\w./\-\])])-(?=\.?\d)|(?<=\d[eE])-(?=\d)")
_STATISTIC = re.compile(rf"(?<!\w)(?:[pnd]|tau)\s(?:[=<>]\s)?(?=[+\-{_MINUS}]?\.?\d)")


def with_minus_signs(text: str) -> str:
    """Replace each hyphen that makes a number negative by a minus sign."""
    return _NEGATIVE.sub(_MINUS, text)


def unbroken(text: str) -> str:
    """Keep p, n, d and tau on one line with their values, as in "p 0.002" and "n = 3"."""
    return _STATISTIC.sub(lambda found: re.sub(r"\s", _UNBROKEN, found[0]), text)
