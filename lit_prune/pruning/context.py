"""What a pruning method is given and what it returns. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lit_prune.config import DynamicLoading, Optimizer
    from lit_prune.importance.criteria import CalibrationStats
    from lit_prune.pruning.masks import Masks
    from lit_prune.pruning.plan import PrunePlan


class Fit(Protocol):
    """Trains a module over the training text of the cell."""

    def __call__(
        self, module: Any, what: str, *, max_steps: int, batch_size: int, loading: DynamicLoading | None = None
    ) -> Any:
        """Train a LightningModule for `max_steps` and return it; `what` names the training in the progress.

        Its batches have `batch_size` sequences of `calibration.seq_len` tokens: {`input_ids`, `labels`: int64 [batch,
        seq], `mean_scored`: float}. The number of labels that are scored is `mean_scored`. The module is seeded before
        its first step, and resumed where a killed run had stopped: on a CPU with the same result, bit for bit. `terms`
        of the module, scalars of the newest step with `loss` among them, are logged in metrics.csv. What it needs to
        resume must be in its `state_dict`; see `lit_prune.distill.train.fit`. With `loading` its sequences are drawn by
        domain, and it needs a method `mean_loss(batches)`, the loss in nats per token without gradients.
        """


@dataclass(frozen=True)
class PruneContext:
    """Services that a method may use while it prunes."""

    collect: Callable[[Any, frozenset[str]], CalibrationStats]
    """(model, names of statistics) -> calibration statistics of the model."""
    batches: Callable[[], Iterable[dict[str, Tensor]]]
    """() -> all calibration sequences in a fixed order, as batches {`input_ids`, `labels`: int64 [batch, seq]} on
    `device`, for methods that run the model themselves."""
    fit: Fit
    """(module, what, max_steps=, batch_size=) -> the module, trained on the training text of the cell."""
    cross_entropy: Callable[[Any, Optimizer, int, Masks], Any]
    """(model, optimizer, steps, masks) -> a LightningModule that trains all weights of the model with cross-entropy in
    `fit`, for so many steps. Masked weights stay zero."""
    device: torch.device
    """Where such methods run the model, or rather a copy: the model that is pruned belongs to others too."""
    seed: int
    """Seed of methods that draw random numbers."""
    say: Callable[[str], None]
    """Report the current step as progress."""
    counter: Callable[[str, int, str], Callable[[int], None]]
    """(what, total, unit) -> callback that reports how many of the total are done."""
    measured: Callable[[Callable[[], float]], float]
    """(measure) -> the number that it returns. A run that resumes a killed one gets the numbers of that one, in the
    order of the calls, without measuring again; what decides the order and the numbers must not change."""


@dataclass(frozen=True)
class Pruned:
    """A pruned model with its sizes and plan."""

    model: Any
    """The student; the original model itself if no unit is pruned."""
    requested: dict[str, Any]
    """Sizes as set in the `prune` section."""
    achieved: dict[str, Any]
    """Sizes of the student, with a list for a size that differs between layers."""
    plan: PrunePlan | None = None
    """The kept units, by their indices in the original model; None if the method does not keep whole units."""
    masks: Masks | None = None
    """The weights that stay zero in every later step; None if the method zeroes none."""
