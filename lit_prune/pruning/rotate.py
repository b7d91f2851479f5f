"""Rotate the residual stream of a model into the principal components of its states, and keep the first ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.importance.aggregate import double
from lit_prune.models.description import Axes
from lit_prune.models.model_family import anatomy_of, head_dim_of
from lit_prune.models.transformed import add_shortcuts, transformed_config
from lit_prune.pruning.layerwise import layerwise
from lit_prune.pruning.surgery import rebuilt


def rotated_config(config: Any, width: int) -> Any:
    """Return the config of a model whose residual stream has `width` channels, in another basis at each place.

    A norm divides by sqrt(|x|^2 / hidden + eps), also after channels with little energy are cut. The mean over `width`
    channels is hidden / width times as large, so eps is multiplied by that, and the weight of the norm by its root.

    Raises:
        ConfigError: if the model has layers of another kind.
    """
    rotated = transformed_config(
        config, shortcuts=True, hidden_size=width, tie_word_embeddings=False, head_dim=head_dim_of(config)
    )
    rotated.rms_norm_eps *= config.hidden_size / width
    return rotated


def principal_bases(
    model: Any, width: int, batches: Iterable[dict[str, Tensor]], on_progress: Callable[[int], None]
) -> list[Tensor]:
    """Return the principal components of the residual stream at its 2 layers + 1 places, each float64 [hidden, width].

    The places are the input of each layer, the sum after its attention, and the output of the last layer. The columns
    are the eigenvectors of sum x x^T over all tokens with the largest eigenvalues, where the states x are those of a
    model that has projected the stream on the bases of all earlier places.

    `model` must be on the device of the batches, and is changed to that model.
    """
    anatomy, bases = anatomy_of(model.config), list[Tensor]()
    for step in layerwise(model, batches, on_progress):
        bases.append(_Moments().of(step.states).components(width))
        step.states[:] = [x @ _projection(bases[-1], x) for x in step.states]
        moments, norm = _Moments(), step.layer.get_submodule(str(anatomy.mlp_norm))
        handle = norm.register_forward_pre_hook(lambda _, inputs, into=moments: into.add(inputs[0]))
        step.run()
        handle.remove()
        bases.append(moments.components(width))
        _project_after_attention(step.layer, anatomy.attention_output, bases[-1])
    return [*bases, _Moments().of(step.states).components(width)]


class _Moments:
    """The sum of x x^T over tokens, float64 [hidden, hidden]."""

    def __init__(self) -> None:
        self.sum: Any = 0

    def add(self, states: Tensor) -> None:
        states = double(states).flatten(0, -2)
        self.sum = self.sum + states.T @ states

    def of(self, states: Iterable[Tensor]) -> _Moments:
        for x in states:
            self.add(x)
        return self

    def components(self, width: int) -> Tensor:
        """Return the eigenvectors with the largest eigenvalues, in descending order."""
        return torch.linalg.eigh(self.sum.cpu()).eigenvectors.flip(1)[:, :width]


def _projection(basis: Tensor, like: Tensor) -> Tensor:
    return (basis @ basis.T).to(like.device, like.dtype)


@torch.no_grad()
def _project_after_attention(layer: Any, output: str, basis: Tensor) -> None:
    """Let a layer project the residual stream on a basis before its MLP."""
    linear = layer.get_submodule(output)
    onto = _projection(basis, linear.weight)
    for parameter in linear.parameters():
        parameter.copy_(onto @ parameter)
    add_shortcuts(layer, len(basis))
    layer.attention_shortcut.weight = nn.Parameter(onto)
    layer.mlp_shortcut.weight = nn.Parameter(torch.eye(len(basis)).to(onto))


def rotated(model: Any, bases: list[Tensor]) -> Any:
    """Return a new model whose residual stream has the coordinates in these bases: those of `principal_bases`.

    With complete bases it computes the logits of `model`. The weights of the norms go into the linears that read them.
    """
    anatomy, (hidden, width) = anatomy_of(model.config), bases[0].shape
    places, norm_weight, weights = _places(model), math.sqrt(hidden / width), dict[str, Tensor]()
    given = model.state_dict()
    for name, weight in given.items():
        axes, module = anatomy.axes_of(name), name.rpartition(".")[0]
        if module in places:
            place, norm = places[module]
            scale = torch.ones(hidden) if norm is None else given[f"{norm}.weight"]
            weights[name] = _turned(weight, axes, double(scale).cpu().unsqueeze(1) * bases[place])
        else:
            weights[name] = weight.new_full((width,), norm_weight) if axes == ("hidden",) else weight
    for i in range(model.config.num_hidden_layers):
        for place, name in ((2 * i, "attention_shortcut"), (2 * i + 1, "mlp_shortcut")):
            weights[f"{anatomy.layers}.{i}.{name}.weight"] = bases[place + 1].T @ bases[place]
    return rebuilt(model, rotated_config(model.config, width), weights)


def _places(model: Any) -> dict[str, tuple[int, str | None]]:
    """Return module -> index of the basis of the stream that it reads or adds to, and the norm that precedes it."""
    anatomy = anatomy_of(model.config)
    places: dict[str, tuple[int, str | None]] = {"model.embed_tokens": (0, None), "lm_head": (-1, anatomy.final_norm)}
    for i in range(model.config.num_hidden_layers):
        layer = f"{anatomy.layers}.{i}."
        places |= {layer + name: (2 * i, f"{layer}{anatomy.input_norm}") for name in anatomy.attention_input}
        places |= {layer + name: (2 * i + 1, f"{layer}{anatomy.mlp_norm}") for name in anatomy.mlp_input}
        places |= {layer + anatomy.attention_output: (2 * i + 1, None), layer + anatomy.mlp_output: (2 * i + 2, None)}
    return places


def _turned(weight: Tensor, axes: Axes, basis: Tensor) -> Tensor:
    """Return a parameter in the coordinates of a basis [hidden, width]."""
    turned = double(weight).cpu()
    for dim, axis in enumerate(axes):
        if axis == "hidden":
            turned = torch.tensordot(turned, basis, ([dim], [0])).movedim(-1, dim)
    return turned.to(weight.dtype)
