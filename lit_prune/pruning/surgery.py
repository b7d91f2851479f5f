"""A model and a plan -> a smaller model, or the same model with the pruned units silenced.

Each parameter's dimensions are cut by the axes its family's anatomy names; nothing here knows a family.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights

from lit_prune.models.anatomy import Anatomy, anatomy_of, head_dim_of
from lit_prune.pruning.plan import PrunePlan


def apply(model: Any, plan: PrunePlan, mode: Literal["slice", "mask"] = "slice") -> Any:
    """A new model with only the units of the plan: `slice` cuts them out, `mask` silences the others in place.

    Both give the same logits. What `slice` returns is loaded by stock `AutoModelForCausalLM` once saved.

    Raises:
        ConfigError: the plan was made for another shape.
    """
    plan.check(model.config)
    return _slice(model, plan) if mode == "slice" else _mask(model, plan)


def _slice(model: Any, plan: PrunePlan) -> Any:
    with no_init_weights():
        student = AutoModelForCausalLM.from_config(
            _smaller_config(model.config, plan),
            dtype=model.dtype,
            attn_implementation=model.config._attn_implementation,
        )
    weights = {name: _cut(weight, kept) for name, weight, kept in _cuts(model, plan)}
    student.load_state_dict(weights)
    student.tie_weights()  # not done while weights are not initialised
    return student.to(model.device).eval()


def _smaller_config(config: Any, plan: PrunePlan) -> Any:
    """The config of what is left. head_dim is written down: most families would derive another from the new width."""
    smaller = copy.deepcopy(config)
    kept = plan.kept
    smaller.head_dim = head_dim_of(config)
    smaller.hidden_size, smaller.intermediate_size, smaller.num_attention_heads = (
        kept.hidden,
        kept.neurons,
        kept.heads,
    )
    return smaller


def _mask(model: Any, plan: PrunePlan) -> Any:
    """Zero every weight of the pruned units. The norms then divide by a mean square over too many channels, which the
    kept share of channels makes up for in their weights and their epsilon."""
    masked = copy.deepcopy(model)
    share = plan.kept.hidden / plan.original.hidden
    with torch.no_grad():
        weights = masked.state_dict()
        for name, weight, kept in _cuts(model, plan):
            for dim, indices in kept.items():
                gone = torch.ones(weight.shape[dim], dtype=torch.bool, device=weight.device)
                gone[indices] = False
                weights[name].movedim(dim, 0)[gone] = 0
        for norm in _stream_norms(masked):
            norm.weight.mul_(share**0.5)
            norm.variance_epsilon *= share
    masked.config.rms_norm_eps *= share
    return masked.eval()


def _stream_norms(model: nn.Module) -> Iterator[Any]:
    """The norms over the residual stream."""
    anatomy = anatomy_of(model.config)
    for name, module in model.named_modules():
        if hasattr(module, "variance_epsilon") and anatomy.axes_of(f"{name}.weight") == ("hidden",):
            yield module


def _cuts(model: Any, plan: PrunePlan) -> Iterator[tuple[str, Tensor, dict[int, Tensor]]]:
    """Each parameter with the indices to keep in those of its dimensions that are cut."""
    anatomy, head_dim = anatomy_of(model.config), head_dim_of(model.config)
    for name, weight in model.state_dict().items():
        axes = anatomy.axes_of(name)
        block = _block_of(name, anatomy)
        yield (
            name,
            weight,
            {dim: _indices(axis, block, plan, head_dim).to(weight.device) for dim, axis in enumerate(axes) if axis},
        )


def _indices(axis: str, block: int | None, plan: PrunePlan, head_dim: int) -> Tensor:
    """Entries to keep along an axis, in one block."""
    if axis == "hidden":
        return torch.tensor(plan.hidden)
    assert block is not None
    if axis == "neuron":
        return torch.tensor(plan.neurons[block])
    return (torch.tensor(plan.heads[block])[:, None] * head_dim + torch.arange(head_dim)).flatten()


def _block_of(name: str, anatomy: Anatomy) -> int | None:
    prefix = f"{anatomy.blocks}."
    return int(name.removeprefix(prefix).split(".")[0]) if name.startswith(prefix) else None


def _cut(weight: Tensor, kept: dict[int, Tensor]) -> Tensor:
    for dim, indices in kept.items():
        weight = weight.index_select(dim, indices)
    return weight
