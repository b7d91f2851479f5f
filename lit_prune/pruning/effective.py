"""Canonical form of the settings of a `prune` section: settings with the same effect become equal."""

from __future__ import annotations

import dataclasses
from typing import Any

from lit_prune.config import Prune
from lit_prune.importance.criteria import criteria
from lit_prune.models.shape import shape_of
from lit_prune.pruning.allocate import layer_allocators
from lit_prune.pruning.target import target


def effective(student: Prune, pruned: Any) -> Prune:
    """Return the settings with sizes as counts and unused criteria reset, for a model with the config `pruned`."""

    def kept(*names: str) -> dict[str, Any]:
        return {name: getattr(student, name) for name in names}

    if student.plan_path is not None:
        return Prune(**kept("plan_path", "fingerprint", "init"))
    shape, whole = target(student, pruned), shape_of(pruned)
    fields = dataclasses.asdict(shape)
    if student.init == "random":
        return Prune(**fields, init="random")
    dropped = whole.num_hidden_layers - shape.num_hidden_layers
    fields |= kept("drop_layers")
    if dropped and not student.drop_layers:
        reads = layer_allocators[student.layer_selection].reads
        # For one layer, both rules drop the layer with the lowest score.
        fields["layer_selection"] = (
            "lowest_score" if (dropped, student.layer_selection) == (1, "contiguous") else student.layer_selection
        )
        fields |= kept("layer_criterion") if reads else {}
    if (
        shape.hidden_size < whole.hidden_size
        or shape.intermediate_size < whole.intermediate_size
        or shape.num_attention_heads < whole.num_attention_heads
    ):
        moments = {"importance", "head_channels", "preactivations"} & set(criteria[student.width_criterion].needs)
        fields |= kept("width_criterion") | (kept("batch_aggregation", "seq_aggregation") if moments else {})
    if shape.intermediate_size < whole.intermediate_size or shape.num_attention_heads < whole.num_attention_heads:
        fields |= kept("width_allocation")
    if shape.num_attention_heads < whole.num_attention_heads:
        fields |= kept("head_merging")
    return Prune(**fields, num_iterations=student.num_iterations)
