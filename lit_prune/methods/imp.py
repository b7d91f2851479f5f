"""IMP: prune the smallest weights of a trained network, rewind the others, repeat (arXiv 1803.03635, 1903.01611)."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lit_prune.config import ConfigError, Optimizer, PruneMethod
from lit_prune.config.fields import Count, Fraction, Natural
from lit_prune.methods import method
from lit_prune.pruning.bases.zero_weights import ZeroWeights
from lit_prune.pruning.context import PruneContext, Pruned

if TYPE_CHECKING:
    from lit_prune.pruning.masks import Masks


@method("imp")
@dataclass(frozen=True)
class IterativeMagnitudePruning(ZeroWeights):
    """Find a lottery ticket: a network as it starts, with a mask that training has found.

    A round trains theta_0 with the mask found so far, prunes the smallest of the remaining weights of the linears in
    the layers, and rewinds the others to theta_0. Every round prunes the same share of the remaining weights, so that
    the last one meets `sparsity`: 1 - 0.8^n in n rounds are the 20 % per round of the paper. One round is one-shot
    pruning. The result is untrained. The retraining of the cell trains it with its mask, which the paper does with
    cross-entropy for as many steps as a round.

    With `rewind_step` k, the weights are rewound to theta_k, those after k steps (late resetting). Each round then
    trains for the other `max_steps` - k steps of the schedule. Its optimizer starts without moments and the data from
    their beginning, in the first round, too.

    The paper trains image classifiers, prunes their output layer at half the rate, and compares all weights of deep
    networks with each other. Embeddings, head, norms and biases have no mask here. `plan_path` applies the masks of
    another run to theta_0 or theta_k.
    """

    sparsity: Fraction = 0.488
    """Share of the weights of the linears in the layers to set to zero."""
    num_rounds: Count = 3
    """Rounds of training, pruning and rewinding; 1 prunes in one shot."""
    start: Literal["model", "random_linears", "random"] = "random"
    """theta_0: the weights of the model, those with the linears of the layers drawn anew, or all drawn anew."""
    rewind_step: Natural = 0
    """Step to whose weights the survivors are rewound; 0 rewinds to theta_0."""
    comparison: Literal["matrix", "model"] = "matrix"
    """Weights that are compared with each other: those of a matrix, or of all matrices together."""
    control: Literal["random_masks", "reinitialised"] | None = None
    """Controls of the paper: a mask with as many zeros in each matrix at random places, or the mask that was found with
    newly drawn weights in place of theta_0."""
    max_steps: Count = 50
    """Steps of a training from theta_0."""
    batch_size: Count = 8
    """Sequences in a step."""
    optimizer: Optimizer = Optimizer()
    """Optimizer and schedule of each training."""

    retraining: ClassVar[dict[str, Any]] = {"distill.ce_weight": 1.0, "distill.kd_weight": 0.0}
    keeps_zeros: ClassVar[bool] = False  # weights are drawn or trained where zeros were

    def check_settings(self) -> None:
        """Raise a ConfigError for settings that contradict each other."""
        if self.rewind_step >= self.max_steps:
            raise ConfigError(f"prune.rewind_step: must be < prune.max_steps, {self.max_steps}, got {self.rewind_step}")
        for name, unset in (("schedule_steps", None), ("schedule_start", 0)):
            if (value := getattr(self.optimizer, name)) != unset:
                raise ConfigError(f"prune.optimizer.{name}: must be unset, since rounds have their own, got {value}")
        if self.control == "reinitialised" and self.start == "model":
            raise ConfigError("prune.control: must not be reinitialised with prune.start=model, which draws nothing")
        if self.control and self.plan_path is not None:
            raise ConfigError(f"prune.control: must be null with prune.plan_path, got {self.control}")

    def check(self, config: Any) -> None:
        """Raise a ConfigError as `ZeroWeights`, or for settings that contradict each other."""
        super().check(config)
        self.check_settings()

    def effective(self, config: Any) -> PruneMethod:
        """Return the settings unchanged: masks of another run replace only some of them."""
        return self

    def own_flops(self, work: Any) -> float:
        """Return the FLOPs of all rounds and of the training to the step to which they rewind."""
        steps = self.rewind_step + self.num_rounds * (self.max_steps - self.rewind_step)
        return work.training(steps, self.batch_size, 3)

    def prune(self, model: Any, ctx: PruneContext) -> Pruned:
        """Find a ticket, or apply the masks of `plan_path` to theta_0 or theta_k."""
        if self.plan_path is None:
            return super().prune(model, ctx)
        self.check(model.config)
        return super().prune(self._rewound(model, ctx), ctx)

    def masks_of(self, model: Any, ctx: PruneContext) -> Masks:
        """Give the model the weights of the ticket, untrained, and return its masks."""
        import torch

        from lit_prune.pruning.learned.tickets import keep_largest, set_start, shuffled

        rewound = self._rewound(model, ctx)
        if self.control == "random_masks" and self.comparison == "matrix":  # every matrix has the same density
            masks = keep_largest(rewound, {}, 1 - self.sparsity, self.comparison)
        else:
            masks = self._found(rewound, ctx)
        if self.control == "reinitialised":
            other = torch.randint(2**31, (1,), generator=torch.Generator().manual_seed(ctx.seed))
            set_start(model, self.start, int(other))
            return masks
        model.load_state_dict(rewound.state_dict())
        return shuffled(masks, ctx.seed) if self.control == "random_masks" else masks

    def _rewound(self, model: Any, ctx: PruneContext) -> Any:
        """Return a copy of a model with the weights theta_0, or theta_k after training for k steps."""
        from lit_prune.pruning.learned.tickets import set_start

        copied = copy.deepcopy(model).to(ctx.device)
        set_start(copied, self.start, ctx.seed)
        return self._trained(copied, {}, ctx, "training to rewind", 0, self.rewind_step)

    def _found(self, rewound: Any, ctx: PruneContext) -> Masks:
        """Return the masks that the rounds find."""
        from lit_prune.pruning.learned.tickets import densities, keep_largest
        from lit_prune.pruning.masks import apply_masks

        masks: Masks = {}
        for number, density in enumerate(densities(self.sparsity, self.num_rounds), 1):
            network = copy.deepcopy(rewound)
            apply_masks(network, masks)
            what = f"round {number} of {self.num_rounds}"
            network = self._trained(network, masks, ctx, what, self.rewind_step, self.max_steps)
            masks = keep_largest(network, masks, density, self.comparison)
        return masks

    def _trained(self, network: Any, masks: Masks, ctx: PruneContext, what: str, first: int, last: int) -> Any:
        """Train a network in place from one step of the schedule to another, with its masks held; return it."""
        from lit_prune.distill.module import cross_entropy_trainer

        if first == last:
            return network
        optimizer = dataclasses.replace(self.optimizer, schedule_start=first, schedule_steps=self.max_steps)
        module = cross_entropy_trainer(network, optimizer, last - first, masks)
        ctx.fit(module, what, max_steps=last - first, batch_size=self.batch_size)
        return network.eval().to(ctx.device)
