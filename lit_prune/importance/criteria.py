"""Criteria: importance scores of units, computed from calibration statistics.

A criterion declares the axes that it scores and the statistics that it needs. Its scores are float tensors, and higher
means keep:

- "neuron" [neurons] and "head" [query heads]: one tensor per layer.
- "hidden" [hidden]: one tensor for the model, since the residual stream is shared.
- "layer" [L]: one tensor.
- "span" [L - n + 1], by first layer: one tensor for each length n = 1, 2, ...

`random` and `magnitude` are the controls.

A KV group has no score of its own: pruning ranks groups by the mean score of their query heads. If heads share keys and
values, the `magnitude` and `taylor` scores of a head exclude these. LLM-Pruner instead prunes whole groups by one sum
over query, key, value and output weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_prune.config import EVIDENCE, ConfigError, Prune, unknown
from lit_prune.importance.aggregate import aggregate, double
from lit_prune.importance.span_scores import SpanScores
from lit_prune.importance.unit_reduction import unit_sums
from lit_prune.models.model_family import anatomy_of, head_dim_of, layers_of, parts_of
from lit_prune.models.shape import shape_of
from lit_prune.registry import Registry

WIDTH = ("neuron", "head", "hidden")
DEPTH = ("layer", "span")


@dataclass(frozen=True)
class CalibrationStats:
    """The inputs of a criterion."""

    model: Any
    """The teacher."""
    statistics: Mapping[str, Mapping[str, Tensor]]
    """Name of the statistic (config.EVIDENCE) -> its tensors, as `measure` writes them."""
    count: int
    """Calibration sequences seen."""
    seed: int
    """Seed of criteria that draw random scores."""
    removal_losses: Callable[[int], Tensor]
    """Number of layers n -> the loss without layers l to l + n - 1, for each l, [L - n + 1]; measured when called."""


Scores = dict[str, Sequence[Tensor]]
"""Axis -> its tensors, as in the module docstring."""

Scorer = Callable[[CalibrationStats, Prune], Scores]


@dataclass(frozen=True)
class Criterion:
    """A function that scores units, with the axes and statistics it declares."""

    name: str
    axes: tuple[str, ...]
    """Axes it scores."""
    needs: tuple[str, ...]
    """Names of the statistics it reads."""
    scorer: Scorer

    def score(self, evidence: CalibrationStats, student: Prune) -> Scores:
        """Return the scores of all its axes.

        Raises:
            ConfigError: if a score is not finite.
        """
        scores = self.scorer(evidence, student)
        for axis, tensors in scores.items():
            for i, tensor in enumerate([] if isinstance(tensors, SpanScores) else tensors):
                if not tensor.isfinite().all():
                    where = f" of layer {i}" if axis in ("neuron", "head") else ""
                    raise ConfigError(f"criterion {self.name!r}: a score of axis {axis}{where} is NaN or infinite")
        return scores


criteria: Registry[Criterion] = Registry("criterion")


def criterion(name: str, *, axes: tuple[str, ...], needs: tuple[str, ...] = ()) -> Callable[[Scorer], Scorer]:
    """Register a function of calibration statistics and the `prune` section as a criterion."""
    if not (set(axes) <= {*WIDTH, *DEPTH} and set(needs) <= set(EVIDENCE)):
        raise ValueError(f"criterion {name!r}: there is no such axis or evidence: {axes}, {needs}")

    def register(scorer: Scorer) -> Scorer:
        criteria.register(name)(Criterion(name, axes, needs, scorer))
        return scorer

    return register


def check_axes(name: str, axes: Collection[str]) -> None:
    """Check that a criterion scores all of `axes`.

    Raises:
        ConfigError: if the criterion or an axis does not exist, or the criterion does not score the axis.
    """
    for axis in sorted(axes):
        if axis not in (*WIDTH, *DEPTH):
            raise ConfigError(unknown("axis", axis, (*WIDTH, *DEPTH)))
        if axis not in criteria[name].axes:
            able = ", ".join(other for other in criteria if axis in criteria[other].axes)
            raise ConfigError(f"criterion: must score axis {axis} (allowed: {able}), got {name!r}")


@criterion("activation", axes=WIDTH, needs=("importance",))
def activation(evidence: CalibrationStats, student: Prune) -> Scores:
    """Return aggregated activations (Minitron, section 2.2); hidden channels are summed over all norms."""
    norms = [n for kind in ("input_norm", "mlp_norm") for n in _aggregated(evidence, student, "importance", kind)]
    return {
        "neuron": _aggregated(evidence, student, "importance", "neuron"),
        "head": _aggregated(evidence, student, "importance", "head"),
        "hidden": [torch.stack(norms).sum(0)],
    }


@criterion("activation_pre", axes=WIDTH, needs=("importance", "preactivations"))
def activation_pre(evidence: CalibrationStats, student: Prune) -> Scores:
    """Return `activation` scores with neurons read before their activation, as in Minitron's formula (section 2.2)."""
    neurons = _aggregated(evidence, student, "preactivations", "preactivation")
    return activation(evidence, student) | {"neuron": neurons}


