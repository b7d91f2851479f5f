"""A Distiller that also fine-tunes the teacher while the student learns from it (In Practice, Figure 5)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lit_prune.config import ConfigError, Distill
from lit_prune.data.tokens import IGNORED
from lit_prune.distill import optim
from lit_prune.distill.module import Distiller
from lit_prune.distill.sharding import whole
from lit_prune.distill.teacher import Teacher
from lit_prune.losses.chunked import head_losses
from lit_prune.models.lm_head import head_of, last_states
from lit_prune.pruning.masks import Masks


class JointDistiller(Distiller):
    """Train the student, and the teacher in place on cross-entropy with its own optimizer, schedule and clipping.

    The student's targets come from the teacher before the step, without gradient; the student does not affect the
    teacher. `terms` has the teacher's loss as `teacher_ce_loss`, which is not part of `loss`.

    Raises:
        ConfigError: if the student does not learn from the teacher.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module | Teacher | None, distill: Distill, micro_batches: int = 1,
        masks: Masks | None = None,
    ) -> None:  # fmt: skip
        super().__init__(student, teacher, distill, micro_batches, masks)
        assert distill.teacher_optimizer is not None
        self._teacher_optim = distill.teacher_optimizer
        if self.teacher is None or not distill.needs_teacher:
            raise ConfigError(
                "distill.teacher_optimizer: kd_weight and alpha are 0, so nothing is learned from the teacher"
            )
        self.corrected = self.teacher.model.requires_grad_(True)  # a submodule, to be in the checkpoint

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the student's objective plus the teacher's cross-entropy; their graphs share no parameter."""
        # The teacher first: autocast would reuse weights that it cast in a pass without gradient.
        clm = self._teacher_clm(batch["input_ids"], batch["labels"], batch.get("mean_scored"))
        loss = super().training_step(batch, batch_idx)
        self._note("teacher_ce_loss", clm)
        return loss + clm

    def _teacher_clm(self, input_ids: Tensor, labels: Tensor, count: float | None) -> Tensor:
        successors = labels[:, 1:]
        scored = successors != IGNORED
        self.corrected.train()  # dropout only here: the student's targets are computed without
        last = last_states(self.corrected, input_ids)[:, :-1][scored]
        self.corrected.eval()
        head = head_of(self.corrected)
        return head_losses(last, head, successors=successors[scored], ce_weight=1.0, count=count).loss

    def configure_optimizers(self) -> Any:
        parts = [(self._ours(), self.distill.optimizer), (list(self.corrected.parameters()), self._teacher_optim)]
        return optim.configure_parts(parts, self.distill.max_steps)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clip student and teacher separately; `grad_norm` is the student's."""
        norm = nn.utils.clip_grad_norm_(self._ours(), self.distill.optimizer.max_grad_norm)
        nn.utils.clip_grad_norm_(self.corrected.parameters(), self._teacher_optim.max_grad_norm)
        self.terms["grad_norm"] = whole(norm.detach())

    def _ours(self) -> list[nn.Parameter]:
        """Return the parameters outside the teacher: those of the student and of the projection, if any."""
        theirs = set(self.corrected.parameters())
        return [p for p in self.parameters() if p not in theirs]
