"""Meter the work of pruning: FLOPs of the models it runs, forward and backward, seconds, and peak memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from transformers.pytorch_utils import Conv1D

from lit_prune.evaluate.memory import peak_memory, reset_peak
from lit_prune.models.flops import attended, windows_of
from lit_prune.models.linears import rows_of
from lit_prune.models.model_family import anatomy_of


@dataclass
class Spent:
    """Work of one piece of code, without the pieces inside it that are metered on their own.

    FLOPs are counted by the conventions of `lit_prune.models.flops`, of every linear module and every attention that
    runs. What a method computes besides, such as adapters and decompositions of weights, is not counted.
    """

    tokens: int = 0
    """Tokens of text that were read: those of the calibration set once, and those of trainings."""
    forward_flops: float = 0.0
    backward_flops: float = 0.0
    seconds: float = 0.0
    peak_memory: int | None = 0
    """Bytes of the GPU, or without one of the process; None if the system does not tell."""

    @property
    def plain(self) -> dict[str, Any]:
        """The numbers as they are stored in env.json."""
        return asdict(self)

    def count(self, flops: float, made: Tensor, gradients: int) -> None:
        """Add the FLOPs of a product, and those of its `gradients` once the gradient of what it `made` is known."""

        def add(_: Tensor) -> None:
            self.backward_flops += gradients * flops

        self.forward_flops += flops
        if gradients and made.requires_grad:
            made.register_hook(add)

    def __add__(self, other: Spent) -> Spent:
        """Return both together: sums, and the higher peak."""
        known = self.peak_memory is not None and other.peak_memory is not None
        return Spent(
            self.tokens + other.tokens, self.forward_flops + other.forward_flops,
            self.backward_flops + other.backward_flops, round(self.seconds + other.seconds, 2),
            max(self.peak_memory or 0, other.peak_memory or 0) if known else None,
        )  # fmt: skip


class Meter:
    """Accounts of nested pieces of work of one thread: what runs counts only for the innermost open one.

    Forward hooks of all modules count; unlike a dispatch mode, they change no bit of the results.
    """

    def __init__(self) -> None:
        self._open: list[Spent] = []

    @contextmanager
    def account(self) -> Iterator[Spent]:
        """Meter the body; what it yields has its numbers when the body ends.

        The peak memory of the process is reset at both ends.
        """
        own, outer, began = Spent(), self._open[-1:], time.perf_counter()
        self._see_peak()
        self._open.append(own)
        with contextlib.ExitStack() as stack:
            if not outer:
                stack.callback(register_module_forward_hook(self._count).remove)
            try:
                yield own
            finally:
                self._see_peak()
                self._open.pop()
                whole = time.perf_counter() - began
                own.seconds = round(own.seconds + whole, 2)
                for account in outer:
                    account.seconds -= whole

    def _see_peak(self) -> None:
        """Note the peak memory since the last reset in the innermost open account, and reset it."""
        peak = peak_memory()
        for account in self._open[-1:]:
            known = account.peak_memory
            account.peak_memory = None if peak is None or known is None else max(known, peak)
        if not reset_peak():
            for account in self._open:
                account.peak_memory = None

    def _count(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Count a linear module [..., in] -> [..., out], or the scores and the weighted sum of an attention."""
        if isinstance(module, nn.Linear | Conv1D):
            read, weight = inputs[0], module.weight
            products = 2.0 * weight.numel() * (output.numel() // output.shape[-1])
            self._open[-1].count(products, output, read.requires_grad + weight.requires_grad)
        elif type(module).__name__.endswith("Attention") and hasattr(module, "config"):
            made = output[0] if isinstance(output, tuple) else output
            positions = attended(made.shape[-2], windows_of(module.config)[module.layer_idx])  # type: ignore[index]
            products = 4.0 * _width_of(module) * positions * (made.numel() // made.shape[-1])
            self._open[-1].count(products, made, 2)


def _width_of(attention: nn.Module) -> int:
    """Return the number of query heads of an attention times their width."""
    name = anatomy_of(attention.config).attention_output.rpartition(".")[2]
    output = attention.get_submodule(name)
    return rows_of(output[0] if isinstance(output, nn.Sequential) else output).shape[1]