@criterion("activation_modelopt", axes=WIDTH, needs=("importance", "head_channels"))
def activation_modelopt(evidence: CalibrationStats, student: Prune) -> Scores:
    """Return `activation` scores whose heads follow NVIDIA's Model-Optimizer.

    The channels of a head are aggregated first and then joined by their L2 norm.
    """
    head_dim = head_dim_of(evidence.model.config)
    channels = _aggregated(evidence, student, "head_channels", "head_channel")
    return activation(evidence, student) | {"head": [c.unflatten(0, (-1, head_dim)).norm(dim=1) for c in channels]}


@criterion("wanda_sp", axes=("neuron", "head"), needs=("importance", "head_channels"))
def wanda_sp(evidence: CalibrationStats, student: Prune) -> Scores:
    """Return sum |W_ij| ||x_j|| over the weights of the output projection that read a unit.

    This is the score of Wanda (arXiv 2306.11695, section 3), ||x_j|| being the L2 norm of input channel j over all
    tokens, summed over the columns of a neuron or a head. The aggregations of the section are not used.
    """
    plain = Prune(batch_aggregation="l2", seq_aggregation="l2")
    anatomy, head_dim = anatomy_of(evidence.model.config), head_dim_of(evidence.model.config)
    neurons = _aggregated(evidence, plain, "importance", "neuron")
    channels = _aggregated(evidence, plain, "head_channels", "head_channel")
    down, output = (_columns(evidence.model, path) for path in (anatomy.mlp_output, anatomy.attention_output))
    return {
        "neuron": [columns * norms for columns, norms in zip(down, neurons, strict=True)],
        "head": [
            (columns * norms).unflatten(0, (-1, head_dim)).sum(1)
            for columns, norms in zip(output, channels, strict=True)
        ],
    }


def _columns(model: Any, path: str) -> list[Tensor]:
    """Return sum_i |W_ij| of a linear of each layer, float64 [in]; some families store its weight as [in, out]."""
    outputs = anatomy_of(model.config).axes_of(f"{path}.weight").index("hidden")
    weights = (layer.get_parameter(f"{path}.weight").detach() for layer in layers_of(model))
    return [double(weight).cpu().abs().sum(outputs) for weight in weights]


@criterion("relative_activation", axes=("neuron",), needs=("importance",))
def relative_activation(evidence: CalibrationStats, student: Prune) -> Scores:
    """Return the activation of a neuron times its share of each hidden channel's weights (CFSP, arXiv 2409.13199).

    The activation is aggregated as in `activation`. The shares in the weights of the MLP's linear modules are averaged
    over the hidden channels and added up over the modules; those of the output are shares of |weight| times activation.
    """
    sizes, family = _aggregated(evidence, student, "importance", "neuron"), anatomy_of(evidence.model.config)

    def share(name: str, weights: Tensor) -> Tensor:
        layer, rest = family.layer_of(name)
        axes = [parts_of(axis) for axis in family.axes_of(name)]
        dim = next((dim for dim, parts in enumerate(axes) if "neuron" in parts), None)
        if layer is None or dim is None or not family.is_linear(name):
            return torch.zeros_like(weights)
        neurons = double(weights).cpu().abs().movedim(dim, 0).unflatten(0, (len(axes[dim]), -1))
        if rest.startswith(family.mlp_output):
            neurons = neurons * sizes[layer][:, None]
        total = neurons.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        return (neurons / total / neurons.shape[-1]).flatten(0, 1).movedim(0, dim)

    return {"neuron": list(torch.stack(sizes) * unit_sums(evidence.model, share)["neuron"])}


@criterion("magnitude", axes=(*WIDTH, "layer"))
def magnitude(evidence: CalibrationStats, student: Prune) -> Scores:
    """Return the L2 norm of all weights that belong to a unit."""
    squares = unit_sums(evidence.model, lambda name, weights: weights.double().square())
    return {axis: list(sums.sqrt()) for axis, sums in squares.items()}


