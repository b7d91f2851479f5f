"""Collect calibration statistics: one forward pass yields all requested statistics of the activations.

Two statistics have passes of their own: layer_ablation.py (the model without each layer) and gradients.py (backward).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lit_prune.config import ConfigError, Execution, Precision
from lit_prune.data.calibration import CalibrationData
from lit_prune.importance.aggregate import SequenceMoments
from lit_prune.importance.calibration_pass import Pass, check_finite, stream
from lit_prune.importance.gradients import Gradients
from lit_prune.importance.layer_ablation import Removals
from lit_prune.importance.layer_distance import Distances
from lit_prune.models.model_family import anatomy_of, head_dim_of, layers_of
from lit_prune.parallel.group import is_main


class HookPoint(NamedTuple):
    """A module at which activations [batch, seq, width] are read."""

    module: nn.Module
    entering: bool
    """Read the input of the module; otherwise its output."""
    head_dim: int | None = None
    """Width of a head, if the L2 norm of each head at each token is read instead of the channels."""

    def hook(self, moments: SequenceMoments, ids: Tensor) -> RemovableHandle:
        """Register a hook that adds the activations of tokens `ids` [batch, seq] to the moments."""

        def add(x: Tensor) -> None:
            x = x.unflatten(0, ids.shape) if x.dim() == 2 else x  # OPT's MLP flattens batch and sequence
            moments.add(x.unflatten(-1, (-1, self.head_dim)).float().norm(dim=-1) if self.head_dim else x)

        if self.entering:
            return self.module.register_forward_pre_hook(lambda module, inputs: add(inputs[0]))
        return self.module.register_forward_hook(lambda module, inputs, output: add(output))


class ActivationMoments:
    """Moments over sequences of the activations at each of some hook points."""

    def __init__(self, sites: Mapping[str, HookPoint]) -> None:
        self.sites = sites
        self.moments = {name: SequenceMoments() for name in sites}

    @contextmanager
    def reading(self, ids: Tensor) -> Iterator[None]:
        """Read the forward pass over `ids` [batch, seq] that runs inside `with`."""
        handles = [site.hook(self.moments[name], ids) for name, site in self.sites.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def add_up(self, total: Callable[[Tensor], Tensor]) -> None:
        """Replace each running sum by its `total`, the sum over all ranks."""
        for moments in self.moments.values():
            assert moments.sums is not None
            moments.sums = total(moments.sums)

    def tensors(self) -> dict[str, Tensor]:
        """Return the sums of each hook point, float64 [2, 3, units].

        Raises:
            ConfigError: if an activation was not finite.
        """
        sums = {name: moments.sums.cpu() for name, moments in self.moments.items() if moments.sums is not None}
        for name, found in sums.items():
            check_finite(f"activation {name}", found)
        return sums


class Reader(Protocol):
    """A collector of statistics from a forward pass."""

    def reading(self, ids: Tensor) -> AbstractContextManager[None]:
        """Read the forward pass over `ids` [batch, seq] that runs inside `with`."""

    def add_up(self, total: Callable[[Tensor], Tensor]) -> None:
        """Replace each running sum by its `total`, the sum over all ranks."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the collected tensors."""


def importance_sites(model: Any) -> dict[str, HookPoint]:
    """Return the hook points of Minitron's activation scores, by name (section 2.2).

    - Neurons: after the activation, at the input of the down projection.
    - Heads: the L2 norm of each head's output at each token, at the input of the output projection.
    - Hidden channels: after the norms before attention and MLP. A norm that both share is read once; in a family
      without such norms the residual stream is read.

    The paper does not specify two choices made here: post-activation, and the per-token norm before the aggregation.
    """
    anatomy, sites = anatomy_of(model.config), {}
    norms = {
        (anatomy.input_norm or "", anatomy.input_norm is None): "input_norm",
        (anatomy.mlp_norm or anatomy.mlp or "", anatomy.mlp_norm is None): "mlp_norm",
    }
    for i, layer in enumerate(layers_of(model)):
        output, down = layer.get_submodule(anatomy.attention_output), layer.get_submodule(anatomy.mlp_output)
        sites[f"{i}.head"] = HookPoint(output, entering=True, head_dim=head_dim_of(model.config))
        sites[f"{i}.neuron"] = HookPoint(down, entering=True)
        for (path, entering), name in norms.items():
            sites[f"{i}.{name}"] = HookPoint(layer.get_submodule(path), entering)
    return sites


