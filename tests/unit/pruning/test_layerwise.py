"""Layer by layer over calibration sequences: the states equal those of whole forward passes of the changed model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from families import CASES, model_of
from torch import Tensor

from lit_prune.models.model_family import layers_of
from lit_prune.models.residual_stream import ResidualStream
from lit_prune.pruning.layerwise import layerwise

IDS = torch.randint(3, 96, (3, 11), generator=torch.Generator().manual_seed(2))
"""Sequences that are longer than any sliding window; two batches of unequal size."""
BATCHES = [{"input_ids": IDS[:2], "labels": IDS[:2]}, {"input_ids": IDS[2:], "labels": IDS[2:]}]


def states_of(model: Any) -> list[list[Tensor]]:
    """For each batch, the input of every layer and the last output, read from whole forward passes."""
    found = []
    for batch in BATCHES:
        with torch.no_grad(), ResidualStream(model).reading() as states:
            model(input_ids=batch["input_ids"])
        found.append(states)
    return found


@pytest.mark.parametrize("name", list(CASES))
def test_unchanged_layers_give_the_states_of_the_whole_model(name: str) -> None:
    model, done = model_of(name), list[int]()
    expected = states_of(model)
    for step in layerwise(model, iter(BATCHES), done.append):
        assert step.layer is layers_of(model)[step.index]
        assert all(torch.equal(ours, theirs[step.index]) for ours, theirs in zip(step.states, expected, strict=True))
    assert all(torch.equal(ours, theirs[-1]) for ours, theirs in zip(step.states, expected, strict=True))
    assert done == [1, 2, 3]
    assert all("forward" not in vars(layer) and not layer._forward_hooks for layer in layers_of(model))


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma3_text"])
def test_a_layer_sees_what_its_changed_predecessors_give(name: str) -> None:
    model, before = copy.deepcopy(model_of(name)), states_of(model_of(name))
    seen: list[list[Tensor]] = []
    for step in layerwise(model, BATCHES):
        inputs: list[Tensor] = []
        handle = step.layer.register_forward_pre_hook(lambda _, given, into=inputs: into.append(given[0]))
        step.run()
        step.run()
        handle.remove()
        assert all(map(torch.equal, inputs, 2 * step.states))
        seen.append(inputs[:2])
        with torch.no_grad():
            for parameter in step.layer.parameters():
                parameter.mul_(0.5)
    after = states_of(model)
    for index, inputs in enumerate(seen):
        for mine, whole, old in zip(inputs, after, before, strict=True):
            assert torch.equal(mine, whole[index])
            assert torch.equal(mine, old[index]) == (index == 0)


def test_states_that_the_caller_replaces_are_fed_on() -> None:
    model = model_of("llama")
    steps = layerwise(model, BATCHES)
    step = next(steps)
    step.states[:] = [state + 1 for state in step.states]
    shifted = list(step.states)
    next(steps)
    for batch, state, result in zip(BATCHES, shifted, step.states, strict=True):
        hook = layers_of(model)[0].register_forward_pre_hook(lambda _, given, new=state: (new, *given[1:]))
        with torch.no_grad(), ResidualStream(model).reading() as states:
            model(input_ids=batch["input_ids"])
        hook.remove()
        assert torch.equal(result, states[1])


def test_no_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="batches"):
        next(layerwise(model_of("llama"), []))
