"""The LightningModule of all training: a student, and the frozen teacher it imitates, which no checkpoint contains.

Pretraining and plain fine-tuning use the same module without a teacher.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lit_prune.config import ConfigError, Distill, Optimizer
from lit_prune.data.tokens import IGNORED
from lit_prune.distill import optim
from lit_prune.distill.accumulation import Accumulation, Compared
from lit_prune.distill.hidden_states import (
    HiddenStateReader,
    Pair,
    State,
    States,
    check_relation_heads,
    check_sublayers,
    pairs_of,
    relations_of,
)
from lit_prune.distill.objective import NOTHING_COMPARED
from lit_prune.distill.sharded_strategy import ShardedStrategy
from lit_prune.distill.sharding import local, local_part, whole
from lit_prune.distill.teacher import FrozenTeacher, Teacher
from lit_prune.losses.chunked import head_losses
from lit_prune.losses.hidden import hidden_losses
from lit_prune.losses.logit import logit_loss_of
from lit_prune.losses.relation import relation_loss
from lit_prune.losses.targets import Target
from lit_prune.losses.weighting import check_weights
from lit_prune.models.lm_head import head_of, last_states
from lit_prune.parallel.group import world_size
from lit_prune.pruning.masked import mean_loss
from lit_prune.pruning.masks import Masks


class Distiller(L.LightningModule):
    """Minimise ce_weight * L_CLM + kd_weight * L_logits + alpha * L_is over a student (Minitron, section 3).

    The gradients of masked weights are zero before they are clipped and before AdamW sees them. So are its moments of
    these weights, and the weights stay zero; weight decay multiplies them.

    The teacher is a model or a `Teacher`, whose outputs may be cached. If vocabularies are padded differently, L_logits
    compares the entries that both have. All terms are means over the same scored tokens of an optimizer step, which has
    `micro_batches` parts on each rank. `terms` holds the scalars of the newest step.

    Raises:
        ConfigError: if a layer map does not fit the models, or a term needs a teacher and there is none.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module | Teacher | None, distill: Distill, micro_batches: int = 1,
        masks: Masks | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.student, self.distill = student, distill
        # Not a submodule: checkpoints, optimizer and summary must exclude the teacher.
        self.teacher = FrozenTeacher(teacher) if isinstance(teacher, nn.Module) else teacher
        self.terms: dict[str, Tensor] = {}
        shared = micro_batches > 1 or world_size() > 1
        self._accumulation = Accumulation(distill, micro_batches) if shared else None
        self._measured: dict[str, Tensor] = {}
        self._logit_loss = logit_loss_of(distill.logit_loss, distill.mixture)
        self._hidden_loss = hidden_losses[distill.hidden_loss]
        check_weights(distill)
        self.projection: nn.Module = nn.Identity()
        self._pairs: list[Pair] = []
        self._relations: list[Pair] = []
        self._teacher_states: list[State] = []
        if self.distill.needs_teacher:
            self._pair_up()
        self._read_student = HiddenStateReader(student, [p.student for p in self._pairs + self._relations])
        self._shards: list[nn.Parameter] = []
        """Sharded parameters, if they are; within a step `parameters` has whole ones in their places."""
        self._pruned = {name: ~kept for name, kept in (masks or {}).items()}
        """Parameters of a sparse student, each with the places that stay zero; of a sharded one, those of this rank."""

    def _pair_up(self) -> None:
        if self.teacher is None:
            raise ConfigError("distill: kd_weight and alpha need a teacher")
        ours, theirs = self.student.config, self.teacher.model.config
        if self.distill.alpha:
            depths = theirs.num_hidden_layers, ours.num_hidden_layers  # type: ignore[union-attr]
            self._pairs = pairs_of(self.distill, *depths)  # type: ignore[arg-type]
            self._relations = relations_of(self.distill, *depths)  # type: ignore[arg-type]
            if not self._pairs and not self._relations:
                raise ConfigError(f"distill.alpha: {NOTHING_COMPARED}")
        check_sublayers([pair.student for pair in self._pairs + self._relations], ours, "the student")
        if self._relations:
            check_relation_heads(self.distill, theirs, ours)
        if self._pairs and ours.hidden_size != theirs.hidden_size:  # type: ignore[union-attr]
            # Trained with the student and never exported (Minitron, section 3: one for all pairs).
            maps = [
                nn.Linear(ours.hidden_size, theirs.hidden_size)  # type: ignore[union-attr, arg-type]
                for _ in (self._pairs if self.distill.projection == "per_pair" else self._pairs[:1])
            ]
            self.projection = nn.ModuleList(maps) if self.distill.projection == "per_pair" else maps[0]
        self._teacher_states = list(dict.fromkeys(pair.teacher for pair in self._pairs + self._relations))

    @property
    def compares_states(self) -> bool:
        """Whether hooks read hidden states in the forward pass."""
        return bool(self._pairs or self._relations)

    def configure_model(self) -> None:
        """Shard student and teacher over the ranks if the strategy of the trainer does."""
        if isinstance(self.trainer.strategy, ShardedStrategy):
            self.trainer.strategy.shard(self, self.student, *([] if self.teacher is None else [self.teacher.model]))
            self._shards = list(self.parameters())

    def on_fit_start(self) -> None:
        """Move the teacher to the student's device; it is not a submodule, so Lightning does not."""
        if self.teacher is not None:
            self.teacher.model.to(self.device)
        for name, pruned in self._pruned.items():
            self._pruned[name] = local_part(pruned, self.student.get_parameter(name)).to(self.device)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of one micro-batch {`input_ids`, `labels`: int64 [batch, seq], `mean_scored`: float}.

        `mean_scored` is that of `StepParts`; a batch without it is a whole step. With several micro-batches or ranks
        the loss excludes the terms weighted by a ratio: see `accumulation.py`.
        """
        found = self._compare(batch["input_ids"], batch["labels"], batch_idx, batch.get("mean_scored"))
        if self._accumulation is None:
            self.terms = found.weighed(self.distill)
            return self.terms["loss"]
        self.terms, self._measured = self._accumulation.add(found, batch_idx), found.measured
        return found.fixed

    def _note(self, name: str, value: Tensor) -> None:
        """Record a term that is not part of `loss`, after the other terms of the micro-batch."""
        noted = value.detach() if self._accumulation is None else self._accumulation.note(name, value)
        self.terms[name] = noted

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Backpropagate the loss, and separately the terms that are weighted by a ratio over the step."""
        if self._accumulation is not None:
            self._accumulation.differentiate(self._measured, self._shards or self.parameters())
            self._measured = {}
        super().backward(loss, *args, **kwargs)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Add the gradients that were accumulated separately, with the ratios of the whole step; mask the sum."""
        if self._accumulation is not None:
            self.terms = self._accumulation.conclude(self._shards or self.parameters())
        for name, pruned in self._pruned.items():
            parameter = self.student.get_parameter(name)
            if parameter.grad is not None:
                local(parameter.grad).masked_fill_(pruned, 0)

    def objective(self, input_ids: Tensor, labels: Tensor, position: int | None = None) -> dict[str, Tensor]:
        """Return the scalar terms of the objective: `loss`, and those of `ce_loss`, `kd_loss`, `hidden_loss` in use.

        The batch is treated as a whole step. A cached teacher needs its `position` in the data of the run.
        """
        return self._compare(input_ids, labels, position, None).weighed(self.distill)

    @torch.no_grad()
    def mean_loss(self, batches: Iterable[dict[str, Tensor]]) -> float:
        """Return the student's cross-entropy in nats per scored token over batches, without dropout."""
        training = self.student.training
        try:
            return mean_loss(self.student.eval(), batches)
        finally:
            self.student.train(training)

    def _compare(self, input_ids: Tensor, labels: Tensor, position: int | None, count: float | None) -> Compared:
        """Return all terms, each summed over the scored tokens and divided by `count`, by default their number."""
        successors = labels[:, 1:]
        scored = successors != IGNORED
        with self._read_student as our_states:
            last = last_states(self.student, input_ids)[:, :-1][scored]
        output = None
        if self.distill.needs_teacher:
            assert self.teacher is not None
            output = self.teacher.observe(input_ids, position, self._teacher_states)
        target = None if output is None else output.target(scored, self.distill.top_k)
        count = (int(scored.sum()) if count is None else count) or 1
        next_ids = successors[scored] if self.distill.ce_weight else None
        balanced = self.distill.ce_weight == "balanced"
        measured: dict[str, Tensor] = {}
        fixed, terms = self._compare_logits(last, None if balanced else next_ids, target, count)
        if output is not None and self.compares_states:
            terms["hidden_loss"] = self._compare_states(scored, our_states, output.states, count)
            if isinstance(self.distill.alpha, str):
                measured["hidden_loss"] = terms["hidden_loss"]
            else:
                fixed = fixed + self.distill.alpha * terms["hidden_loss"]
        if balanced:
            measured["ce_loss"], found = self._compare_logits(last, next_ids, None, count)
            terms |= found
        return Compared(fixed, measured, terms)

    def _compare_logits(
        self, last: Tensor, successors: Tensor | None, target: Target | None, count: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return ce_weight * L_CLM + kd_weight * L_logits of the given inputs, and each term, detached."""
        ce_weight = 1.0 if isinstance(self.distill.ce_weight, str) else self.distill.ce_weight
        scale = self.distill.temperature**2 if self.distill.scale_by_temperature_squared else 1.0
        found = head_losses(
            last, head_of(self.student), successors=successors, ce_weight=ce_weight, target=target,
            logit_loss=self._logit_loss, kd_weight=self.distill.kd_weight * scale, temperature=self.distill.temperature,
            count=count,
        )  # fmt: skip
        terms = {} if found.ce_loss is None else {"ce_loss": found.ce_loss}
        return found.loss, terms if found.kd_loss is None else terms | {"kd_loss": scale * found.kd_loss}

    def _compare_states(self, scored: Tensor, our_states: States, their_states: States, count: float) -> Tensor:
        """Return L_is, the sum over pairs of the losses of scored tokens, divided by `count`."""
        losses = []
        for place, pair in enumerate(self._pairs):
            ours = self._projected(our_states[pair.student][:, :-1][scored], place)
            theirs = their_states[pair.teacher][:, :-1][scored]
            losses.append(self._hidden_loss(ours.float(), theirs.float()).sum() / count)
        for pair in self._relations:
            vectors = our_states[pair.student].float(), their_states[pair.teacher].float()
            relations = relation_loss(*vectors, self.distill.relation_heads)[:, :-1][scored]
            losses.append(relations.sum() / count)
        return torch.stack(losses).sum()

    def _projected(self, states: Tensor, place: int) -> Tensor:
        """Return the student's states projected to the teacher's width, for the pair at index `place`."""
        own = isinstance(self.projection, nn.ModuleList)
        projected = (self.projection[place] if own else self.projection)(states)  # type: ignore[index]
        assert isinstance(projected, Tensor)
        return projected

    def configure_optimizers(self) -> Any:
        return optim.configure(self, self.distill.optimizer, self.distill.max_steps)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clip by global norm and record the norm before clipping as the term `grad_norm` of this step."""
        norm = nn.utils.clip_grad_norm_(self.parameters(), self.distill.optimizer.max_grad_norm)
        self.terms["grad_norm"] = whole(norm.detach())


def cross_entropy_trainer(model: nn.Module, optimizer: Optimizer, max_steps: int, masks: Masks) -> Distiller:
    """Return the module that trains all weights of a model with cross-entropy alone; masked weights stay zero."""
    return Distiller(
        model.requires_grad_(True).train(), None,
        Distill(ce_weight=1.0, kd_weight=0.0, max_steps=max_steps, optimizer=optimizer), masks=masks,
    )  # fmt: skip