def head_channel_sites(model: Any) -> dict[str, HookPoint]:
    """Return hook points for every channel of the heads' outputs, at the input of the output projection.

    This follows Model-Optimizer, which aggregates channels before it joins them to heads.
    """
    path = anatomy_of(model.config).attention_output
    return {f"{i}.head_channel": HookPoint(layer.get_submodule(path), True) for i, layer in enumerate(layers_of(model))}


def preactivation_sites(model: Any) -> dict[str, HookPoint]:
    """Return hook points for neurons before their activation, as in Minitron's formula (section 2.2).

    Raises:
        ConfigError: if the family's MLP has no module for its activation.
    """
    path = anatomy_of(model.config).activation
    if path is None:
        raise ConfigError(
            f"prune.width_criterion: the neurons of a {model.config.model_type} cannot be read before their "
            f"activation, "
            "which is no module of its own; activation reads them after it"
        )
    return {
        f"{i}.preactivation": HookPoint(layer.get_submodule(path), True) for i, layer in enumerate(layers_of(model))
    }


READERS: dict[str, Callable[[Any], Reader]] = {
    "importance": lambda model: ActivationMoments(importance_sites(model)),
    "head_channels": lambda model: ActivationMoments(head_channel_sites(model)),
    "preactivations": lambda model: ActivationMoments(preactivation_sites(model)),
    "distances": Distances,
}
"""Collectors that share one forward pass, by the name of the statistic."""


class Calibrator(Pass):
    """Accumulate the requested statistics of the teacher's activations, without gradients and without logits."""

    def __init__(self, model: Any, names: Collection[str], on_progress: Callable[[int], None]) -> None:
        super().__init__(model, on_progress)
        self.readers = {name: READERS[name](model) for name in names}

    def read(self, batch: dict[str, Tensor]) -> None:
        """Read one batch {`input_ids`: int64 [batch, seq]}."""
        with ExitStack() as stack:
            for reader in self.readers.values():
                stack.enter_context(reader.reading(batch["input_ids"]))
            self.model.base_model(input_ids=batch["input_ids"], use_cache=False)

    def add_up(self, total: Callable[[Tensor], Tensor]) -> None:
        """Replace each running sum by its `total`, the sum over all ranks."""
        for reader in self.readers.values():
            reader.add_up(total)

    def found(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of each statistic, by its name."""
        return {name: reader.tensors() for name, reader in self.readers.items()}


def measure(
    model: Any, data: CalibrationData, paths: Mapping[str, Path], execution: Execution,
    on_progress: Callable[[int], None], precision: Precision = "32-true",
) -> int:  # fmt: skip
    """Write each statistic named in `paths` to its safetensors file and return the number of sequences seen.

    In a group of ranks each reads its share of the sequences, and rank 0 writes the files. `on_progress` is called with
    the number of sequences seen so far in each pass.

    Raises:
        ConfigError: if a statistic is not finite or the family has no such activation; its file is not written.
    """
    seen = 0
    for reader in _passes(model, paths, on_progress):
        stream(reader, data, execution, precision)
        if is_main():
            for name, tensors in reader.found().items():
                save_file(tensors, paths[name])
        seen = reader.seen
    return seen


def passes_over(names: Collection[str]) -> list[list[str]]:
    """Return the named statistics in groups that one pass collects together."""
    alone = [[name] for name in names if name not in READERS]
    forward = [name for name in READERS if name in names]
    return [forward, *alone] if forward else alone


def _passes(model: Any, names: Collection[str], on_progress: Callable[[int], None]) -> Iterator[Pass]:
    """Yield the passes that collect the named statistics."""
    if forward := [name for name in READERS if name in names]:
        yield Calibrator(model, forward, on_progress)
    if "removals" in names:
        yield Removals(model, 1, on_progress)
    if "gradients" in names:
        yield Gradients(model, on_progress)
