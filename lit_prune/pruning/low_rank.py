"""Replace linears by two factors of low rank, from the singular value decomposition of their matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.config import ConfigError
from lit_prune.importance.aggregate import double
from lit_prune.models.model_family import anatomy_of, layers_of
from lit_prune.models.shape import meta_model
from lit_prune.models.transformed import transformed_config
from lit_prune.pruning.surgery import rebuilt


def low_rank_config(config: Any, rank: int | float) -> Any:
    """Return the config of a model whose linears have this rank, if that makes them smaller than they are.

    Raises:
        ConfigError: if no linear gets smaller, or the family of the model cannot have factors.
    """
    lower = transformed_config(config)
    if not (0 < rank < 1 if isinstance(rank, float) else rank >= 1):
        raise ConfigError(f"prune.rank: must be a whole number >= 1 or a share in (0, 1), got {rank}")
    anatomy, layer, ranks, most = anatomy_of(config), layers_of(meta_model(config))[0], dict(lower.ranks or {}), 0
    for name in (*anatomy.attention_input, anatomy.attention_output, *anatomy.mlp_input, anatomy.mlp_output):
        parts = _parts(layer.get_submodule(name))
        outputs, inputs = parts[-1].out_features, parts[0].in_features
        largest = (sum(part.weight.numel() for part in parts) - 1) // (outputs + inputs)
        wanted = max(1, round(rank * min(outputs, inputs))) if isinstance(rank, float) else rank
        most = max(most, largest)
        if wanted <= largest:
            ranks[name] = wanted
    if ranks == (lower.ranks or {}):
        raise ConfigError(f"prune.rank: must be at most {most}, or no linear gets smaller, got {rank}")
    lower.ranks = ranks
    return lower


def low_rank(model: Any, config: Any) -> Any:
    """Return a new model with the ranks of `config`, which `low_rank_config` made from the config of `model`."""
    weights, layers = model.state_dict(), anatomy_of(model.config).layers
    for i, layer in enumerate(layers_of(model)):
        for name, rank in config.ranks.items():
            parts = _parts(layer.get_submodule(name))
            if len(parts) == 2 and parts[0].out_features == rank:
                continue
            path, bias = f"{layers}.{i}.{name}", parts[-1].bias
            weights = {other: weight for other, weight in weights.items() if not other.startswith(f"{path}.")}
            weights[f"{path}.1.weight"], weights[f"{path}.0.weight"] = _factors(parts, rank)
            weights |= {} if bias is None else {f"{path}.1.bias": bias}
    return rebuilt(model, config, weights)


def _parts(linear: Any) -> list[Any]:
    """Return the linears in the place of one: itself, or its two factors in the order in which they are applied."""
    return list(linear) if isinstance(linear, nn.Sequential) else [linear]


@torch.no_grad()
def _factors(parts: list[Any], rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors [out, rank] and [rank, in] nearest to a matrix, or to the product of two, in Frobenius norm.

    Both have the same norm: each has the roots of the singular values.
    """
    matrix = double(parts[0].weight)
    for part in parts[1:]:
        matrix = double(part.weight) @ matrix
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root.unsqueeze(1) * v[:rank]
