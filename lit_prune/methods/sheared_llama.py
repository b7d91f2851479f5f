"""Sheared LLaMA: learn a smaller uniform shape by hard-concrete gates, with the weights (arXiv 2310.06694)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lit_prune.config import ConfigError, Prune, Size
from lit_prune.config.fields import Count, Fraction, Positive
from lit_prune.methods import method
from lit_prune.pruning.bases.domain_loading import LoadsDomains
from lit_prune.pruning.bases.score_and_cut import ChooseAndCut
from lit_prune.pruning.context import PruneContext

if TYPE_CHECKING:
    from lit_prune.pruning.plan import PrunePlan


@method("sheared_llama")
@dataclass(frozen=True)
class ShearedLLaMA(LoadsDomains, ChooseAndCut):
    """Train the weights and gates z of layers, channels, KV groups and neurons until the target shape is left.

    The loss is L_LM(theta, z) + sum over axes of lambda_1 (s - t) + lambda_2 (s - t)^2, where s is the expected
    sparsity of an axis and t that of the target; it is minimised over weights and gates and maximised over lambda
    (section 2.1). The result has the same widths in every layer and loads in stock transformers.

    The paper prunes LLaMA-2-7B (32 layers, 4096 channels, 32 heads, 11008 neurons) to 24, 2048, 16, 5504 or to 32,
    2560, 20, 6912, in 3200 steps of 32 sequences of 4096 tokens. Defaults: the shares of the second; its 6912 neurons
    are 6880 rounded to a multiple of 128. Deviations: domains are drawn by loss on request, here (`LoadsDomains`) and
    anew in the retraining. Kept gates become 1; the authors' code multiplies them in. One gate multiplies a layer.
    """

    num_hidden_layers: Size = None
    """Layers to keep, as a count or a share; None keeps all."""
    hidden_size: Size = 0.625
    """Hidden channels to keep."""
    intermediate_size: Size = 0.625
    """Neurons to keep in each layer."""
    num_key_value_heads: Size = 0.625
    """KV groups (with their query heads) to keep in each layer; heads, without grouped-query attention."""
    max_steps: Count = 200
    """Steps of training."""
    batch_size: Count = 8
    """Sequences in a step."""
    lr: Positive = 1e-3
    """Peak learning rate of the weights, after a warm-up of a tenth of the steps."""
    gate_lr: Positive = 1.0
    """Learning rate of gates and multipliers."""
    target_warmup: Fraction = 0.2
    """Share of the steps in which the target sparsity rises from 0."""

    retraining: ClassVar[dict[str, Any]] = {
        "distill.ce_weight": 1.0, "distill.kd_weight": 0.0, "distill.max_steps": 48000, "distill.batch_size": 256,
        "distill.optimizer.lr": 1e-4, "distill.optimizer.min_lr": 1e-5, "distill.optimizer.warmup_steps": 1440,
    }  # fmt: skip
    training_passes: ClassVar[float] = 3

    def recipe(self, config: Any) -> Prune:
        """Return a recipe with the target shape; its criteria are not used."""
        from lit_prune.models.model_family import anatomy_of

        if self.hidden_size is not None and anatomy_of(config).norm == "layer":
            raise ConfigError(f"prune.hidden_size: must be null for {config.model_type}, whose norms subtract the mean")
        return self.keep_groups(
            config, self.num_key_value_heads, num_hidden_layers=self.num_hidden_layers, hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
        )  # fmt: skip

    def choose(self, model: Any, plan: PrunePlan, ctx: PruneContext) -> tuple[PrunePlan, Any]:
        """Return the units with the highest gates, and the trained copy of the model."""
        from lit_prune.pruning.learned.hard_concrete import ShapeLearner

        module = ShapeLearner(
            copy.deepcopy(model).requires_grad_(True), plan.kept, lr=self.lr, gate_lr=self.gate_lr,
            warmup_steps=round(self.target_warmup * self.max_steps), max_steps=self.max_steps, seed=ctx.seed,
        )  # fmt: skip
        ctx.fit(module, "learning a shape", max_steps=self.max_steps, batch_size=self.batch_size, loading=self.loading)
        return module.plan(), module.model.eval()
