"""How long a sequence a model is made for, from its Hugging Face config."""

from __future__ import annotations

from typing import Any

_STRETCHED = ("linear", "dynamic", "yarn")
"""Kinds of rotary scaling whose config states the positions before scaling; others state those after it."""


def positions_of(config: Any) -> int | None:
    """Return the tokens of the longest sequence that a model is made for; None if its config states no limit.

    A rotary model reads longer sequences without an error, at angles it was not trained on, so its losses there are
    not those of the model. Scaling by a factor multiplies the positions that the model had before.
    """
    stated = getattr(config, "max_position_embeddings", None)
    scaling = getattr(config, "rope_parameters", None) or {}
    if stated is None or scaling.get("rope_type") not in _STRETCHED:
        return stated
    before = scaling.get("original_max_position_embeddings") or stated
    return max(stated, int(before * scaling.get("factor", 1.0)))
