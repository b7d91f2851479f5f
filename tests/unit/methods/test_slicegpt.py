"""SliceGPT: rotation alone changes no logits; slicing gives those of an independent computation in numpy float64."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import CASES, config_of, generates_with_cache_as_without, logits, model_of, token_ids
from pruning_context import IDS, LAYERS, context_of, small_llama
from refusals import refuses

import lit_prune as lp
from lit_prune.config import Execution
from lit_prune.config.overrides import override
from lit_prune.methods import methods
from lit_prune.models.loading import load_model
from lit_prune.models.transformed import LIKE_LLAMA
from lit_prune.pruning.rotate import principal_bases, rotated

ALIKE = [name for name, (family, _) in CASES.items() if family in LIKE_LLAMA]


def sliced(model: Any, folder: Path, ids: torch.Tensor = IDS, **settings: Any) -> Any:
    return methods["slicegpt"](**settings).prune(model, context_of(folder, ids)).model


# Rotation


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 2e-6), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", ALIKE)
def test_rotation_without_slicing_leaves_the_logits_alone(name: str, dtype: torch.dtype, tolerance: float) -> None:
    """Norms and positions are float32 in these families, even in a float64 model."""
    model, ids = model_of(name, dtype), token_ids()
    bases = principal_bases(copy.deepcopy(model), 36, [{"input_ids": ids}], lambda done: None)
    expected = logits(model)
    found = logits(rotated(model, bases))
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    assert any((basis.abs() > 0.1).sum() > 100 for basis in bases)  # far from a permutation


# Slicing, computed again in numpy from the definitions


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rotary(x: Any, base: float) -> Any:
    """Rotate pairs (i, i + half) of the channels of each head: [batch, heads, seq, width]."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[-2])[:, None] * base ** (-np.arange(half) / half)
    one, two = x[..., :half], x[..., half:]
    return np.concatenate(
        (one * np.cos(angles) - two * np.sin(angles), two * np.cos(angles) + one * np.sin(angles)), -1
    )


def projected(x: Any, calibration: Any, width: int) -> tuple[Any, Any]:
    """Both streams after projection on the principal components of the second."""
    flat = calibration.reshape(-1, calibration.shape[-1])
    vectors = np.linalg.eigh(flat.T @ flat)[1][:, -width:]
    return x @ vectors @ vectors.T, calibration @ vectors @ vectors.T


def reference(model: Any, ids: torch.Tensor, calibration: torch.Tensor, width: int) -> Any:
    """The logits of a Llama whose stream is projected before each attention, before each MLP and before the head."""
    w = {name: weight.double().numpy() for name, weight in model.state_dict().items()}
    config = model.config

    def norm(x: Any, name: str) -> Any:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * w[name]

    def attention(x: Any, path: str) -> Any:
        x = norm(x, f"{path}.input_layernorm.weight")
        q, k, v = (
            (x @ w[f"{path}.self_attn.{part}_proj.weight"].T)
            .reshape(*x.shape[:2], -1, config.head_dim)
            .transpose(0, 2, 1, 3)
            for part in "qkv"
        )
        shared = q.shape[1] // k.shape[1]
        q, k, v = rotary(q, 10000.0), rotary(k, 10000.0).repeat(shared, 1), v.repeat(shared, 1)
        scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(config.head_dim)
        scores = np.where(np.tri(x.shape[1], dtype=bool), scores, -np.inf)
        joined = (softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)
        return joined @ w[f"{path}.self_attn.o_proj.weight"].T

    def mlp(x: Any, path: str) -> Any:
        x = norm(x, f"{path}.post_attention_layernorm.weight")
        gate = x @ w[f"{path}.mlp.gate_proj.weight"].T
        return (gate / (1 + np.exp(-gate)) * (x @ w[f"{path}.mlp.up_proj.weight"].T)) @ w[
            f"{path}.mlp.down_proj.weight"
        ].T

    x, c = (w["model.embed_tokens.weight"][one.numpy()] for one in (ids, calibration))
    for i in range(config.num_hidden_layers):
        path = f"model.layers.{i}"
        x, c = projected(x, c, width)
        x, c = x + attention(x, path), c + attention(c, path)
        x, c = projected(x, c, width)
        x, c = x + mlp(x, path), c + mlp(c, path)
    x, c = projected(x, c, width)
    return norm(x, "model.norm.weight") @ w["lm_head.weight"].T


