"""The models of the step benchmark, and the FLOPs of their steps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A teacher, its student, and a batch."""

    teacher: dict[str, int]
    student: dict[str, int]
    seq_len: int = 256
    batch: int = 16
    steps: int = 5
    repeats: int = 3
    tied: bool = False
    """Whether the head is the embedding."""


_SMOLLM2 = {
    "vocab_size": 49_152, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "num_hidden_layers": 30,
}  # fmt: skip
SHAPES = {
    "2k": Shape(
        teacher={
            "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 8,
            "num_key_value_heads": 4, "head_dim": 32, "num_hidden_layers": 6,
        },
        student={
            "vocab_size": 2048, "hidden_size": 192, "intermediate_size": 384, "num_attention_heads": 8,
            "num_key_value_heads": 4, "head_dim": 32, "num_hidden_layers": 6,
        },
    ),
    "32k": Shape(
        teacher={
            "vocab_size": 32000, "hidden_size": 288, "intermediate_size": 768, "num_attention_heads": 6,
            "num_key_value_heads": 6, "head_dim": 48, "num_hidden_layers": 6,
        },
        student={
            "vocab_size": 32000, "hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 4,
            "num_key_value_heads": 4, "head_dim": 48, "num_hidden_layers": 6,
        },
        steps=3,
    ),
    "smollm2": Shape(  # of the profile of that name: SmolLM2-135M and its student
        teacher=_SMOLLM2 | {"hidden_size": 576, "intermediate_size": 1536},
        student=_SMOLLM2 | {"hidden_size": 432, "intermediate_size": 992},
        seq_len=512,
        batch=4,
        steps=3,
        tied=True,
    ),
}  # fmt: skip


def flops(shape: Shape) -> float:
    """Return the FLOPs of a step: one forward pass of the teacher, three of the student, causal attention as half."""
    tokens = shape.seq_len * shape.batch

    def forward(sizes: dict[str, int]) -> float:
        hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"] * sizes["head_dim"]
        kv = sizes["num_key_value_heads"] * sizes["head_dim"]
        layer = hidden * (2 * heads + 2 * kv + 3 * sizes["intermediate_size"]) + shape.seq_len * heads
        return 2.0 * tokens * (sizes["num_hidden_layers"] * layer + hidden * sizes["vocab_size"])

    return forward(shape.teacher) + 3 * forward(shape.student)
