"""Float32 matrix products through oneDNN, where these are as exact as PyTorch's own and clearly faster.

Told that bfloat16 is precise enough, PyTorch hands float32 products to oneDNN, which without AMX has only a float32
kernel for them: on AMD Zen 5 2.3 times as fast as MKL, on Intel Cascade Lake 0.9 times. With AMX it does round to
bfloat16, which the probe sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lit_prune.cpu.timing import seconds

EXACT = 1e-6
"""Relative error of a float32 product that was computed in float32; rounded to bfloat16 it is above 1e-3."""
_MARGIN = 1.5
"""Far from both 0.9 and 2.3, so that the noise of a busy machine does not decide."""
_SHAPES = ((512, 256, 704), (512, 704, 256), (256, 192, 2048))
"""[tokens, in, out] of a small model's projections and head."""


def switch(wanted: bool) -> str:
    """Turn oneDNN's products on where they pass the probe, else off; returns which, and why."""
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
    """Let oneDNN compute the float32 products of this process, or PyTorch's default."""
    torch.backends.mkldnn.matmul.fp32_precision = "bf16" if wanted else "none"  # type: ignore[attr-defined]


def using() -> bool:
    """Return whether oneDNN computes them."""
    return bool(torch.backends.mkldnn.matmul.fp32_precision == "bf16")  # type: ignore[attr-defined]


@contextmanager
def onednn(wanted: bool) -> Iterator[None]:
    """Inside `with`, oneDNN computes the products, or PyTorch's default does."""
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
    """Relative to the product in float64, of the plain product and of the batched one."""
    exact = a.double() @ b.double()
    found = torch.stack([a @ b, (a[None] @ b[None])[0]]).double()
    return ((found - exact).norm(dim=(1, 2)) / exact.norm()).max().item()


def _gain(operands: list[tuple[Tensor, Tensor]]) -> float:
    """PyTorch's default time over oneDNN's."""

    def multiply(wanted: bool) -> None:
        with onednn(wanted):
            for a, b in operands:
                torch.mm(a, b)

    took = seconds({"default": lambda: multiply(False), "oneDNN": lambda: multiply(True)}, rounds=6)
    return took["default"] / took["oneDNN"]
