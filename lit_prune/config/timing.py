"""The settings of a forward pass that is timed. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lit_prune.config.fields import Count


@dataclass(frozen=True)
class Timing:
    """A forward pass that is timed: with random weights, without keys and values, with the logits of the last token."""

    batch_size: Count = 1
    """Sequences."""
    seq_len: Count = 128
    """Tokens of a sequence."""
    num_repeats: Count = 9
    """Timed passes, after one warm-up pass."""
    precision: Literal["32-true", "bf16-true"] = "32-true"
    """Precision of the weights and the arithmetic."""