def test_a_sliced_model_projects_the_stream_layer_by_layer(tmp_path: Path) -> None:
    model = small_llama(num_hidden_layers=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
    ids = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(5))
    student = sliced(model, tmp_path)
    found, expected = logits(student, ids).numpy(), reference(model, ids, IDS, 24)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert np.abs(logits(model, ids).numpy() - expected).max() > 0.1 * np.abs(expected).max()  # slicing matters
    with torch.no_grad():
        whole = reference(model, ids, IDS, 32)
    assert np.abs(logits(model, ids).numpy() - whole).max() <= 1e-4 * np.abs(whole).max()


def test_it_has_the_parameters_that_its_shapes_say(tmp_path: Path) -> None:
    found = methods["slicegpt"](slice_fraction=0.3).prune(small_llama(), context_of(tmp_path))
    assert found.requested == {"slice_fraction": 0.3}
    assert found.achieved == {"hidden_size": 16}  # 22.4 channels, rounded down to a multiple of 8
    assert found.plan is None
    layer = 16 * (32 + 16 + 16 + 32) + 3 * 16 * 40 + 2 * 16 + 2 * 16 * 16
    assert found.model.num_parameters() == 2 * 64 * 16 + LAYERS * layer + 16
    tied = sliced(small_llama(tie_word_embeddings=True), tmp_path)
    assert tied.lm_head.weight is not tied.model.embed_tokens.weight
    assert generates_with_cache_as_without(sliced(model_of("qwen3"), tmp_path, token_ids()))


def test_what_has_no_such_basis_is_refused_before_compute(tmp_path: Path) -> None:
    config = small_llama().config
    with refuses("prune.slice_fraction", "0.75", "0.8"):
        methods["slicegpt"](slice_fraction=0.8).check(config)
    with refuses("prune.plan_path", "plan.json"):
        methods["slicegpt"](plan_path="plan.json").check(config)
    for name in ("gpt2", "gemma2", "olmo2"):
        with refuses("prune.method", "llama", CASES[name][0]):
            methods["slicegpt"]().check(config_of(name))
    with refuses("prune.method", "lit_prune_llama"):
        methods["slicegpt"]().check(methods["slicegpt"]().config_of(config))


# Through the pipeline


def test_it_is_distilled_saved_and_loaded_without_anybody_knowing_the_method(tiny_cell: Any, tmp_path: Path) -> None:
    run = {"store": tmp_path / "store", "execution": Execution(accelerator="cpu"), "seq_len": 32}
    few = {"calibration.num_sequences": 4, "evaluation.num_sequences": 4, "corpus.holdout_fraction": 0.2}
    speed = {f"evaluation.throughput.{name}": 2 for name in ("batch_size", "prompt_len", "max_new_tokens")}
    corpus, teacher = str(tmp_path / "text.txt"), tmp_path / "tiny"
    pruned = lp.prune(
        teacher, method="slicegpt", out=tmp_path / "small", corpus=corpus, **run,
        settings=few | speed | {"evaluation.throughput.num_repeats": 1},
    )  # fmt: skip
    student = load_model(str(tmp_path / "small"))
    assert student.config.hidden_size == 24
    assert pruned.student["parameters"] == student.num_parameters() < pruned.teacher["parameters"]
    assert "import lit_prune.models.transformed" in (tmp_path / "small" / "README.md").read_text()
    taught = lp.distill(
        tmp_path / "small", teacher=teacher, out=tmp_path / "taught", corpus=corpus, max_steps=2, batch_size=2, **run,
        settings=few | {"distill.alpha": 1.0, "distill.match_layer_output": ("last:last",), "distill.lora.rank": 2},
    )  # fmt: skip
    trained = load_model(str(tmp_path / "taught"))
    differing = [
        name for name, weight in trained.state_dict().items() if not torch.equal(weight, student.state_dict()[name])
    ]
    assert "model.layers.0.attention_shortcut.weight" in differing
    assert taught.student["parameters"] == student.num_parameters()
    assert generates_with_cache_as_without(trained)


def test_the_section_is_set_by_name() -> None:
    cell = override(lp.config.Cell(), {"prune.method": "slicegpt", "prune.slice_fraction": 0.5})
    assert cell.prune == methods["slicegpt"](slice_fraction=0.5)
    with refuses("prune.slice_fraction", "1.5"):
        override(cell, {"prune.slice_fraction": 1.5})
