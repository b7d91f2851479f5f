"""Name the metrics of tables, and format their values. No torch."""

from __future__ import annotations

from lit_prune.config.table import ORDER
from lit_prune.render.numbers import amount, duration, flops, memory

_TITLES = {
    "lm_loss": "LM loss", "perplexity": "PPL", "lm_loss_before": "LM loss before", "kd_loss": "KD loss",
    "kd_loss_before": "KD loss before", "second_lm_loss": "LM loss, 2nd text", "train_flops": "train FLOPs",
    "basin_log_volume": "basin log volume (biased low)",
    "parameters_without_embeddings": "parameters in layers",
    "prune_tokens": "tokens to prune", "prune_forward_flops": "forward FLOPs", "prune_backward_flops": "backward FLOPs",
    "prune_seconds": "pruning time", "prune_memory": "pruning memory",
    ORDER: "agreement with the last order of the rows",
}  # fmt: skip
_LOSSES = ("lm_loss", "lm_loss_before", "kd_loss", "kd_loss_before", "second_lm_loss")
_RATIOS = ("speedup", "prefill_speedup", "decode_speedup", "memory_share")
UNITS = dict.fromkeys(_LOSSES, "nats/token") | dict.fromkeys(_RATIOS, "× teacher")
SHOWN = {
    "parameters": amount, "parameters_without_embeddings": amount, "nonzero_parameters": amount,
    "basin_num_weights": amount, "train_flops": flops, "prune_tokens": amount,
    "prune_forward_flops": flops, "prune_backward_flops": flops, "prune_seconds": duration, "prune_memory": memory,
}  # fmt: skip
"""Metric -> formatter of metrics that are not losses."""


def title(metric: str) -> str:
    """Return the title of a metric."""
    return _TITLES.get(metric, metric.replace("_", " "))


def quantity(metric: str) -> str:
    """Return the title of a metric with its unit."""
    return f"{title(metric)} ({UNITS[metric]})" if metric in UNITS else title(metric)
