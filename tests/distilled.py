"""A small teacher, narrower students, a batch with tokens that are not scored, and what an objective makes of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from lit_prune.data.tokens import IGNORED
from lit_prune.distill.module import Distiller

VOCAB = 48

ALL_STATES = {"embedding": True, "mlp_input": ("2:1",), "block_output": ("0:0", "last:last")}


def llama(
    hidden: int = 32, layers: int = 4, vocab: int = VOCAB, seed: int = 0, dropout: float = 0.0
) -> LlamaForCausalLM:
    """A Llama of random weights; the norms' are random too, so that reading before a norm shows."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=40, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=0, attention_dropout=dropout,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
        else:
            parameter.data.mul_(4)
    return model.eval()


def student_of(hidden: int = 24, **config: Any) -> LlamaForCausalLM:
    return llama(hidden, layers=3, seed=1, **config)


def batch(*ignored: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Two sequences of 10 ids and their labels, IGNORED at the given places."""
    ids = torch.randint(0, VOCAB, (2, 10), generator=torch.Generator().manual_seed(5))
    labels = ids.clone()
    for place in ignored:
        labels[place] = IGNORED
    return ids, labels


IGNORED_PLACES = ((0, 0), (0, 7), (1, 8), (1, 9))
SCORED = [(b, t) for b in range(2) for t in range(9) if (b, t + 1) not in IGNORED_PLACES]
"""Places whose successor is scored."""


@torch.no_grad()
def states_by_hand(model: LlamaForCausalLM, ids: Tensor) -> dict[tuple[str, int], Tensor]:
    """("output", i): the stream after i blocks, normed by what follows; ("mlp", i): block i's MLP input."""
    core = model.model
    streams = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    rotary = core.rotary_emb(streams[0], torch.arange(ids.shape[1])[None])
    states = {}
    for i, layer in enumerate(core.layers):
        normed = layer.input_layernorm(streams[i])
        states["output", i] = normed
        middle = streams[i] + layer.self_attn(normed, position_embeddings=rotary, attention_mask=None)[0]
        states["mlp", i] = layer.post_attention_layernorm(middle)
        after = middle + layer.mlp(states["mlp", i])
        last = i == len(core.layers) - 1
        torch.testing.assert_close(core.norm(after) if last else after, streams[i + 1])
    return states | {("output", len(core.layers)): streams[-1]}


def by_token(loss: Any, ours: Tensor, theirs: Tensor) -> float:
    """Mean over the scored places, one at a time."""
    return sum(loss(ours[p][None].double(), theirs[p][None].double()).item() for p in SCORED) / len(SCORED)


def same(value: Tensor, expected: float) -> bool:
    return value.item() == pytest.approx(expected, rel=2e-5)


def gradients(module: Distiller, loss: Tensor) -> list[Tensor]:
    return torch.autograd.grad(loss, list(module.parameters()), allow_unused=True, materialize_grads=True)
