"""Distances between the states around spans of layers, and the loss without them."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from families import CASES, model_of
from measured import CPU, Sequences, evidence_of, quietly
from refusals import refuses
from torch import nn

from lit_prune.config import Prune
from lit_prune.importance import layer_ablation as module
from lit_prune.importance.criteria import criteria
from lit_prune.importance.layer_ablation import Removals, next_token_losses, removal_losses
from lit_prune.models.model_family import anatomy_of, layers_of
from lit_prune.models.residual_stream import ResidualStream


@pytest.fixture
def ids():
    return torch.randint(0, 200, (6, 24), generator=torch.Generator().manual_seed(3))


def states_of(model, ids):
    """What enters each block of a Llama, and what leaves the last one."""
    states = []
    hooks = [b.register_forward_pre_hook(lambda m, x: states.append(x[0])) for b in model.model.layers]
    hooks.append(model.model.norm.register_forward_pre_hook(lambda m, x: states.append(x[0])))
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return [state.double() for state in states]


# --- distances ---------------------------------------------------------------------------------------------------


def test_distances_of_all_spans_against_a_direct_computation(tiny_llama, ids, tmp_path):
    found = evidence_of(tiny_llama, ids, tmp_path, ["distances"]).statistics["distances"]
    states = states_of(tiny_llama, ids)
    assert found.keys() == {"influence", "angular_all", "angular_last"}
    for first in range(3):
        for length in range(1, 4):
            cell = {name: matrix[first, length - 1].item() for name, matrix in found.items()}
            if first + length > 3:
                assert all(math.isnan(distance) for distance in cell.values())
                continue
            cosine = F.cosine_similarity(states[first], states[first + length], dim=-1)
            angle = torch.rad2deg(cosine.arccos()) / 180
            assert cell["influence"] == pytest.approx(1 - cosine.mean().item(), abs=1e-7)
            assert cell["angular_all"] == pytest.approx(angle.mean().item(), abs=1e-7)
            assert cell["angular_last"] == pytest.approx(angle[:, -1].mean().item(), abs=1e-12)


def test_a_block_that_changes_nothing_is_at_no_distance_and_goes_first(tiny_llama, ids, tmp_path):
    with torch.no_grad():
        for block in tiny_llama.model.layers[1:]:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    evidence = evidence_of(tiny_llama, ids, tmp_path, ["distances", "removals"])
    # In float32 the cosine of a state with itself may be off by its last digit, of which arccos makes 3e-4.
    for name, most in (("influence", 1e-6), ("angular_all", 2e-4), ("angular_last", 1e-7)):
        matrix = evidence.statistics["distances"][name]
        assert [matrix[1, 0], matrix[2, 0], matrix[1, 1]] == pytest.approx([0, 0, 0], abs=most)
        assert matrix[0].tolist() == pytest.approx([matrix[0, 0].item()] * 3, abs=most)
        assert matrix[0, 0] > 0.01
    losses = evidence.statistics["removals"]
    assert losses["loss"][1] == losses["loss"][2] == losses["whole"] != losses["loss"][0]
    for name in ("influence", "angular", "angular_all"):
        scores = criteria[name].score(evidence, Prune())
        assert scores["layer"][0].argmax() == 0
        assert scores["span"][0].argmax() == 0
        assert scores["span"][1].argmin() == 1


def test_a_depth_criterion_reads_its_distance(tiny_llama, ids, tmp_path):
    evidence = evidence_of(tiny_llama, ids, tmp_path, ["distances"])
    for name, kind in (("influence", "influence"), ("angular", "angular_last"), ("angular_all", "angular_all")):
        matrix, scores = evidence.statistics["distances"][kind], criteria[name].score(evidence, Prune())
        assert scores["layer"][0].tolist() == matrix[:, 0].tolist()
        assert [span.tolist() for span in scores["span"]] == [
            matrix[:, 0].tolist(), matrix[:2, 1].tolist(), matrix[:1, 2].tolist(),
        ]  # fmt: skip


# --- the loss without blocks -------------------------------------------------------------------------------------


def without(model, start, length):
    """The model with blocks taken out of it, the naive way."""
    smaller = copy.deepcopy(model)
    path, _, name = anatomy_of(model.config).layers.rpartition(".")
    kept = [b for i, b in enumerate(layers_of(smaller)) if not start <= i < start + length]
    setattr(smaller.get_submodule(path), name, nn.ModuleList(kept))
    if getattr(model.config, "layer_types", None):
        types = enumerate(model.config.layer_types)
        smaller.config.layer_types = [kind for i, kind in types if not start <= i < start + length]
    smaller.config.num_hidden_layers = len(kept)
    return smaller


def summed_loss(model, ids):
    with torch.no_grad():
        return next_token_losses(model(input_ids=ids, use_cache=False).logits, ids).double().sum()


@pytest.mark.parametrize(("case", "length"), [*((case, length) for case in CASES for length in (1, 2)), ("llama", 3)])
def test_the_loss_without_blocks_is_bit_for_bit_that_of_the_model_without_them(case, length):
    model, ids = model_of(case), torch.randint(3, 96, (4, 17), generator=torch.Generator().manual_seed(8))
    found = removal_losses(model, Sequences(ids, 2), length, CPU, quietly)
    expected = []
    for start in range(4 - length):
        smaller = without(model, start, length)
        expected.append((summed_loss(smaller, ids[:2]) + summed_loss(smaller, ids[2:])) / (4 * 16))
    assert found.tolist() == [loss.item() for loss in expected]
    assert len(set(found.tolist())) == 4 - length


def test_a_sliding_window_goes_with_its_block():
    """The models above would show a window lost, or given to the wrong block."""
    model, ids = model_of("gemma3_text"), torch.randint(3, 96, (1, 17), generator=torch.Generator().manual_seed(9))
    assert set(model.config.layer_types) == {"sliding_attention", "full_attention"}
    assert model.config.sliding_window < 17
    wrong = without(model, 0, 1)
    wrong.config.layer_types = model.config.layer_types[:2]
    assert summed_loss(wrong, ids) != summed_loss(without(model, 0, 1), ids)


def test_the_states_before_a_span_are_not_computed_again(tiny_llama, ids):
    evaluated = []
    hooks = [b.self_attn.register_forward_hook(lambda *args, i=i: evaluated.append(i)) for i, b in
             enumerate(tiny_llama.model.layers)]  # fmt: skip
    removal_losses(tiny_llama, Sequences(ids, 6), 1, CPU, quietly)
    for hook in hooks:
        hook.remove()
    assert evaluated == [
        0,
        1,
        2,
        1,
        2,
        2,
    ]  # L + L (L - 1) / 2, where L passes of L - 1 blocks are 6 more than the whole


def test_losses_are_means_over_the_tokens_that_are_labels(tiny_llama, ids, tmp_path):
    evidence = evidence_of(tiny_llama, ids, tmp_path, ["removals"], batch=5)
    found = evidence.statistics["removals"]
    with torch.no_grad():
        whole = F.cross_entropy(tiny_llama(ids).logits[:, :-1].double().flatten(0, 1), ids[:, 1:].flatten())
    assert found["whole"].item() == pytest.approx(whole.item(), abs=1e-6)
    assert found["loss"].shape == (3,)
    reader = Removals(tiny_llama, 1, quietly)
    labels = ids.clone()
    labels[:, 10:] = -100
    labels[3:] = -100
    with torch.no_grad():
        reader.read({"input_ids": ids, "labels": labels})
        part = tiny_llama(ids[:3]).logits[:, :9].double().flatten(0, 1)
    expected = F.cross_entropy(part, ids[:3, 1:10].flatten())
    assert reader.found()["removals"]["whole"].item() == pytest.approx(expected.item(), abs=1e-6)


def test_logits_are_made_for_as_many_sequences_as_there_is_room_for(tiny_llama, ids, monkeypatch):
    expected = removal_losses(tiny_llama, Sequences(ids, 6), 1, CPU, quietly)
    shapes = []
    hook = tiny_llama.lm_head.register_forward_hook(lambda m, x, y: shapes.append(y.shape))
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", 2 * 24 * 256 + 100)
    found = removal_losses(tiny_llama, Sequences(ids, 6), 1, CPU, quietly)
    hook.remove()
    assert set(shapes) == {(2, 24, 256)}
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_perplexity_measures_a_span_when_it_is_read_and_once(tiny_llama, ids, tmp_path):
    evidence = evidence_of(tiny_llama, ids, tmp_path, ["removals"])
    measured = []

    def losses(length):
        measured.append(length)
        return torch.arange(4.0 - length)

    object.__setattr__(evidence, "removal_losses", losses)
    scores = criteria["perplexity"].score(evidence, Prune())
    assert scores["layer"][0].tolist() == evidence.statistics["removals"]["loss"].tolist()
    assert measured == []
    assert scores["span"][1].tolist() == scores["span"][1].tolist() == [0, 1]
    assert scores["span"][0].tolist() == scores["layer"][0].tolist()
    assert measured == [2]
    assert [span.tolist() for span in scores["span"]][2] == [0]
    assert (len(scores["span"]), measured) == (3, [2, 3])
    with pytest.raises(IndexError, match=r"4 .* 3"):
        scores["span"][3]


def test_a_loss_that_is_no_number_names_the_span(tiny_llama, ids):
    reader = Removals(tiny_llama, 2, quietly)
    with torch.no_grad():
        reader.read({"input_ids": ids, "labels": ids})
    assert reader.sums.shape == (4,)  # of the whole, without blocks 0 and 1, without 1 and 2, and the tokens
    reader.sums[2] = float("inf")
    with refuses("teacher.model", 2, "layer 1"):
        reader.found()


# --- the residual stream -----------------------------------------------------------------------------------------


class Doubling(nn.Module):
    """A block that gives its state in a tuple, as those of some families do."""

    def forward(self, state, scale):
        return state * scale, "attention weights"


class Tupled(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(Doubling() for _ in range(3))

    def forward(self, state):
        for i, block in enumerate(self.model.layers):
            state = block(state, 10.0**i)[0]
        return state


def test_blocks_may_give_tuples(tiny_llama):
    model = Tupled(tiny_llama.config)
    stream = ResidualStream(model)
    with stream.reading() as states:
        assert model(torch.ones(1)) == 1000
    assert [state.item() for state in states] == [1, 1, 10, 1000]
    for start, expected in enumerate([7000, 7000, 700, 7]):
        with stream.resuming(torch.tensor(7.0), start) if start else stream.reading():
            found = model(torch.tensor(7.0))
        assert found == expected


def test_a_model_is_left_as_it_was_even_by_a_failure(tiny_llama, ids):
    with torch.no_grad():
        before = tiny_llama(ids).logits
    stream = ResidualStream(tiny_llama)
    with pytest.raises(KeyError), stream.reading() as states:
        raise KeyError
    with torch.no_grad(), stream.reading() as states:
        tiny_llama(ids)
    with pytest.raises(KeyError), stream.resuming(states[1], 2):
        raise KeyError
    removal_losses(tiny_llama, Sequences(ids, 6), 1, CPU, quietly)
    assert not any("forward" in vars(block) or block._forward_pre_hooks for block in tiny_llama.model.layers)
    with torch.no_grad():
        assert torch.equal(tiny_llama(ids).logits, before)
    assert len(states) == 4


# --- a real model ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_blocks_of_a_real_model_differ(shared):
    """Stories of their own length with the tokenizer's BOS, as many tokens of each as the model was trained on."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared / "models/stories260K-hf"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    stories = json.loads((shared / "data/tinystories/tinystories_1000.json").read_text())[:100]
    ids = [torch.tensor(tokenizer(story).input_ids[:512]) for story in stories]
    reader = Removals(model, 1, quietly)
    with torch.inference_mode():
        for row in ids:
            reader.read({"input_ids": row[None], "labels": row[None]})
    found = reader.found()["removals"]
    assert found["whole"].item() == pytest.approx(1.66, abs=0.01)
    assert found["loss"].tolist() == pytest.approx([5.03, 3.01, 2.46, 2.57, 2.57], abs=0.01)
