"""Models with random weights, from their Hugging Face configs."""

from __future__ import annotations

import copy
from typing import Any

import torch

from lit_prune.models.shape import make_loadable


def random_model(
    config: Any, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, seed: int | None = None
) -> Any:
    """Return a model of a Hugging Face config with random weights, created on `device`.

    The weights are drawn from `seed`, or without one from the global random state, which is unchanged.
    """
    from transformers import AutoModelForCausalLM

    make_loadable(config)
    with torch.random.fork_rng(), torch.device(device):
        if seed is not None:
            torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype).eval()
