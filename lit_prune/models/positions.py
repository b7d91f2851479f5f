"""The longest sequence that a model supports, from its Hugging Face config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_prune.config import ConfigError
from lit_prune.models.files import named

_STRETCHED = ("linear", "dynamic", "yarn")
"""Kinds of rotary scaling whose config states the positions before scaling; others state those after."""


def positions_of(config: Any) -> int | None:
    """Return the longest supported sequence in tokens; None if the config states no limit.

    A rotary model accepts longer sequences without an error, but at angles it was not trained on, so its losses there
    do not represent the model. Rotary scaling by a factor multiplies the original positions.
    """
    stated = getattr(config, "max_position_embeddings", None)
    scaling = getattr(config, "rope_parameters", None) or {}
    if stated is None or scaling.get("rope_type") not in _STRETCHED:
        return stated
    before = scaling.get("original_max_position_embeddings") or stated
    return max(stated, int(before * scaling.get("factor", 1.0)))


def check_lengths(lengths: Mapping[str, int], config: Any, whose: str) -> None:
    """Check that no sequence is longer than a model with this config supports.

    `lengths` maps config fields to tokens; `whose` names the model in errors.

    Raises:
        ConfigError: if a sequence is longer.
    """
    most = positions_of(config)
    for field, length in lengths.items():
        if most is not None and length > most:
            raise ConfigError(f"{field}: must be at most {most}, the positions of {whose}, got {length}")


def check_longrope(location: str, config: Any) -> None:
    """Check that a longrope config has a factor for each frequency; transformers only warns.

    Raises:
        ConfigError: if it has more or fewer.
    """
    scaling = getattr(config, "rope_parameters", None) or {}
    if scaling.get("rope_type") != "longrope":
        return
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotated = int(head_dim * scaling.get("partial_rotary_factor", 1.0))
    for name in ("short_factor", "long_factor"):
        factors = scaling.get(name)
        if not isinstance(factors, list) or len(factors) != rotated // 2:
            got = len(factors) if isinstance(factors, list) else factors
            raise ConfigError(
                f"{named(location)}: rope_parameters.{name} in config.json must have {rotated // 2} numbers, one for "
                f"every two of the {rotated} rotated channels of a head, got {got}"
            )
