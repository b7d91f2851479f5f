"""Methods that mask a network as it starts, by the weights that training would give it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lit_prune.config import ConfigError, Optimizer, PruneMethod
from lit_prune.config.fields import Count
from lit_prune.config.training import check_decay
from lit_prune.pruning.bases.zero_weights import ZeroWeights
from lit_prune.pruning.context import PruneContext

if TYPE_CHECKING:
    from lit_prune.pruning.learned.tickets import TicketTrainer


@dataclass(frozen=True)
class LotteryTicket(ZeroWeights):
    """Base class of methods that train copies of a network from its start theta_0, to find masks for theta_0 itself."""

    start: Literal["model", "random_linears", "random"] = "random"
    """theta_0: the weights of the model, those with the linears of the layers drawn anew, or all drawn anew."""
    max_steps: Count = 50
    """Steps of a training from theta_0."""
    batch_size: Count = 8
    """Sequences in a step."""
    optimizer: Optimizer = Optimizer()
    """Optimizer and schedule of each training."""

    keeps_zeros: ClassVar[bool] = False  # weights are drawn or trained where zeros were

    def check_settings(self) -> None:
        """Raise a ConfigError for a rate that rises, or a place in a schedule: that of a training has `max_steps`."""
        super().check_settings()
        check_decay(self.optimizer, "prune.optimizer")
        for name, unset in (("schedule_steps", None), ("schedule_start", 0)):
            if (value := getattr(self.optimizer, name)) != unset:
                raise ConfigError(f"prune.optimizer.{name}: must be unset, since max_steps sets it, got {value}")

    def effective(self, config: Any) -> PruneMethod:
        """Return the settings unchanged: masks of another run replace only some of them."""
        return self

    def trainer(self, ctx: PruneContext) -> TicketTrainer:
        """Return what draws theta_0 and trains from it."""
        from lit_prune.pruning.learned.tickets import TicketTrainer

        return TicketTrainer(ctx, self.start, self.optimizer, self.max_steps, self.batch_size)
