"""The LightningModule: a student that is trained, and the frozen teacher it imitates, outside its checkpoint.

Pretraining and plain fine-tuning are the same module without a teacher.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_prune.config import ConfigError, Distill
from lit_prune.data.tokens import IGNORED
from lit_prune.distill import optim
from lit_prune.distill.states import Pair, StateReader, States, pairs_of
from lit_prune.losses.hidden import hidden_losses
from lit_prune.losses.logit import logit_losses
from lit_prune.losses.weighting import total


class Distiller(L.LightningModule):
    """Minimise w_clm * L_CLM + w_logits * L_logits + alpha * L_is over a student (Minitron, section 3).

    Every mean is over the tokens that have a successor to predict, the same for all terms. `terms` holds the scalars
    of the last step.

    Raises:
        ConfigError: teacher and student do not share a vocabulary; a layer map that does not fit them; a term that
            needs a teacher where there is none.
    """

    teacher: nn.Module | None

    def __init__(self, student: nn.Module, teacher: nn.Module | None, distill: Distill) -> None:
        super().__init__()
        self.student, self.distill = student, distill
        # Not registered as a submodule: checkpoints, optimizer and summary must not see the teacher.
        object.__setattr__(self, "teacher", teacher.eval().requires_grad_(False) if teacher is not None else None)
        self.terms: dict[str, Tensor] = {}
        self._random_state: dict[str, Any] | None = None
        self._logit_loss, self._hidden_loss = (
            logit_losses[distill.logit_loss],
            hidden_losses[distill.hidden_loss],
        )
        self._needs_teacher = bool(distill.w_logits or distill.alpha)
        if not self._needs_teacher and not distill.w_clm:
            raise ConfigError("distill: w_clm, w_logits and alpha are all 0: there is nothing to minimise")
        self.projection: nn.Module = nn.Identity()
        self._pairs: list[Pair] = []
        if self._needs_teacher:
            self._pair_up()
        self._read_student = StateReader(student, [p.student for p in self._pairs])
        self._read_teacher = StateReader(teacher, [p.teacher for p in self._pairs])

    def _pair_up(self) -> None:
        if self.teacher is None:
            raise ConfigError("distill: w_logits and alpha need a teacher")
        ours, theirs = self.student.config, self.teacher.config
        check_same_vocabulary(ours, theirs)
        if self.distill.alpha:
            depths = theirs.num_hidden_layers, ours.num_hidden_layers  # type: ignore[union-attr]
            self._pairs = pairs_of(self.distill, *depths)  # type: ignore[arg-type]
        if self.distill.alpha and not self._pairs:
            raise ConfigError("distill.alpha: give distill.embedding, mlp_input or block_output something to compare")
        if self._pairs and ours.hidden_size != theirs.hidden_size:  # type: ignore[union-attr]
            # One linear map for all pairs, learned with the student and never exported (Minitron, section 3).
            self.projection = nn.Linear(ours.hidden_size, theirs.hidden_size)  # type: ignore[union-attr, arg-type]

    def on_fit_start(self) -> None:
        """Bring the teacher to the student's device: Lightning does not know it."""
        if self.teacher is not None:
            self.teacher.to(self.device)

    def on_train_start(self) -> None:
        if self._random_state is not None:
            _set_random_state(self._random_state)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The objective on one batch {`input_ids`, `labels`: int64 [batch, seq]}."""
        self.terms = self.objective(batch["input_ids"], batch["labels"])
        return self.terms["loss"]

    def objective(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The terms of the objective, scalars: `clm`, `logits` and `hidden` where they are used, and `loss`."""
        successors = labels[:, 1:]
        scored = successors != IGNORED
        with self._read_student as our_states:
            ours = self.student(input_ids=input_ids, use_cache=False).logits[:, :-1][scored].float()
        terms = {}
        if self.distill.w_clm:
            terms["clm"] = _mean(F.cross_entropy(ours, successors[scored], reduction="none"))
        if self._needs_teacher:
            assert self.teacher is not None
            with torch.no_grad(), self._read_teacher as their_states:
                theirs = self.teacher(input_ids=input_ids, use_cache=False).logits[:, :-1][scored].float()
            tau = self.distill.temperature
            terms["logits"] = _mean(self._logit_loss(ours / tau, theirs / tau))
            if self.distill.tau_squared:
                terms["logits"] = terms["logits"] * tau**2
            if self._pairs:
                terms["hidden"] = self._compare_states(scored, our_states, their_states)
        return {**terms, "loss": total(self.distill, terms)}

    def _compare_states(self, scored: Tensor, our_states: States, their_states: States) -> Tensor:
        """L_is: the sum over the pairs of the mean loss over scored tokens."""
        losses = []
        for pair in self._pairs:
            ours = self.projection(our_states[pair.student][:, :-1][scored])
            theirs = their_states[pair.teacher][:, :-1][scored]
            losses.append(_mean(self._hidden_loss(ours.float(), theirs.float())))
        return torch.stack(losses).sum()

    def configure_optimizers(self) -> Any:
        return optim.configure(self, self.distill.optim, self.distill.steps)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clip by global norm and report the norm before clipping, a term of this very step."""
        norm = nn.utils.clip_grad_norm_(self.parameters(), self.distill.optim.clip)
        self.terms["grad_norm"] = norm.detach()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning keeps no random state; with dropout a resumed run would differ."""
        checkpoint["random_state"] = _random_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the random state, and the place in the run, which Lightning counts in micro-batches, in ours.

        A run may be resumed in other micro-batches than it was begun in.
        """
        self._random_state = checkpoint["random_state"]
        done = checkpoint["global_step"] * self.trainer.accumulate_grad_batches
        counts = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for count in (counts["total"], counts["current"]):
            count.update(ready=done, started=done, processed=done, completed=done - 1)


def check_same_vocabulary(student: Any, teacher: Any, place: str = "student.model") -> None:
    """Logits can only be compared over the same vocabulary; `place` is the field that names the student.

    Raises:
        ConfigError: the two configs differ in it.
    """
    if student.vocab_size != teacher.vocab_size:
        raise ConfigError(
            f"{place}: its vocabulary has {student.vocab_size} entries, the teacher's {teacher.vocab_size}; "
            "logits can only be compared over the same one"
        )


def _mean(losses: Tensor) -> Tensor:
    """Mean over tokens; 0 where none is scored, which a micro-batch of one nearly empty block can be."""
    return losses.mean() if losses.numel() else losses.sum()


def _random_state() -> dict[str, Any]:
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
