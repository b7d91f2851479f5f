"""The `prune` section: a union of the settings of all pruning methods, tagged by `method`. No torch.

The methods themselves lie in `lit_prune.methods`, which is imported when a method is first looked up.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lit_prune.config.fields import ConfigError, Count, Size, later, renamed
from lit_prune.config.training import DynamicLoading

DEFAULT_METHOD = "minitron"


@dataclass(frozen=True)
class PruneMethod:
    """Settings that every method has, and what the pipeline calls.

    A method is a frozen dataclass whose own fields are its settings. `config` is the Hugging Face config of the model
    that is pruned, which need not exist yet.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "allow_inf_nan": False}
    name: ClassVar[str] = DEFAULT_METHOD
    retraining: ClassVar[dict[str, Any]] = {}
    """Fields of `distill` with which the publication retrains its students; empty if it does not."""
    sparse: ClassVar[bool] = False
    """Whether the method sets single weights to zero, and leaves the shape of the model as it is."""
    keeps_zeros: ClassVar[bool] = False
    """Whether the weights that are zero by the masks of the pruned model are zero in the student, too."""
    training_passes: ClassVar[float] = 0
    """A step of a method that trains for `max_steps` costs this many forward passes; 0 if it does not train."""

    method: str = later("", noop=DEFAULT_METHOD)
    """Pruning method. Changing it resets the section to the defaults of the new method."""
    init: Literal["teacher", "random"] = later("teacher", noop="teacher", was="weights")
    """Initial weights of the student: the pruned teacher's, or random ones (training from scratch)."""
    plan_path: str | None = later(None, noop=None, was="plan")
    """File of a plan to apply instead of computing one: plan.json of another run, possibly edited."""
    init_from: str | None = later(None, noop=None, was="model")
    """An already small model (folder or hub id) to start from instead of pruning the teacher."""
    fingerprint: str | None = later(None, noop=None)
    """sha256 of the weights of `init_from` or of `plan_path`. Filled in by the program."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", self.name)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Validate the section as the method that it names."""
        from pydantic_core import core_schema

        if cls is not PruneMethod:
            return handler(source)
        choices = {name: handler.generate_schema(method_class(name)) for name in method_names()}
        return core_schema.tagged_union_schema(
            choices, discriminator=lambda section: section.get("method", DEFAULT_METHOD)
        )

    @property
    def equal_layers(self) -> bool:
        """Whether the config alone tells the width of every layer; False if scores decide it per layer."""
        return True

    @property
    def loading(self) -> DynamicLoading | None:
        """How the method draws text by the domains of `corpus.domain`; None if it draws all sequences alike."""
        return None

    def check_settings(self) -> None:
        """Raise a ConfigError for a setting that is wrong whatever the model."""

    def check(self, config: Any) -> None:
        """Raise a ConfigError if a model with this config cannot be pruned like this."""

    def effective(self, config: Any) -> PruneMethod:
        """Return settings that are equal for all that prune a model with this config alike."""
        return self

    def statistics(self, config: Any) -> frozenset[str]:
        """Return the names of the calibration statistics that `prune` reads (`lit_prune.config.EVIDENCE`)."""
        return frozenset()

    def own_flops(self, work: Any) -> float:
        """Return the FLOPs of `prune` beside collecting statistics of the model and cutting it, to estimate its time.

        `work` is a `lit_prune.pruning.method_work.Work` of the model.
        """
        trained: Any = self
        passes = self.training_passes
        return work.training(trained.max_steps, trained.batch_size, passes) if passes else 0.0

    def config_of(self, config: Any) -> Any:
        """Return the Hugging Face config of the student."""
        raise TypeError(f"{type(self).__name__}.config_of: must be defined by the method")

    def prune(self, model: Any, ctx: Any) -> Any:
        """Return the student as `Pruned`; `ctx` is a `PruneContext`: see `lit_prune.pruning.context`."""
        raise TypeError(f"{type(self).__name__}.prune: must be defined by the method")


