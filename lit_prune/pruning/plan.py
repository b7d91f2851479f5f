"""Pruning plans: the units of a model to keep, as plain data that can be read, edited and applied.

A plan fits any model of the same shape. Indices always refer to the original model, so iterations of pruning compose.
"""

from __future__ import annotations

import dataclasses
import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_prune.config import ConfigError
from lit_prune.config.renames import current_sizes
from lit_prune.models.model_family import LIKE_LLAMA, Axes, Axis, anatomy_of, head_dim_of, parts_of
from lit_prune.models.shape import ModelShape, check_stock, loading_module, shape_of
from lit_prune.pruning.merges import Indices as Indices
from lit_prune.pruning.merges import Merge as Merge
from lit_prune.pruning.merges import check_merges, effective_merges
from lit_prune.store.atomic import write_text


@dataclass(frozen=True)
class LayerPlan:
    """A layer to keep, with the units to keep of it."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    index: int
    """Index of the layer in the original model."""
    neurons: Indices
    """MLP neurons to keep; without any, the layer has no MLP."""
    heads: Indices
    """Query heads to keep, equally many in every kept KV group; a group without kept heads is pruned. Without any, the
    layer has no attention."""
    merges: tuple[Merge, ...] = ()
    """Pruned heads that are merged into kept ones."""

    @property
    def skipped(self) -> tuple[str, ...]:
        """The sub-layers that the layer does not have, by transformers' names for them."""
        return tuple(name for name, units in (("attention", self.heads), ("mlp", self.neurons)) if not units)