@criterion("random", axes=(*WIDTH, *DEPTH))
def random(evidence: CalibrationStats, student: Prune) -> Scores:
    """Return random scores drawn from the seed."""
    generator = torch.Generator().manual_seed(evidence.seed)
    whole = shape_of(evidence.model.config)
    sizes = {
        "neuron": [whole.intermediate_size] * whole.num_hidden_layers,
        "head": [whole.num_attention_heads] * whole.num_hidden_layers,
        "hidden": [whole.hidden_size],
        "layer": [whole.num_hidden_layers],
        "span": range(whole.num_hidden_layers, 0, -1),
    }
    return {axis: [torch.rand(size, generator=generator) for size in tensors] for axis, tensors in sizes.items()}


@criterion("influence", axes=DEPTH, needs=("distances",))
def influence(evidence: CalibrationStats, student: Prune) -> Scores:
    """Return the mean over all tokens of 1 - cos(state before, state after) (ShortGPT; Minitron, section 2.2)."""
    return _spans(evidence, "influence")


@criterion("angular", axes=DEPTH, needs=("distances",))
def angular(evidence: CalibrationStats, student: Prune) -> Scores:
    """Return the mean angle between states before and after, over last tokens (arXiv 2403.17887, section 3.2)."""
    return _spans(evidence, "angular_last")


@criterion("angular_all", axes=DEPTH, needs=("distances",))
def angular_all(evidence: CalibrationStats, student: Prune) -> Scores:
    """Return the `angular` distance, averaged over all tokens."""
    return _spans(evidence, "angular_all")


@criterion("perplexity", axes=DEPTH, needs=("removals",))
def perplexity(evidence: CalibrationStats, student: Prune) -> Scores:
    """Return the language-model loss without the layer or span (Minitron, section 2.2)."""
    layers = evidence.statistics["removals"]["loss"]
    return {"layer": [layers], "span": SpanScores(layers, evidence.removal_losses)}


@criterion("taylor_vector", axes=(*WIDTH, "layer"), needs=("gradients",))
def taylor_vector(evidence: CalibrationStats, student: Prune) -> Scores:
    """Return |sum w g| over all weights of a unit, the first-order change of the loss without it.

    From LLM-Pruner, section 3.2, which takes absolute values before it sums over a unit: its paper per coupled
    structure, its code per channel of each matrix, also inside a head. Here parts of opposite sign cancel.
    """
    return _first_order(evidence, "vector")


@criterion("taylor", axes=(*WIDTH, "layer"), needs=("gradients",))
def taylor(evidence: CalibrationStats, student: Prune) -> Scores:
    """Return sum |w g| over the weights of a unit (LLM-Pruner, section 3.2, element-wise, first order)."""
    return _first_order(evidence, "element1")


@criterion("taylor_fisher", axes=(*WIDTH, "layer"), needs=("gradients",))
def taylor_fisher(evidence: CalibrationStats, student: Prune) -> Scores:
    """Return sum |w g - w^2 F / 2| over the weights of a unit (LLM-Pruner, section 3.2, element-wise, second order).

    F is the mean of g^2 over the calibration sequences, as in LLM-Pruner's code.
    """
    return _first_order(evidence, "element2")


def _aggregated(evidence: CalibrationStats, student: Prune, name: str, kind: str) -> list[Tensor]:
    """Return the aggregated activations of one kind of hook point, one tensor per layer that has it."""
    moments = evidence.statistics[name]
    sites = (f"{i}.{kind}" for i in range(len(layers_of(evidence.model))))
    return [
        aggregate(moments[s], evidence.count, student.batch_aggregation, student.seq_aggregation)
        for s in sites
        if s in moments
    ]


def _spans(evidence: CalibrationStats, kind: str) -> Scores:
    """Return layer and span scores from the distances [L, L], whose entry [l, n - 1] is over layers l to l + n - 1."""
    distances = evidence.statistics["distances"][kind]
    spans = [distances[: len(distances) - i, i] for i in range(len(distances))]
    return {"layer": spans[:1], "span": spans}


def _first_order(evidence: CalibrationStats, kind: str) -> Scores:
    # Stores of earlier versions have `vector.block` for `vector.layer`.
    gradients = {name.replace(".block", ".layer"): sums for name, sums in evidence.statistics["gradients"].items()}
    return {axis: list(gradients[f"{kind}.{axis}"]) for axis in (*WIDTH, "layer")}
