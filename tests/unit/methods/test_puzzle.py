"""Puzzle: layers without effect are dropped, budgets are met, and impossible ones are refused before compute."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import config_of
from pruning_context import IDS, LAYERS, Stop, context_of, small_llama
from refusals import refuses
from transformers import AutoModelForCausalLM

from lit_prune.config import Calibration, Timing
from lit_prune.methods import methods
from lit_prune.pruning.method_work import Work
from lit_prune.pruning.unit_costs import UnitCosts
from lit_prune.store.journal import Journal

TIMING = Timing(seq_len=16, num_repeats=3)
NEURON, GROUP = 3 * 32, 6 * 8 * 32
"""Parameters of a unit: rows and columns of width 32; a group has two query heads of 8 channels, keys and values."""


@pytest.fixture(scope="module")
def model() -> Any:
    return small_llama()


def test_parts_without_effect_are_pruned(tmp_path: Path) -> None:
    model = small_llama()
    with torch.no_grad():
        for idle in (2, 5):
            model.model.layers[idle].self_attn.o_proj.weight.zero_()
            model.model.layers[idle].mlp.down_proj.weight.zero_()
        model.model.layers[6].self_attn.o_proj.weight[:, :16] = 0  # the first group
    size = model.num_parameters() - 2 * (NEURON * 40 + 2 * GROUP + 2 * 32) - GROUP
    found = methods["puzzle"](num_parameters=size).prune(model, context_of(tmp_path))
    assert found.model.num_parameters() == size
    assert [layer.index for layer in found.plan.layers] == [0, 1, 3, 4, 6, 7]
    assert [layer.heads for layer in found.plan.layers if layer.index == 6] == [(2, 3)]
    torch.testing.assert_close(found.model(IDS).logits, model(IDS).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_parameters": 0.6, "no_op_layers": False, "no_op_sublayers": False},
        {"num_parameters": 0.6, "score": "loss", "width_criterion": "magnitude"},
        {"num_parameters": 0.2},
        {"num_parameters": None, "memory": 0.6, "cache_tokens": 500},
    ],
)
def test_budgets_are_met_and_the_student_generates(settings: dict[str, Any], model: Any, tmp_path: Path) -> None:
    method = methods["puzzle"](**settings)
    method.check(model.config)
    found = method.prune(model, context_of(tmp_path))
    achieved, total = found.achieved["num_parameters"], model.num_parameters()
    unit = NEURON if settings.get("num_parameters") == 0.6 and not settings.get("no_op_layers", True) else 40 * NEURON
    if "memory" in settings:
        groups = sum(len(layer.heads) // 2 for layer in found.plan.layers)
        achieved = 2 * (achieved + 2 * 8 * 500 * groups)
        assert achieved == found.achieved["memory"]
        total, unit = 2 * (total + 2 * 8 * 500 * 2 * LAYERS), 2 * (40 * NEURON + 2 * GROUP + 2 * 2 * 8 * 500)
    limit = round((settings.get("memory") or settings["num_parameters"]) * total)
    assert limit - unit < achieved <= limit
    found.model.save_pretrained(tmp_path / "small")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    cached, plain = (
        loaded.generate(IDS[:, :4], max_new_tokens=6, do_sample=False, use_cache=cache, eos_token_id=None)
        for cache in (True, False)
    )
    assert torch.equal(cached, plain)


def test_the_attention_of_layer_0_goes_if_it_has_no_effect(tmp_path: Path) -> None:
    model = small_llama()
    with torch.no_grad():
        for idle in (0, 3):
            model.model.layers[idle].self_attn.o_proj.weight.zero_()
        model.model.layers[5].mlp.down_proj.weight.zero_()
    size = model.num_parameters() - 2 * (2 * GROUP + 32) - (40 * NEURON + 32)
    found = methods["puzzle"](num_parameters=size).prune(model, context_of(tmp_path))
    assert found.model.num_parameters() == size
    assert {layer.index: layer.skipped for layer in found.plan.layers if layer.skipped} == {
        0: ("attention",), 3: ("attention",), 5: ("mlp",),
    }  # fmt: skip
    torch.testing.assert_close(found.model(IDS).logits, model(IDS).logits, rtol=0, atol=1e-4)
    cached, plain = (
        found.model.generate(IDS[:, :4], max_new_tokens=6, do_sample=False, use_cache=cache, eos_token_id=None)
        for cache in (True, False)
    )
    assert torch.equal(cached, plain)


def test_a_share_of_the_time_is_kept_and_a_killed_run_is_resumed(model: Any, tmp_path: Path) -> None:
    """The resumed run measures no variant again, neither its time nor its effect."""
    method = methods["puzzle"](num_parameters=None, latency=0.6, kv_groups=(0.5,), mlp_widths=(0.5,), timing=TIMING)
    method.check(model.config)
    lines, total = list[str](), 2 + 2 + 2 + LAYERS * 5 + 1  # whole, outside, groups, neurons; effects; the student

    def run(stop: float) -> tuple[Any, int]:
        journal, calls = Journal(tmp_path / "measured.json", 0), itertools.count()
        new: list[float] = []

        def measured(measure: Callable[[], float]) -> float:
            if next(calls) == stop:
                raise Stop
            return journal(lambda: new.append(measure()) or new[-1])  # type: ignore[func-returns-value]

        ctx = dataclasses.replace(context_of(tmp_path), measured=measured, say=lines.append)
        with journal:
            return method.prune(model, ctx), len(new)

    for stop in (4, 20):
        with pytest.raises(Stop):
            run(stop)
    found, measured = run(float("inf"))
    assert measured == total - 20
    again, measured = run(float("inf"))
    assert measured == 0
    assert again.plan == found.plan
    assert again.achieved == found.achieved
    assert found.requested == {"latency": 0.6}
    timing, achieved = found.achieved["timing"], found.achieved["latency"]
    assert timing["predicted_student"] <= 0.6 * timing["predicted_whole"] + 1e-4
    assert timing["student"] == pytest.approx(achieved * timing["whole"], abs=1e-3)
    assert timing["conditions"] in lines[-1]
    assert found.model.num_parameters() == UnitCosts.parameters(model.config).of(found.plan)


def test_latency_is_refused_before_compute_where_it_cannot_be_kept(model: Any, tmp_path: Path) -> None:
    for other in ({"num_parameters": 0.5}, {"num_parameters": None, "memory": 0.5}):
        with refuses(f"prune.{list(other)[-1]}", "prune.latency"):
            methods["puzzle"](latency=0.5, **other).check(model.config)
    with refuses("prune.latency", "gemma2"):
        methods["puzzle"](latency=0.5, num_parameters=None, no_op_sublayers=False).check(config_of("gemma2"))
    with refuses("prune.timing", "prune.latency"):
        methods["puzzle"](timing=TIMING).check_settings()
    too_long = Timing(seq_len=model.config.max_position_embeddings + 1)
    with refuses("prune.timing.seq_len"):
        methods["puzzle"](latency=0.5, num_parameters=None, timing=too_long).check(model.config)
    with refuses("prune.latency"):  # known once the variants are timed
        methods["puzzle"](latency=1e-9, num_parameters=None, timing=TIMING).prune(model, context_of(tmp_path))


def test_the_time_of_the_measurements_is_estimated(model: Any) -> None:
    work = Work(model.config, Calibration(num_sequences=4, seq_len=16))
    plain, timed = (methods["puzzle"](num_parameters=n, latency=share) for n, share in ((0.6, None), (None, 0.6)))
    passes = 2 * (2 + 6 + 2) * 10 * 128 / 16  # ten passes for each of them and for the whole model beside it
    assert timed.own_flops(work) - plain.own_flops(work) == pytest.approx(work.passes(passes, 1))


def test_families_without_such_layers_are_refused_before_compute() -> None:
    with refuses("prune.no_op_sublayers", "gemma2"):
        methods["puzzle"]().check(config_of("gemma2"))
    methods["puzzle"](no_op_sublayers=False).check(config_of("gemma2"))


def test_a_budget_that_cannot_be_reached_is_refused_before_compute(model: Any) -> None:
    for size in (0.02, 1.5, 100, model.num_parameters() + 1, None):
        with refuses("prune.num_parameters"):
            methods["puzzle"](num_parameters=size).check(model.config)
    with refuses("prune.num_parameters"):  # without no-ops, every layer keeps a tenth of its neurons and a quarter
        methods["puzzle"](num_parameters=0.2, no_op_layers=False, no_op_sublayers=False).check(model.config)
    with refuses("prune.memory"):
        methods["puzzle"](num_parameters=None, memory=0.001).check(model.config)
    with refuses("prune.num_parameters"):
        methods["puzzle"](memory=0.5).check(model.config)