@dataclass(frozen=True)
class PrunePlan:
    """The units of a model to keep, in ascending order."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    original: ModelShape
    """Shape of the model to which the indices refer."""
    hidden: Indices
    """Hidden channels to keep, the same in every layer."""
    layers: tuple[LayerPlan, ...]
    """The layers to keep."""

    @staticmethod
    def everything(shape: ModelShape) -> PrunePlan:
        """Return the plan that keeps every unit of a model."""
        neurons, heads = _all(shape.intermediate_size), _all(shape.num_attention_heads)
        layers = (LayerPlan(i, neurons, heads) for i in range(shape.num_hidden_layers))
        return PrunePlan(shape, _all(shape.hidden_size), tuple(layers))

    @property
    def uniform(self) -> bool:
        """Whether all layers keep equally many neurons, heads and KV groups."""
        return len({self.shape_of_layer(layer) for layer in self.layers}) == 1

    @property
    def kept(self) -> ModelShape:
        """Shape of the pruned model; if layers differ, that of the smallest uniform model that holds each of them."""
        shapes = [self.shape_of_layer(layer) for layer in self.layers]
        groups = max(shape.num_key_value_heads for shape in shapes)
        heads = groups * max(shape.heads_per_group for shape in shapes)
        return ModelShape(
            len(self.layers), len(self.hidden), max(shape.intermediate_size for shape in shapes), heads, groups
        )

    @property
    def sizes(self) -> dict[str, int | list[int]]:
        """Sizes of the pruned model by name; those that differ between layers as a list with an entry per layer."""
        shapes = [vars(self.shape_of_layer(layer)) for layer in self.layers]
        columns = {name: [shape[name] for shape in shapes] for name in shapes[0]}
        return {name: sizes[0] if len({*sizes}) == 1 else sizes for name, sizes in columns.items()}

    def groups_of(self, layer: LayerPlan) -> Indices:
        """Return the KV groups that a layer keeps."""
        return tuple(sorted({head // self.original.heads_per_group for head in layer.heads}))

    def shape_of_layer(self, layer: LayerPlan) -> ModelShape:
        """Return the shape of the pruned model if all its layers were like this one."""
        return ModelShape(
            len(self.layers), len(self.hidden), len(layer.neurons), len(layer.heads), len(self.groups_of(layer))
        )

    def sparing(self, first: int, last: int) -> PrunePlan:
        """Return the plan with its first and last layers, `prune.spare_first` and `spare_last` of them, unpruned.

        Raises:
            ConfigError: if these are all layers.
        """
        end = self.original.num_hidden_layers - last
        if first >= end:
            most = f"{self.original.num_hidden_layers - 1} together with prune.spare_last={last}"
            raise ConfigError(f"prune.spare_first: must be at most {most}, got {first}")
        whole = PrunePlan.everything(self.original).layers
        layers = (layer if first <= layer.index < end else whole[layer.index] for layer in self.layers)
        return dataclasses.replace(self, layers=tuple(layers))

    def entries(self, axes: Axes, sizes: Sequence[int], layer: LayerPlan | None) -> dict[int, Tensor]:
        """Return the entries to keep of a parameter: dimension -> indices, for the dimensions that are cut.

        `axes` and `sizes` describe its dimensions in the original model; `layer` is its layer, None outside layers.
        """
        kept = {"hidden": self.hidden}
        if layer is not None:
            kept |= {"neuron": layer.neurons, "head": layer.heads, "kv_group": self.groups_of(layer)}
        found = {dim: self._entries(axis, sizes[dim], kept) for dim, axis in enumerate(axes) if axis}
        return {dim: indices for dim, indices in found.items() if len(indices) < sizes[dim]}

    def _entries(self, axis: Axis, size: int, kept: dict[str, Indices]) -> Tensor:
        parts, whole = parts_of(axis), self.original.units
        width, start, indices = size // sum(map(whole, parts)), 0, []
        for part in parts:
            first = start + torch.tensor(kept[part]) * width
            indices.append((first[:, None] + torch.arange(width)).flatten())
            start += whole(part) * width
        return torch.cat(indices)

    def after(self, first: PrunePlan) -> PrunePlan:
        """Return the composition: the plan equivalent to applying `first` and then this plan.

        Raises:
            ConfigError: if this plan is not for the shape that `first` leaves, or `first` leaves layers that differ.
        """
        if not first.uniform or first.kept != self.original:
            raise ConfigError(f"plan: one for {self.original} cannot follow one that leaves {first.kept}")
        layers = []
        for layer in self.layers:
            source = first.layers[layer.index]
            heads = _pick(source.heads, layer.heads)
            later = (Merge(source.heads[m.kept], source.heads[m.pruned], m.weight) for m in layer.merges)
            merges = effective_merges((*source.merges, *later), heads)
            layers.append(LayerPlan(source.index, _pick(source.neurons, layer.neurons), heads, merges))
        return PrunePlan(first.original, _pick(first.hidden, self.hidden), tuple(layers))

    def check(self, config: Any) -> None:
        """Check that the plan can be applied to a model with this config.

        Raises:
            ConfigError: if the plan is for another shape, cuts layers of another kind, keeps nothing of an axis, names
                a unit twice or one that does not exist, leaves KV groups of a layer with unequal numbers of heads or a
                shape that the family forbids, or merges heads that cannot be merged.
        """
        anatomy, whole = anatomy_of(config), self.original
        if whole != shape_of(config):
            raise ConfigError(f"plan: it is for {whole}, the model has {shape_of(config)}")
        if loading_module(config) and self != PrunePlan.everything(whole):
            check_stock(config)
        _check("hidden", self.hidden, whole.hidden_size)
        _check("layers", [layer.index for layer in self.layers], whole.num_hidden_layers)
        self._check_sublayers(config)
        checked: Indices | None = None  # layers may share one long tuple: check it once
        for layer in self.layers:
            if layer.neurons and layer.neurons is not checked:
                _check(f"neurons of layer {layer.index}", layer.neurons, whole.intermediate_size)
            checked = layer.neurons
            if layer.heads:
                _check(f"heads of layer {layer.index}", layer.heads, whole.num_attention_heads)
            self._check_groups(layer)
            check_merges(layer.merges, layer.heads, self.original, anatomy, f"plan: merges of layer {layer.index}")
            if anatomy.tied_width and len(layer.heads) * head_dim_of(config) != len(self.hidden):
                raise ConfigError(
                    f"plan: {len(layer.heads)} heads of layer {layer.index} and {len(self.hidden)} hidden channels: in "
                    f"{config.model_type} the heads, {head_dim_of(config)} channels each, are as wide as the stream"
                )
        if anatomy.tied_width and self.kept.num_attention_heads * head_dim_of(config) != len(self.hidden):
            raise ConfigError(f"plan: all layers of {config.model_type} must keep equally many KV groups")
        if anatomy.whole_heads and self.kept.hidden_size % self.kept.num_attention_heads:
            raise ConfigError(
                f"plan: {self.kept.hidden_size} hidden channels are not a multiple of the "
                f"{self.kept.num_attention_heads} query heads, as "
                f"the config of {config.model_type} demands"
            )

    def _check_sublayers(self, config: Any) -> None:
        """Check that layers without attention or MLP keep the other, and that the family has such layers."""
        for layer in self.layers:
            if layer.skipped and config.model_type not in LIKE_LLAMA:
                raise ConfigError(
                    f"plan: layer {layer.index}: must keep neurons and heads in {config.model_type}; only those of "
                    f"{', '.join(LIKE_LLAMA)} can do without"
                )
            if len(layer.skipped) == 2:
                raise ConfigError(f"plan: layer {layer.index}: must keep neurons or heads; leave it out to drop it")
        for kind, units in (("attention", "heads"), ("mlp", "neurons")):
            if all(kind in layer.skipped for layer in self.layers):
                raise ConfigError(f"plan: layers: at least one must keep {units}, none does")

    def _check_groups(self, layer: LayerPlan) -> None:
        size = self.original.heads_per_group
        counts = {g: sum(head // size == g for head in layer.heads) for g in self.groups_of(layer)}
        if len(set(counts.values())) > 1:
            raise ConfigError(f"plan: heads of layer {layer.index}: unequal numbers in its KV groups, {counts}")

    def save(self, path: Path) -> None:
        """Write the plan as JSON, one line per list of indices."""
        lines = [
            f'{{"original": {json.dumps(dataclasses.asdict(self.original))},',
            f'"hidden": {json.dumps(self.hidden)},',
            '"layers": [',
            ",\n".join(_lines_of(layer) for layer in self.layers),
            "]}",
        ]
        write_text(path, "\n".join(lines) + "\n")

    @staticmethod
    def load(path: Path) -> PrunePlan:
        """Return the plan in a JSON file.

        Raises:
            ConfigError: if the file is not a plan.
        """
        import pydantic

        try:
            plain = json.loads(path.read_bytes())
            plan = pydantic.TypeAdapter(PrunePlan).validate_json(json.dumps(_current(plain)), strict=True)
        except OSError as error:
            raise ConfigError(f"plan: {path} is not one ({error.strerror})") from None
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ConfigError(f"plan: {path} is not one ({where + ': ' if where else ''}{first['msg']})") from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"plan: {path} is not one ({error})") from None
        assert isinstance(plan, PrunePlan)
        return plan


def _current(plain: Any) -> Any:
    """Return the fields of a plan by their current names; older files use former names."""
    if not isinstance(plain, dict):
        return plain
    plain = {"layers" if name == "blocks" else name: value for name, value in plain.items()}
    if isinstance(plain.get("original"), dict):
        plain["original"] = current_sizes(plain["original"])
    return plain


def _all(count: int) -> Indices:
    return tuple(range(count))


def _pick(of: Indices, indices: Indices) -> Indices:
    return tuple(of[i] for i in indices)


def _check(what: str, indices: Sequence[int], whole: int) -> None:
    if not indices:
        raise ConfigError(f"plan: {what}: none is kept, at least one must be")
    # A large model has half a million neurons: loop over them only to name the wrong one.
    if not ({*map(type, indices)} <= {int, bool} and min(indices) >= 0 and max(indices) < whole):
        wrong = next(i for i in indices if not (isinstance(i, int) and 0 <= i < whole))
        raise ConfigError(f"plan: {what}: there is no {wrong}; there are 0 to {whole - 1}")
    if not all(map(operator.lt, indices, indices[1:])):
        raise ConfigError(f"plan: {what}: indices must ascend and none may come twice")


def _lines_of(layer: LayerPlan) -> str:
    merges = f',\n  "merges": {json.dumps(layer.merges)}' if layer.merges else ""
    return (
        f' {{"index": {layer.index},\n  "neurons": {json.dumps(layer.neurons)},\n'
        f'  "heads": {json.dumps(layer.heads)}{merges}}}'
    )
