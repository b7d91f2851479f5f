"""Float32 matmuls by oneDNN, if they are as exact as PyTorch's default and clearly faster.

If bfloat16 precision is allowed, PyTorch passes float32 matmuls to oneDNN. Without AMX oneDNN has only a float32 kernel
for them: on AMD Zen 5 it is 2.3 times as fast as MKL, on Intel Cascade Lake 0.9 times. With AMX it rounds to bfloat16,
which the probe detects.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lit_prune.cpu.timing import seconds

EXACT = 1e-6
"""Largest relative error of a float32 matmul computed in float32; with rounding to bfloat16 it is above 1e-3."""
_MARGIN = 1.5
"""Required speed-up, far from both 0.9 and 2.3, so that timing noise does not decide."""
_SHAPES = ((512, 256, 704), (512, 704, 256), (256, 192, 2048))
"""[tokens, in, out] of a small model's projections and head."""


def switch(wanted: bool) -> str:
    """Use oneDNN's matmuls if they pass the probe; return whether they are on, and why."""
    use(False)
    if not wanted:
        return "off"
    if not torch.backends.mkldnn.is_available():
        return "off: PyTorch is built without oneDNN"
    operands = _operands()
    with onednn(True):
        error = max(_error(a, b) for a, b in operands)
    if error > EXACT:
        return f"off: oneDNN's products are off by {error:.1e}"
    gain = _gain(operands)
    use(gain >= _MARGIN)
    return f"{'on' if using() else 'off'}: oneDNN is {gain:.2f} times as fast, at least {_MARGIN} is required"


def use(wanted: bool) -> None:
    """Use oneDNN for the float32 matmuls of this process, else PyTorch's default."""
    torch.backends.mkldnn.matmul.fp32_precision = "bf16" if wanted else "none"  # type: ignore[attr-defined]


def using() -> bool:
    """Return whether oneDNN computes float32 matmuls."""
    return bool(torch.backends.mkldnn.matmul.fp32_precision == "bf16")  # type: ignore[attr-defined]


@contextmanager
def onednn(wanted: bool) -> Iterator[None]:
    """Use oneDNN for float32 matmuls inside `with`, or PyTorch's default."""
    before = using()
    use(wanted)
    try:
        yield
    finally:
        use(before)


def _operands() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [(torch.randn(m, k, generator=draw), torch.randn(k, n, generator=draw)) for m, k, n in _SHAPES]


def _error(a: Tensor, b: Tensor) -> float:
    """Return the larger relative error, to float64, of the plain and the batched matmul."""
    exact = a.double() @ b.double()
    found = torch.stack([a @ b, (a[None] @ b[None])[0]]).double()
    return ((found - exact).norm(dim=(1, 2)) / exact.norm()).max().item()


def _gain(operands: list[tuple[Tensor, Tensor]]) -> float:
    """Return the speed-up of oneDNN over PyTorch's default."""

    def multiply(wanted: bool) -> None:
        with onednn(wanted):
            for a, b in operands:
                torch.mm(a, b)

    took = seconds({"default": lambda: multiply(False), "oneDNN": lambda: multiply(True)}, rounds=6)
    return took["default"] / took["oneDNN"]
