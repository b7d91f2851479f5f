"""Scores against plain computations, their independence of batching, and the contract of every criterion."""

import pytest
import torch
from torch.utils.data import DataLoader

from lit_prune.config import Student
from lit_prune.data.calibration import CalibrationData
from lit_prune.execution import Execution
from lit_prune.importance.aggregate import STATISTICS, SequenceMoments, aggregate
from lit_prune.importance.calibrate import calibrate, load_moments
from lit_prune.importance.criteria import Evidence, criteria
from lit_prune.pruning.allocate import uniform
from lit_prune.pruning.shape import Shape

CPU = Execution(accelerator="cpu")
SEQUENCE = {
    "mean": lambda x: x.abs().mean(1),
    "l2": lambda x: x.norm(dim=1),
    "var": lambda x: x.var(1, correction=0),
}
BATCH = {"mean": lambda s: s.mean(0), "l2": lambda s: s.norm(dim=0), "var": lambda s: s.var(0, correction=0)}


@pytest.mark.parametrize("seq", STATISTICS)
@pytest.mark.parametrize("batch", STATISTICS)
def test_the_nine_aggregations_are_those_of_the_paper(batch, seq):
    x = torch.randn(12, 33, 5, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 5) + 0.3
    moments = SequenceMoments()
    for part in x.split(5):
        moments.add(part)
    expected = BATCH[batch](SEQUENCE[seq](x.double()))
    torch.testing.assert_close(aggregate(moments.sums, moments.count, batch, seq), expected, rtol=2e-5, atol=0)


def test_aggregations_by_hand():
    moments = SequenceMoments()
    moments.add(torch.tensor([[[3.0], [-1.0]], [[0.0], [4.0]]]))
    # Two sequences of one unit: mean |x| 2 and 2; L2 sqrt(10) and 4; variance 4 and 4.
    found = {(b, s): aggregate(moments.sums, 2, b, s).item() for b in STATISTICS for s in STATISTICS}
    expected = {
        ("mean", "mean"): 2, ("l2", "mean"): 8**0.5, ("var", "mean"): 0,
        ("mean", "l2"): (10**0.5 + 4) / 2, ("l2", "l2"): 26**0.5, ("var", "l2"): ((4 - 10**0.5) / 2) ** 2,
        ("mean", "var"): 4, ("l2", "var"): 32**0.5, ("var", "var"): 0,
    }  # fmt: skip
    assert found == pytest.approx(expected, abs=1e-5)


class Blocks(CalibrationData):
    """Calibration data of given sequences, in batches of a given size."""

    def __init__(self, ids, batch):
        super(CalibrationData, self).__init__()
        self.ids, self.batch = ids, batch

    def predict_dataloader(self):
        return DataLoader([{"input_ids": row} for row in self.ids], batch_size=self.batch)


def evidence_of(model, ids, path, batch=4):
    count = calibrate(model, Blocks(ids, batch), path, CPU, lambda seen: None)
    return Evidence(model, load_moments(path), count, seed=0)


@pytest.fixture
def ids():
    return torch.randint(0, 200, (10, 24), generator=torch.Generator().manual_seed(3))


def test_sites_hold_what_the_model_computes(tiny_llama, ids, tmp_path):
    evidence = evidence_of(tiny_llama, ids, tmp_path / "m.safetensors")
    block = tiny_llama.model.layers[1]
    seen = {}
    hooks = [
        block.mlp.down_proj.register_forward_pre_hook(lambda m, x: seen.update(neuron=x[0])),
        block.self_attn.o_proj.register_forward_pre_hook(lambda m, x: seen.update(head=x[0])),
        block.post_attention_layernorm.register_forward_hook(lambda m, x, y: seen.update(mlp_norm=y)),
    ]
    with torch.no_grad():
        tiny_llama(ids)
    for hook in hooks:
        hook.remove()
    width = tiny_llama.config.head_dim
    seen["head"] = seen["head"].unflatten(-1, (-1, width)).norm(dim=-1)
    assert evidence.count == 10
    for site, x in seen.items():
        expected = SEQUENCE["mean"](x.double()).norm(dim=0)
        found = aggregate(evidence.moments[f"1.{site}"], evidence.count, "l2", "mean")
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


def test_scores_do_not_depend_on_batching(tiny_llama, ids, tmp_path):
    one, all_at_once = (evidence_of(tiny_llama, ids, tmp_path / f"{b}.safetensors", batch=b) for b in (1, 10))
    for site in one.moments:
        torch.testing.assert_close(one.moments[site], all_at_once.moments[site], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", list(criteria))
def test_every_criterion_scores_every_unit(name, tiny_llama, ids, tmp_path):
    evidence = evidence_of(tiny_llama, ids, tmp_path / "m.safetensors")
    config = tiny_llama.config
    first, again = (criteria[name](evidence, Student(criterion=name)) for _ in range(2))
    sizes = {
        "hidden": (1, config.hidden_size),
        "neuron": (3, config.intermediate_size),
        "head": (3, config.num_attention_heads),
    }
    assert {axis: (len(scores), *{len(s) for s in scores}) for axis, scores in first.items()} == sizes
    for axis, scores in first.items():
        for score, same in zip(scores, again[axis], strict=True):
            assert torch.isfinite(score).all()
            assert torch.equal(score, same)
            assert score.unique().numel() > 1


def test_activation_prunes_silent_units_first(tiny_llama, ids, tmp_path):
    config = tiny_llama.config
    with torch.no_grad():
        for block in tiny_llama.model.layers:
            block.mlp.up_proj.weight[[2, 5]] = 0
            block.input_layernorm.weight[7] = block.post_attention_layernorm.weight[7] = 0
        tiny_llama.model.layers[0].self_attn.v_proj.weight[: config.head_dim] = 0
    evidence = evidence_of(tiny_llama, ids, tmp_path / "m.safetensors")
    shape = Shape(config.hidden_size - 1, config.intermediate_size - 2, config.num_attention_heads)
    plan = uniform(criteria["activation"](evidence, Student()), shape, config)
    assert 7 not in plan.hidden
    assert all({2, 5}.isdisjoint(neurons) for neurons in plan.neurons)
    assert criteria["activation"](evidence, Student())["head"][0][:2].max() == 0


def test_permuting_neurons_permutes_their_scores(tiny_llama, ids, tmp_path):
    before = criteria["activation"](evidence_of(tiny_llama, ids, tmp_path / "a.safetensors"), Student())["neuron"][0]
    order = torch.randperm(len(before), generator=torch.Generator().manual_seed(5))
    mlp = tiny_llama.model.layers[0].mlp
    with torch.no_grad():
        for linear in (mlp.gate_proj, mlp.up_proj):
            linear.weight.copy_(linear.weight[order])
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, order])
    after = criteria["activation"](evidence_of(tiny_llama, ids, tmp_path / "b.safetensors"), Student())["neuron"][0]
    torch.testing.assert_close(after, before[order], rtol=1e-6, atol=0)


def test_magnitude_is_the_norm_of_all_the_weights_of_a_unit(tiny_llama):
    scores = criteria["magnitude"](Evidence(tiny_llama, {}, 0, 0), Student())
    mlp = tiny_llama.model.layers[2].mlp
    squares = mlp.gate_proj.weight[4].square().sum() + mlp.up_proj.weight[4].square().sum()
    squares += mlp.down_proj.weight[:, 4].square().sum()
    assert scores["neuron"][2][4].item() == pytest.approx(squares.sqrt().item(), rel=1e-6)
