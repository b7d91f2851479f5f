"""Memory and speed of GPUs, from NVIDIA's data sheets. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GpuName = Literal["a100-40gb", "a100", "h100", "h200", "l40s", "rtx4090"]
"""Names of the GPUs; a100 has 80 GB, and h100 and h200 are the SXM versions."""


@dataclass(frozen=True)
class Gpu:
    """A GPU; speeds are peaks of dense products in FLOP/s."""

    num_bytes: float
    bf16: float
    """Tensor cores, bfloat16 with float32 accumulation."""
    float32: float
    """Float32 without TF32, which PyTorch leaves off."""

    def peak(self, precision: str) -> float:
        """Return the peak of training steps in a precision, 32-true or bf16-mixed."""
        return self.bf16 if precision == "bf16-mixed" else self.float32


GPUS: dict[str, Gpu] = {
    "a100-40gb": Gpu(40e9, 312e12, 19.5e12),
    "a100": Gpu(80e9, 312e12, 19.5e12),
    "h100": Gpu(80e9, 989e12, 67e12),
    "h200": Gpu(141e9, 989e12, 67e12),
    "l40s": Gpu(48e9, 362e12, 91.6e12),
    "rtx4090": Gpu(24e9, 165e12, 82.6e12),
}
