"""Hard-concrete gates against their definition, the constraint on a whole run, the exact shape, and resumption."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from families import CASES, logits, model_of
from pruning_context import IDS, Stop, context_of, small_llama, written
from refusals import refuses
from silenced import tolerance

from lit_prune.config import Cell, Execution
from lit_prune.config.overrides import override
from lit_prune.distill.train import fit
from lit_prune.methods import methods
from lit_prune.models.model_family import anatomy_of
from lit_prune.models.shape import shape_of
from lit_prune.pipeline.validate import check_names
from lit_prune.pruning import surgery
from lit_prune.pruning.context import PruneContext
from lit_prune.pruning.gating import gated
from lit_prune.pruning.learned.hard_concrete import Gates, ShapeLearner, layer_gates
from lit_prune.pruning.plan import LayerPlan, PrunePlan
from lit_prune.pruning.prune import first_units


def gates_at(values: list[float], target: int) -> Gates:
    gates = Gates((len(values),), target, torch.Generator())
    gates.log_alpha.data = torch.tensor(values)
    return gates


def test_the_expected_share_is_the_measured_one() -> None:
    """P(z > 0) in closed form against a sample of a million."""
    values = [-3.0, -1.0, 0.0, 2.0]
    torch.manual_seed(0)
    sampled = gates_at([v for v in values for _ in range(250_000)], 1).sample()
    open_shares = (sampled > 0).double().view(4, -1).mean(1)
    assert ((sampled == 1).any(), (sampled == 0).any()) == (True, True)
    for value, share in zip(values, open_shares.tolist(), strict=True):
        by_hand = 1 / (1 + math.exp(-(value - 2 / 3 * math.log(0.1 / 1.1))))
        assert share == pytest.approx(by_hand, abs=2e-3)
        assert gates_at([value], 1).expected().item() == pytest.approx(by_hand, rel=1e-6)


def test_the_penalty_by_hand() -> None:
    gates = gates_at([0.5, -2.0, 1.0, 4.0], target=1)
    gates.linear.data.fill_(0.3)
    gates.quadratic.data.fill_(2.0)
    shares = [1 / (1 + math.exp(-(a - 2 / 3 * math.log(0.1 / 1.1)))) for a in (0.5, -2.0, 1.0, 4.0)]
    gap = 1 - sum(shares) / 4 - 0.5 * 0.75
    assert gates.penalty(0.5).item() == pytest.approx(0.3 * gap + 2 * gap**2, rel=1e-5)
    assert gates.chosen().tolist() == [3]


def test_training_reaches_the_target_and_chooses_the_exact_shape(tmp_path: Path) -> None:
    model = small_llama()
    module = ShapeLearner(
        copy.deepcopy(model), first_units(model.config, TARGET).kept, lr=1e-3, gate_lr=1.0, warmup_steps=10,
        max_steps=100, seed=0,
    )  # fmt: skip
    context_of(tmp_path, checkpoint_seconds=1e9).fit(module, "", max_steps=100, batch_size=2)
    expected = {axis: gates.expected() for axis, gates in module.gates.items()}
    assert expected.keys() == {"layer", "hidden", "group", "neuron"}
    for axis, share in {"layer": 6 / 8, "hidden": 24 / 32, "group": 1 / 2, "neuron": 20 / 40}.items():
        torch.testing.assert_close(expected[axis].mean(), torch.tensor(share), atol=0.06, rtol=0)
    plan = module.plan()
    assert plan.uniform
    assert plan.kept == TARGET
    best = module.gates["neuron"].log_alpha[plan.layers[0].index].argsort()[-20:]
    assert set(plan.layers[0].neurons) == set(best.tolist())


TARGET = shape_of(small_llama(num_hidden_layers=6, hidden_size=24, intermediate_size=20, num_attention_heads=2,
                              num_key_value_heads=1).config)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_closed_gates_act_as_pruning_does(case: str) -> None:
    model = model_of(case, torch.float64)
    whole, anatomy = shape_of(model.config), anatomy_of(model.config)
    free = not (anatomy.tied_width or anatomy.whole_heads)
    gates = {axis: torch.ones(whole.num_hidden_layers, units) for axis, units in (
        ("neuron", whole.intermediate_size), ("group", whole.num_key_value_heads)
    )}  # fmt: skip
    gates |= {"layer": torch.ones(whole.num_hidden_layers), "hidden": torch.ones(whole.hidden_size)}
    gates["neuron"][:, ::3] = 0
    gates["layer"][0] = 0
    if free:
        gates["group"][:, 0] = 0
    if free and anatomy.norm == "rms":
        gates["hidden"][1::4] = 0
    hidden, groups, neurons = (
        tuple(kept.nonzero()[:, 0].tolist()) for kept in (gates["hidden"], gates["group"][0], gates["neuron"][0])
    )
    size = whole.num_attention_heads // whole.num_key_value_heads
    heads = tuple(group * size + i for group in groups for i in range(size))
    layers = tuple(LayerPlan(i, neurons, heads) for i in range(1, whole.num_hidden_layers))
    channels = gates["hidden"] if len(hidden) < whole.hidden_size else None
    with gated(model, layer_gates(gates, whole.num_hidden_layers), channels):
        found = logits(model)
    cut = surgery.apply(model, PrunePlan(whole, hidden, layers))
    torch.testing.assert_close(found, logits(cut), rtol=0, atol=tolerance(case))


def test_the_weights_are_trained_and_the_model_is_left_alone(tmp_path: Path) -> None:
    model = small_llama()
    before = copy.deepcopy(model.state_dict())
    found = methods["sheared_llama"](max_steps=3, batch_size=2).prune(model, context_of(tmp_path))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not found.model.training
    again = surgery.apply(model, found.plan)
    assert not torch.equal(again.lm_head.weight, found.model.lm_head.weight)


def test_gates_at_the_start_are_open_and_their_medians_known() -> None:
    assert torch.equal(Gates((3,), 1, torch.Generator().manual_seed(0)).median(), torch.ones(3))
    by_hand = [min(1.0, max(0.0, 1.2 / (1 + math.exp(-a / (2 / 3))) - 0.1)) for a in (-5.0, -0.5, 0.4)]
    torch.testing.assert_close(gates_at([-5.0, -0.5, 0.4], 1).median(), torch.tensor(by_hand))


def test_domains_are_drawn_by_their_losses_and_a_killed_run_resumes(tmp_path: Path) -> None:
    """The references are those of the unpruned model; with gates that close, each domain exceeds its own."""
    chosen, model = methods["sheared_llama"](max_steps=6, batch_size=2, domain_interval=2), small_llama()
    contexts = {name: with_domains(context_of(tmp_path / name), tmp_path / name) for name in ("whole", "cut")}
    whole = chosen.prune(model, contexts["whole"])
    (rows,) = (pd.read_csv(path) for path in (tmp_path / "whole").rglob("domains.csv"))
    assert rows["step"].tolist() == [2, 4]
    shares, references = [0.5, 0.5], losses_of(model)
    for _, row in rows.iterrows():
        raised = [s * math.exp(max(row[f"loss_{d}"] - references[d], 0)) for s, d in zip(shares, "ab", strict=True)]
        shares = [r / sum(raised) for r in raised]
        assert [row["share_a"], row["share_b"]] == pytest.approx(shares, rel=1e-5)
    stop = contexts["cut"].fit

    def killed(module: Any, what: str, **settings: Any) -> Any:
        return stop(module, what, **settings, until=3)

    with pytest.raises(Stop):
        chosen.prune(model, dataclasses.replace(contexts["cut"], fit=killed))
    resumed = chosen.prune(model, contexts["cut"])
    assert resumed.plan == whole.plan
    assert all(map(torch.equal, resumed.model.state_dict().values(), whole.model.state_dict().values()))


DOMAINS = {"a": IDS[:2], "b": IDS[2:]}


def losses_of(model: Any) -> dict[str, float]:
    return {name: model(ids, labels=ids).loss.item() for name, ids in DOMAINS.items()}


def with_domains(ctx: PruneContext, folder: Path) -> PruneContext:
    """The services of a method on a text of two domains, each with two sequences, the same in every split."""
    written(IDS, folder / "tokens")
    about = json.loads((folder / "tokens" / "tokens.json").read_text())
    (folder / "tokens" / "validation.bin").write_bytes((folder / "tokens" / "train.bin").read_bytes())
    about["num_tokens"]["validation"] = IDS.numel()
    about["domains"] = {split: {name: ids.numel() for name, ids in DOMAINS.items()} for split in about["num_tokens"]}
    (folder / "tokens" / "tokens.json").write_text(json.dumps(about))

    def train(module: Any, what: str, *, until: int = 0, **settings: Any) -> Any:
        def on_progress(step: int, row: dict[str, float]) -> None:
            if step == until:
                raise Stop

        execution = Execution(accelerator="cpu", checkpoint_seconds=0, log_every=1)
        fit(
            module, folder / "tokens", folder / "training", seq_len=IDS.shape[1], seed=0, precision="32-true",
            execution=execution, on_progress=on_progress, **settings,
        )  # fmt: skip
        return module

    return dataclasses.replace(ctx, fit=train)


def test_domains_need_a_text_that_has_them() -> None:
    settings = {"prune.method": "sheared_llama", "prune.domain_interval": 5}
    with refuses("corpus.domain"):
        check_names(override(Cell(), settings))
    check_names(override(Cell(), settings | {"corpus.path": "docstrings", "corpus.domain": "package"}))
    with refuses("prune.domain_interval"):
        methods["sheared_llama"](domain_losses=(1.0,)).check_settings()


def test_a_shape_that_the_family_forbids_is_refused() -> None:
    with refuses("prune.hidden_size"):
        methods["sheared_llama"]().check(model_of("phi").config)
    with refuses("prune.intermediate_size"):
        methods["sheared_llama"](intermediate_size=100).check(small_llama().config)
    methods["sheared_llama"](hidden_size=None).check(model_of("phi").config)
