"""Merge consecutive layers of a model into one, and measure how much the model's last states change."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_prune.importance.calibration_pass import check_finite
from lit_prune.models.lm_head import last_states
from lit_prune.models.model_family import anatomy_of
from lit_prune.models.residual_stream import ResidualStream
from lit_prune.models.shape import shape_of
from lit_prune.pruning.plan import PrunePlan

Rule = Literal["paper", "official"]
"""What the first of m + 1 layers becomes: w_0 + sum over k = 1, ..., m of (w_k - w_0), or w_m (the authors' code)."""

_SEQUENCES_AT_ONCE = 8


class MergedLayers:
    """A copy of a model in which layers are merged one after another.

    A merge changes the linear modules of its first layer; the norms of that layer stay. The other layers are skipped
    from then on, but remain in the copy until they are cut out. Memory: the copy and the last states of all sequences.
    """

    def __init__(self, model: Any, batches: Iterable[dict[str, Tensor]], num_sequences: int, rule: Rule) -> None:
        """Models are compared on the first `num_sequences` sequences of the batches, on whose device the copy runs."""
        ids = torch.cat([batch["input_ids"] for batch in batches])[:num_sequences]
        self.model, self.rule = copy.deepcopy(model).to(ids.device).eval(), rule
        self.kept = list(range(model.config.num_hidden_layers))
        """Layers that are left, by their indices in the original model."""
        self._stream, self._batches = ResidualStream(self.model), ids.split(_SEQUENCES_AT_ONCE)
        with self._stream.reading():
            self._original = [self._states(ids) for ids in self._batches]
        self._known: dict[tuple[int, int], float] = {}

    def similarity(self, place: int, count: int) -> float:
        """Return the mean cosine, over tokens, of last states with and without a merge of layer `kept[place]`.

        The merge takes the `count` layers that follow. Last states are read after the final norm.

        Raises:
            ConfigError: if the cosine is not finite.
        """
        if (place, count) not in self._known:
            parameters = self._linear(self.kept[place])
            before = {name: parameter.data for name, parameter in parameters.items()}
            try:
                self._set(parameters, self._merged(place, count))
                self._known[place, count] = self._cosine(self.kept[place + 1 : place + 1 + count])
            finally:
                self._set(parameters, before)
        return self._known[place, count]

    def merge(self, place: int, count: int) -> None:
        """Merge the `count` layers after layer `kept[place]` into it."""
        self._set(self._linear(self.kept[place]), self._merged(place, count))
        del self.kept[place + 1 : place + 1 + count]
        self._known.clear()

    def search(
        self, target: int, most: int, lowest: int, highest: int | None, step: int, threshold: float,
        on_progress: Callable[[int], None],
    ) -> None:  # fmt: skip
        """Merge layers, deep ones first, until `target` of them are left.

        Each merge makes up to `most` layers one, if the similarity is at least `threshold`. A pass first tries the
        layer `most` below `highest`, by default the last one, then goes down to `lowest`, by `step` after a merge and
        by one otherwise. After a pass without a merge, the threshold is lowered to the highest similarity of that pass.
        `on_progress` is called with the number of layers that are gone.
        """
        whole = len(self.kept)
        highest = whole - 1 if highest is None else highest
        while len(self.kept) > target:
            found: list[float] = []
            merged, place = False, max(lowest, highest - (whole - len(self.kept)) - most)
            while place >= lowest and len(self.kept) > target:
                count = min(most - 1, len(self.kept) - 1 - place, len(self.kept) - target)
                found.append(self.similarity(place, count))
                if found[-1] < threshold:
                    place -= 1
                    continue
                self.merge(place, count)
                merged, place = True, place - step
                on_progress(whole - len(self.kept))
            threshold = threshold if merged else max(found)

    def plan(self) -> PrunePlan:
        """Return the plan that drops the layers which were merged into others."""
        whole = PrunePlan.everything(shape_of(self.model.config))
        return replace(whole, layers=tuple(whole.layers[i] for i in self.kept))

    def _linear(self, index: int) -> dict[str, nn.Parameter]:
        """Return the weights and biases of the linear modules of a layer."""
        family = anatomy_of(self.model.config)
        prefix = f"{family.layers}.{index}"
        parameters = dict(self.model.get_submodule(prefix).named_parameters())
        linear = {
            name.removesuffix(".weight") for name in parameters
            if name.endswith(".weight") and family.is_linear(f"{prefix}.{name}")
        }  # fmt: skip
        return {name: parameter for name, parameter in parameters.items() if name.rpartition(".")[0] in linear}

    def _merged(self, place: int, count: int) -> dict[str, Tensor]:
        first, *others = (self._linear(index) for index in self.kept[place : place + 1 + count])
        if self.rule == "official":
            return {name: others[-1][name].detach().clone() for name in first}
        sums = {name: weight.detach().clone() for name, weight in first.items()}
        for other in others:
            for name, weight in first.items():
                sums[name] += other[name].detach() - weight.detach()
        return sums

    @staticmethod
    def _set(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
        for name, parameter in parameters.items():
            parameter.data = values[name]

    def _cosine(self, gone: list[int]) -> float:
        total, tokens = 0.0, 0
        skipped = {*range(self.model.config.num_hidden_layers)} - {*self.kept} | {*gone}
        with self._stream.skipping(skipped):
            for ids, original in zip(self._batches, self._original, strict=True):
                cosines = torch.cosine_similarity(self._states(ids), original, dim=-1)
                check_finite("what passes through merged layers", cosines)
                total, tokens = total + float(cosines.sum(dtype=torch.float64)), tokens + cosines.numel()
        return total / tokens

    @torch.no_grad()
    def _states(self, ids: Tensor) -> Tensor:
        return last_states(self.model, ids).float()
