"""Methods that set single weights to zero."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lit_prune.config import ConfigError, PruneMethod, expand
from lit_prune.config.fields import Fraction
from lit_prune.pruning.context import PruneContext, Pruned

if TYPE_CHECKING:
    from lit_prune.pruning.masks import Masks


@dataclass(frozen=True)
class ZeroWeights(PruneMethod):
    """Base class of methods that set single weights of the linears in the layers to zero, as `masks_of` chooses.

    The model keeps its shape, and its masks are stored with it. `plan_path` may name the masks of another run,
    pruning/masks.safetensors in the folder of a model, to apply instead.
    """

    sparsity: Fraction = 0.5
    """Share of the weights of the linears in the layers to set to zero."""

    sparse: ClassVar[bool] = True
    keeps_zeros: ClassVar[bool] = True

    def masks_of(self, model: Any, ctx: PruneContext) -> Masks:
        """Return the masks of a model, which is a copy that the method may change."""
        raise TypeError(f"{type(self).__name__}.masks_of: must be defined by the method")

    def given_masks(self, model: Any, ctx: PruneContext) -> Masks:
        """Return the masks of `plan_path`, to apply to a copy of the model that the method may change."""
        from lit_prune.pruning.masks import read_masks

        return read_masks(expand(str(self.plan_path)))

    def check(self, config: Any) -> None:
        """Raise a ConfigError if the sparsity is out of range, or the masks of `plan_path` do not fit the model."""
        from lit_prune.models.shape import meta_model
        from lit_prune.pruning.masks import check_fit, read_masks

        if not 0 < self.sparsity < 1:
            raise ConfigError(f"prune.sparsity: must be > 0 and < 1, got {self.sparsity}")
        if self.init != "teacher":
            raise ConfigError(f"prune.init: must be teacher with prune.method={self.method}, got {self.init}")
        if self.plan_path is not None:
            masks = read_masks(expand(self.plan_path), "prune.plan_path")
            check_fit(meta_model(config), masks, "prune.plan_path")

    def effective(self, config: Any) -> PruneMethod:
        """Return the settings without those that masks of another run replace."""
        return self if self.plan_path is None else type(self)(plan_path=self.plan_path, fingerprint=self.fingerprint)

    def config_of(self, config: Any) -> Any:
        """Return the Hugging Face config of the student: that of the model."""
        self.check(config)
        return copy.deepcopy(config)

    def prune(self, model: Any, ctx: PruneContext) -> Pruned:
        """Choose the weights and return a copy of the model in which they are zero."""
        from lit_prune.pruning.masks import apply_masks, sparsity_of

        self.check(model.config)
        student = copy.deepcopy(model).to(ctx.device)
        masks = (self.masks_of if self.plan_path is None else self.given_masks)(student, ctx)
        apply_masks(student, masks)
        student.to(model.device)
        return Pruned(student, {"sparsity": self.sparsity}, sparsity_of(student, masks), masks=masks)
