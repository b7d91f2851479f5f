"""Two real pretrained Llamas: pruning by importance loses less than random pruning, on every axis."""

import json
from dataclasses import replace

import pytest
import torch
from measured import evidence_of

from lit_prune.config import Prune
from lit_prune.models.loading import load_model, load_tokenizer
from lit_prune.pruning import surgery
from lit_prune.pruning.prune import evidence_names, make_plan

WHOLE = {"hidden_size": None, "intermediate_size": None, "num_attention_heads": None}
CUTS = {
    "hidden 75 %": {"hidden_size": 0.75},
    "hidden 50 %": {"hidden_size": 0.5},
    "neurons 75 %": {"intermediate_size": 0.75},
    "neurons 50 %": {"intermediate_size": 0.5},
    # Of eight heads in four groups six stay only where a group goes, and Llama's config wants a width they divide.
    "heads 75 %": {"num_key_value_heads": 0.75, "hidden_size": 0.95},
    "heads 50 %": {"num_attention_heads": 0.5},
    "KV groups 50 %": {"num_key_value_heads": 0.5},
}
BEATEN_ONCE = {("stories260K-hf", "heads 50 %")}
"""Where one draw of the five was better than the importance; see experiments/aggregation_ablation/NOTES.md."""
SEEDS = range(5)


def sequences(tokenizer, texts):
    """The texts one after the other, in sequences of 128."""
    ids = torch.tensor([i for text in texts for i in tokenizer(text)["input_ids"]])
    return ids[: len(ids) // 128 * 128].view(-1, 128)


@pytest.fixture(scope="module", params=["stories260K-hf", "TinyStories-656K"])
def real(request, shared, tmp_path_factory):
    """(name, model, validation sequences, what calibration on other sequences says)."""
    stories = json.loads((shared / "data/tinystories/tinystories_1000.json").read_text())
    texts = [story["text"] if isinstance(story, dict) else story for story in stories]
    location = str(shared / "models" / request.param)
    model, tokenizer = load_model(location), load_tokenizer(location)
    calibration = sequences(tokenizer, texts[100:300])
    evidence = evidence_of(model, calibration, tmp_path_factory.mktemp("evidence"), ["importance"], batch=16)
    return request.param, model, sequences(tokenizer, texts[:50]), evidence


def loss_after(student, seed, real):
    _, model, ids, evidence = real
    plan = make_plan(model, student, lambda model, names: replace(evidence, seed=seed))
    with torch.no_grad():
        return surgery.apply(model, plan)(ids, labels=ids).loss.item()


@pytest.mark.slow
@pytest.mark.parametrize("cut", CUTS)
def test_importance_beats_chance(real, cut):
    sizes = WHOLE | CUTS[cut]
    assert evidence_names(Prune(**sizes), real[1].config) == {"importance"}
    ours = loss_after(Prune(**sizes), 0, real)
    chance = [loss_after(Prune(**sizes, width_criterion="random"), seed, real) for seed in SEEDS]
    assert len(set(chance)) > 1
    assert sum(loss < ours for loss in chance) == ((real[0], cut) in BEATEN_ONCE)
    assert ours < sum(chance) / len(chance)
