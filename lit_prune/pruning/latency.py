"""Measure the time that variants of attention and MLP take on this device, and predict that of a model from their sum.

Each variant is timed where it runs: in a model whose layers all are this variant and have no other sub-layer. Such a
model and the whole model take turns, so that other load slows both alike, and the median ratio of their times is kept.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lit_prune.config import ConfigError, Timing
from lit_prune.models.model_family import anatomy_of, head_dim_of
from lit_prune.models.pass_time import seconds_in_turns
from lit_prune.models.random_weights import random_model
from lit_prune.models.shape import shape_of
from lit_prune.models.transformed import transformed_config
from lit_prune.pruning.plan import PrunePlan
from lit_prune.pruning.variants import Library, Size


@dataclass(frozen=True)
class Latencies:
    """Nanoseconds of parts of a forward pass: prices of a library of variants."""

    whole: int
    """Of the whole model, measured at once."""
    outside: int
    """Of all that lies outside attention and MLPs."""
    attentions: Mapping[int, int]
    """KV groups -> of the attention of one layer, with its norm."""
    mlps: Mapping[int, int]
    """Neurons -> of the MLP of one layer, with its norm."""
    besides: int = 0
    neuron: int = 0
    group: int = 0

    def attention(self, groups: int) -> int:
        """Return the time of the attention of a layer with so many KV groups; 0 without any."""
        return self.attentions[groups] if groups else 0

    def mlp(self, neurons: int) -> int:
        """Return the time of the MLP of a layer with so many neurons; 0 without any."""
        return self.mlps[neurons] if neurons else 0


class Stopwatch:
    """Times models of one family on a device, with random weights."""

    def __init__(
        self, config: Any, timing: Timing, device: torch.device, measured: Callable[[Callable[[], float]], float]
    ) -> None:
        """`measured` may know the numbers of an interrupted run, in their order."""
        self.config, self.timing, self.device, self._measured = config, timing, device, measured

    @functools.cached_property
    def _whole(self) -> Any:
        return self._made(self.config)

    def _made(self, config: Any) -> Any:
        dtype = torch.bfloat16 if self.timing.precision == "bf16-true" else torch.float32
        return random_model(config, self.device, dtype)

    def seconds(self) -> float:
        """Return the median seconds of a forward pass of the whole model."""
        return self._measured(lambda: statistics.median(seconds for (seconds,) in self._turns(self._whole)))

    def share(self, config: Any) -> float:
        """Return the median time of a model of another config, as a share of that of the whole model."""

        def share() -> float:
            return statistics.median(one / whole for one, whole in self._turns(self._made(config), self._whole))

        return self._measured(share)

    def _turns(self, *models: Any) -> list[list[float]]:
        timing = self.timing
        return seconds_in_turns(models, timing.batch_size, timing.seq_len, timing.num_repeats)

    @property
    def conditions(self) -> str:
        """What is timed, in words."""
        timing, kind = self.timing, self.device.type
        where = torch.cuda.get_device_name(self.device) if kind == "cuda" else f"{torch.get_num_threads()} CPU threads"
        shape = f"{timing.batch_size} x {timing.seq_len} tokens in {timing.precision} on {where}"
        return f"a forward pass over {shape}, medians of {timing.num_repeats}"


def measure(stopwatch: Stopwatch, library: Library, on_progress: Callable[[int], None]) -> Latencies:
    """Return the time of every variant of a library; `on_progress` gets the number of measurements."""
    config, layers = stopwatch.config, library.whole.num_hidden_layers
    sizes = [(0, 0), *((0, g) for g in library.groups if g), *((n, 0) for n in library.neurons if n)]
    seconds, shares = stopwatch.seconds(), dict[Size, float]()
    for number, size in enumerate(sizes, 2):
        shares[size] = stopwatch.share(_only(config, size))
        on_progress(number)

    def nanoseconds(share: float) -> int:
        return round(1e9 * seconds * max(0.0, share))

    def of_layer(size: Size) -> int:
        return nanoseconds((shares[size] - shares[0, 0]) / layers)

    return Latencies(
        nanoseconds(1.0), nanoseconds(shares[0, 0]), {g: of_layer((n, g)) for n, g in sizes if g},
        {n: of_layer((n, g)) for n, g in sizes if n},
    )  # fmt: skip


def number_of_measurements(library: Library) -> int:
    """Return how many measurements `measure` makes."""
    return 2 + sum(map(bool, (*library.groups, *library.neurons)))


def priced(library: Library, latencies: Latencies, share: float) -> tuple[Library, int]:
    """Return the library with these prices, and the limit that is a share of the sum over the whole model.

    Raises:
        ConfigError: if all models of the library exceed the limit.
    """
    found = dataclasses.replace(library, prices=latencies)
    whole, least = found.of_model(_sizes(PrunePlan.everything(library.whole))), found.least()
    if least > share * whole:
        raise ConfigError(f"prune.latency: must be >= {least / whole:.3f}, that of the fastest model, got {share}")
    return found, int(share * whole)


def compared(library: Library, latencies: Latencies, plan: PrunePlan, share: float) -> dict[str, Any]:
    """Return the latencies of a student beside the predicted ones, in milliseconds.

    `library` has the latencies as prices; `share` is what the student takes of the time of the whole model.
    """

    def milliseconds(time: float) -> float:
        return round(time / 1e6, 4)

    return {
        "whole": milliseconds(latencies.whole),
        "predicted_whole": milliseconds(library.of_model(_sizes(PrunePlan.everything(plan.original)))),
        "student": milliseconds(share * latencies.whole),
        "predicted_student": milliseconds(library.of_model(_sizes(plan))),
        "outside": milliseconds(latencies.outside),
        "attention": {groups: milliseconds(time) for groups, time in latencies.attentions.items()},
        "mlp": {neurons: milliseconds(time) for neurons, time in latencies.mlps.items()},
    }


def in_words(report: Mapping[str, Any]) -> str:
    """Return in one line what `compared` found, and the conditions."""
    return (
        f"{report['conditions']}: the whole model takes {report['whole']:.4g} ms (sum of its parts "
        f"{report['predicted_whole']:.4g}), the student {report['student']:.4g} ms (sum of its parts "
        f"{report['predicted_student']:.4g})"
    )


def _sizes(plan: PrunePlan) -> list[Size]:
    return [(len(layer.neurons), len(plan.groups_of(layer))) for layer in plan.layers]


def _only(config: Any, size: Size) -> Any:
    """Return the config of a model whose layers have only an MLP of this size, only attention, or neither."""
    whole, (neurons, groups), anatomy = shape_of(config), size, anatomy_of(config)
    kept = groups or whole.num_key_value_heads
    heads = kept * whole.heads_per_group
    widths = {anatomy.neurons: neurons or whole.intermediate_size, "num_attention_heads": heads}
    widths |= {"num_key_value_heads": kept, "head_dim": head_dim_of(config)}
    skipped = [kind for kind, units in (("attention", groups), ("mlp", neurons)) if not units]
    found = transformed_config(config, **widths)
    found.per_layer_config = {i: {"skip": skipped} for i in range(whole.num_hidden_layers)}
    return found
