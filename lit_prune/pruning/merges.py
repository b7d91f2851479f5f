"""Merges of pruned heads into kept ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from lit_prune.config import ConfigError
from lit_prune.models.model_family import ModelFamily
from lit_prune.models.shape import ModelShape

Indices = tuple[int, ...]


class Merge(NamedTuple):
    """The query weights of head `kept` become kept + weight * (kept - pruned) (Minitron, section 2.3)."""

    kept: int
    pruned: int
    weight: float


def effective_merges(merges: Sequence[Merge], heads: Indices) -> tuple[Merge, ...]:
    """Return the merges that affect a kept head, directly or through a later merge."""
    needed, effective = set(heads), []
    for merge in reversed(merges):
        if merge.kept in needed:
            effective.append(merge)
            needed.add(merge.pruned)
    return tuple(reversed(effective))


def check_merges(merges: Sequence[Merge], heads: Indices, whole: ModelShape, anatomy: ModelFamily, what: str) -> None:
    """Check that merges in a layer of a model of shape `whole`, which keeps `heads`, can be made.

    Raises:
        ConfigError: if one cannot; the message begins with `what`.
    """
    if merges and anatomy.query is None:
        raise ConfigError(f"{what}: in this family queries have no projection of their own to merge")
    size = whole.heads_per_group
    for kept, pruned, weight in merges:
        if wrong := [i for i in (kept, pruned) if not (isinstance(i, int) and 0 <= i < whole.num_attention_heads)]:
            raise ConfigError(f"{what}: there is no head {wrong[0]}; there are 0 to {whole.num_attention_heads - 1}")
        if pruned in heads:
            raise ConfigError(f"{what}: head {pruned} is kept, only pruned ones are merged into others")
        if size > 1 and kept // size != pruned // size:
            raise ConfigError(f"{what}: heads {kept} and {pruned} are of different KV groups")
        if not (isinstance(weight, int | float) and math.isfinite(weight)):
            raise ConfigError(f"{what}: {weight} is not a weight")
    if len(effective_merges(merges, heads)) < len(merges):
        raise ConfigError(f"{what}: one changes a head that is not kept")
