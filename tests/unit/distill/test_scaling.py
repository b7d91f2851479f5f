"""The numbers of docs/scaling.md are those of the package."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from config_teachers import FROM_HUB
from paths import ROOT
from transformers import LlamaConfig

from lit_prune.config import Distill, Evaluation, Lora
from lit_prune.config.gpus import GPUS
from lit_prune.distill.flops import recipe_flops
from lit_prune.distill.memory import PERSISTENT, peak, training_memory
from lit_prune.models.flops import forward_flops
from lit_prune.models.published import LARGE, TEACHER, published_configs
from lit_prune.models.shape import num_parameters
from lit_prune.pipeline.plan import USABLE

RECIPE = Distill(seq_len=4096, batch_size=1152, max_steps=400, precision="bf16-mixed")
EVALUATION = Evaluation(num_sequences=1024, seq_len=4096, precision="bf16-mixed")
TOKENS = 400 * 1152 * 4096
LORA = dataclasses.replace(RECIPE, lora=Lora())


@pytest.fixture(scope="module")
def lines() -> dict[str, list[str]]:
    """First cell -> the other cells of each line of the tables."""
    text = (ROOT / "docs/scaling.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {first: others for first, *others in rows}


@pytest.fixture(scope="module")
def cases() -> list[tuple[Any, Any]]:
    """Teacher and student of each case."""
    sizes, published = FROM_HUB["meta-llama/Llama-3.1-8B"], published_configs()
    llamas = [LlamaConfig(**sizes | change) for change in ({}, {"hidden_size": 3072, "intermediate_size": 9216})]
    return [(llamas[0], llamas[1]), (published[TEACHER], published[LARGE])]


def memory(recipe: Distill, teacher: Any, student: Any, checkpointing: bool = True, **how: Any) -> dict[str, float]:
    return training_memory(recipe, student, teacher, EVALUATION, micro_batch=1, checkpointing=checkpointing, **how)


def test_parameters_and_memory(lines, cases):
    sizes = [f"{num_parameters(t) / 1e9:.1f} B → {num_parameters(s) / 1e9:.1f} B" for t, s in cases]
    assert lines["parameters"] == sizes
    parts = [memory(RECIPE, *case) for case in cases]
    for part in parts[0]:
        assert lines[part] == [f"{found[part] / 1e9:.1f}" for found in parts]
    assert lines["peak"] == [f"{peak(found) / 1e9:.1f}" for found in parts]
    kept = [memory(RECIPE, *case, checkpointing=False) for case in cases]
    assert lines["peak without `--activation-checkpointing`"] == [f"{peak(found) / 1e9:.1f}" for found in kept]
    assert lines["peak with `--set distill.lora.rank=8`"] == [
        f"{peak(memory(LORA, *case)) / 1e9:.1f}" for case in cases
    ]
    persistent = [sum(found[name] for name in PERSISTENT) for found in parts]
    assert lines["persistent parts on each of 8 devices"] == [f"{size / 8e9:.1f}" for size in persistent]
    for devices in (4, 8):
        shares = [memory(RECIPE, *case, devices=devices, sharded=True) for case in cases]
        assert lines[f"peak with `--devices {devices} --strategy fsdp`"] == [
            f"{peak(share) / 1e9:.1f}" for share in shares
        ]
        for part in ("gathered", "evaluation"):
            assert lines[part] == [f"{share[part] / 1e9:.1f}" for share in shares]
    assert [sum(share[name] for name in PERSISTENT) for share in shares] == pytest.approx([s / 8 for s in persistent])


def test_flops_and_hours(lines, cases):
    flops = [TOKENS * (recipe_flops(RECIPE, s, t) + forward_flops(s, 4096)) for t, s in cases]
    assert lines["FLOPs"] == [f"{count:.2e}" for count in flops]
    for name, devices in (("one H200", 1), ("eight H200", 8), ("sixteen DGX H100", 128)):
        hours = [count / (devices * GPUS["h200"].bf16 * 0.4) / 3600 for count in flops]
        assert lines[f"hours on {name}"] == [f"{found:.1f}" for found in hours]


def test_what_fits(cases):
    """The sentences under the table."""
    room = {name: USABLE * GPUS[name].num_bytes for name in ("h200", "h100")}
    llama, nemotron = ([peak(memory(recipe, *case)) for recipe in (RECIPE, LORA)] for case in cases)
    assert room["h100"] < llama[0] <= room["h200"]
    assert llama[1] <= room["h100"]
    assert peak(memory(RECIPE, *cases[0], checkpointing=False)) > room["h200"]
    assert nemotron[1] <= room["h200"] < nemotron[0]
    sharded = [[peak(memory(RECIPE, *case, devices=n, sharded=True)) for n in (2, 4, 8)] for case in cases]
    assert sharded[0][2] <= room["h100"] < sharded[1][2]
    assert sharded[1][1] <= room["h200"] < sharded[1][0]