@dataclass(frozen=True)
class Prune(PruneMethod):
    """Sizes to keep, criteria that score and allocators that choose: what `lit_prune.pruning` carries out.

    These are the settings of the default method. Other methods that score, choose and cut translate theirs to them.
    """

    width_criterion: str = renamed("activation", was="criterion")
    """Score that ranks the units of each axis."""
    batch_aggregation: Literal["l2", "mean", "var"] = renamed("l2", was="batch")
    """Aggregation of activation scores over sequences (Minitron, section 2.2)."""
    seq_aggregation: Literal["l2", "mean", "var"] = renamed("mean", was="seq")
    """Aggregation of activation scores over the tokens of a sequence."""
    hidden_size: Size = renamed(0.75, was="hidden")
    """Hidden channels to keep, the same in every layer."""
    intermediate_size: Size = renamed(0.6875, was="neurons")
    """MLP neurons to keep in each layer."""
    num_attention_heads: Size = renamed(0.667, was="heads")
    """Query heads to keep in each layer, in equal number inside every KV group."""
    num_key_value_heads: Size = later(None, noop=None, was="kv_groups")
    """KV groups to keep in each layer, each with its query heads; None keeps all."""
    num_hidden_layers: Size = later(None, noop=None, was="layers")
    """Layers to keep; None keeps all."""
    num_parameters: Size = later(None, noop=None, was="parameters")
    """Parameters to keep, a count or a share of the teacher's. Sizes that are "auto" all get the share that comes
    closest to this number."""
    drop_layers: tuple[int, ...] = later((), noop=(), was="drop")
    """Layers to drop, 0-based, instead of a number of layers chosen by score."""
    layer_criterion: str = later("influence", noop="influence", was="block_criterion")
    """Score that ranks the layers."""
    layer_selection: str = later(
        "lowest_score",
        noop="lowest_score",
        was="blocks",
        values={"lowest_score": "lowest", "last": "tail", "last_but_final": "tail_but_last"},
    )
    """Layers to drop: lowest_score (one by one), contiguous (the span with the lowest score as a whole), last, or
    last_but_final (the last layers, but not the very last)."""
    width_allocation: str = later("uniform", noop="uniform", was="widths")
    """Distribution of neurons and heads over the layers: uniform (equally many in each), or global (those with the
    highest scores in the whole model, with the same number of parameters in total)."""
    num_iterations: Count = later(1, noop=1, was="rounds")
    """Iterations of importance estimation, each followed by an equal part of the pruning (Minitron, section 2.2)."""
    head_merging: Literal["off", "paper", "reversed_sign"] = later(
        "off", noop="off", was="head_residual", values={"reversed_sign": "opposite"}
    )
    """Add the difference to pruned heads back to the weakest kept ones: as printed (Minitron, section 2.3: the query
    weights become 2 kept - pruned), or with the opposite sign (they become those of the pruned head)."""


def default_method() -> PruneMethod:
    """Return the default method with its default settings."""
    return method_class(DEFAULT_METHOD)()


def method_class(name: Any) -> type[PruneMethod]:
    """Return the method of that name.

    Raises:
        ConfigError: if there is none.
    """
    return importlib.import_module("lit_prune.methods").methods[str(name)]


def method_names() -> list[str]:
    """Return the names of all methods."""
    return list(importlib.import_module("lit_prune.methods").methods)


def method_summaries() -> dict[str, str]:
    """Return one line about each method, with its source: the first of its module's docstring, else of its own."""

    def first_line(kind: type[PruneMethod]) -> str:
        text = getattr(sys.modules.get(kind.__module__), "__doc__", None) or kind.__doc__ or ""
        return text.strip().partition("\n")[0]

    return {name: first_line(method_class(name)) for name in method_names()}


def sizes_of(method: PruneMethod, who: str) -> Prune:
    """Return the sizes, criteria and allocators of a method that has all of them as settings; `who` reads them.

    Raises:
        ConfigError: if it does not.
    """
    if not isinstance(method, Prune):
        raise ConfigError(f"prune.method: must be {DEFAULT_METHOD} for {who}, got {method.method}")
    return method
