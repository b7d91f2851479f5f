"""Factors between 0 and 1 by hand, and gradients that reach closed units."""

import copy

import torch
from families import logits, model_of, token_ids

from lit_prune.pruning.gating import LayerGates, gated

NONE = LayerGates()


def test_factors_act_as_scaled_weights_do() -> None:
    model = model_of("llama", torch.float64)
    neurons, groups = torch.linspace(0.1, 2.0, 20), torch.tensor([0.5, 1.5])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.model.layers[0].mlp.down_proj.weight *= neurons
        twin.model.layers[1].self_attn.o_proj.weight *= groups.repeat_interleave(12)
        for linear in (twin.model.layers[2].self_attn.o_proj, twin.model.layers[2].mlp.down_proj):
            linear.weight.zero_()
    with gated(model, [LayerGates(neurons), LayerGates(heads=groups), LayerGates(update=torch.tensor(0.0))]):
        torch.testing.assert_close(logits(model), logits(twin))


def test_an_update_is_scaled_as_a_whole() -> None:
    model = model_of("llama", torch.float64)
    states = {}
    for factor in (0.0, 0.25, 1.0):
        with torch.no_grad(), gated(model, [NONE, NONE, LayerGates(update=torch.tensor(factor))]):
            handle = model.model.norm.register_forward_pre_hook(
                lambda module, inputs, f=factor: states.update({f: inputs[0]})
            )
            model(input_ids=token_ids())
            handle.remove()
    torch.testing.assert_close(states[0.25], 0.75 * states[0.0] + 0.25 * states[1.0])


def test_closed_heads_have_gradients_under_a_norm_over_all_heads() -> None:
    """The gradient of a closed group is the derivative of the loss by its output, as if it stood beside the others."""
    model = model_of("olmo2", torch.float64)
    gates = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    with gated(model, [LayerGates(heads=gates), NONE, NONE]):
        model(input_ids=token_ids(), labels=token_ids()).loss.backward()
    assert gates.grad[0].abs() > 1e-6
