"""A Hugging Face model as lm-eval calls it, with progress, a count of truncated prompts, and the ranks of a group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from lit_prune.parallel.group import interleaved, rank, world_size

OnProgress = Callable[[float], None]
"""Callback with the completed share of the work, 0 to 1."""


class RecordingLM(HFLM):
    """lm-eval's model with progress and a count of truncated prompts.

    With `share` this rank answers every world_size-th document, and lm-eval gathers the scores on rank 0.
    """

    def __init__(
        self, model: Any, tokenizer: Any, batch_size: int, on_progress: OnProgress, *, share: bool = True
    ) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        if share:
            self._rank, self._world_size = rank(), world_size()
        self._on_progress, self._seen, self._all = on_progress, 0, 1
        self.num_prompts = self.num_cut = 0

    def all_gather(self, tensor: Any) -> Any:
        """Return the scalars of all ranks."""
        return interleaved(tensor.reshape(1))

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            torch.distributed.barrier()

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        self._expect(
            len(requests),
            sum(len(before) + len(continuation) > self.max_length + 1 for _, before, continuation in requests),
        )
        return super()._loglikelihood_tokens([self._fitting(request) for request in requests], *args, **kwargs)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        room = [self.max_length - request.args[1].get("max_gen_toks", self.max_gen_toks) for request in requests]
        lengths = [len(self.tok_encode(request.args[0])) for request in requests]
        self._expect(len(requests), sum(length > most for length, most in zip(lengths, room, strict=True)))
        return super().generate_until(requests, disable_tqdm=True)

    def _model_call(self, inps: Any, *args: Any, **kwargs: Any) -> Any:
        logits = super()._model_call(inps, *args, **kwargs)
        self._saw(len(inps))
        return logits

    def _model_generate(self, context: Any, *args: Any, **kwargs: Any) -> Any:
        written = super()._model_generate(context, *args, **kwargs)
        self._saw(len(context))
        return written

    def _fitting(self, request: Any) -> Any:
        """Truncate a continuation that alone exceeds the model's positions on the left, like the other requests."""
        pair, before, continuation = request
        if len(continuation) <= self.max_length:
            return request
        return (
            pair,
            continuation[-self.max_length - 1 : -self.max_length] or before[-1:],
            continuation[-self.max_length :],
        )

    def _expect(self, num_requests: int, num_cut: int) -> None:
        self._all, self._seen = num_requests, 0
        self.num_prompts += num_requests
        self.num_cut += num_cut

    def _saw(self, count: int) -> None:
        self._seen += count
        self._on_progress(min(1.0, self._seen / self._all))
