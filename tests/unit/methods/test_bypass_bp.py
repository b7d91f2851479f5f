"""Policy gradient over masks: its gradient and optimum on a toy, the budget, forward passes only, and resumption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pruning_context import IDS, LAYERS, context_of, small_llama, stop_at
from refusals import refuses

import lit_prune as lp
from lit_prune.config import Execution, Prune
from lit_prune.importance.criteria import criteria
from lit_prune.methods import methods
from lit_prune.pruning.learned.policy_gradient import PolicyGradient
from lit_prune.pruning.units import UnitSpace

WORTH = torch.tensor([3.0, -1.0, 2.0, 0.5])
"""The toy loss falls by this for every unit that is kept."""


def toy(mask: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
    return -(WORTH * mask).sum()


def two_at_most(s: torch.Tensor) -> torch.Tensor:
    """Shift and clamp to an expected number of two units."""
    shifts = torch.linspace(0, 2, 401)
    return next((s - v).clamp(0, 1) for v in shifts if (s - v).clamp(0, 1).sum() <= 2)


def learner(start: torch.Tensor, **settings: Any) -> PolicyGradient:
    given = {"variant": "paper", "num_samples": 2, "window": 5, "lr": 0.02, "max_steps": 400} | settings
    return PolicyGradient(None, start, toy, two_at_most, **given)


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_the_gradient_is_that_of_the_expected_loss(variant: str) -> None:
    """The expected toy loss is -WORTH @ s, so its gradient is -WORTH; the official one is scaled by the deviation."""
    s = torch.tensor([0.5, 0.2, 0.7, 0.9])
    module = learner(s, variant=variant, num_samples=10_000)
    torch.manual_seed(0)
    (gradient,) = torch.autograd.grad(module.training_step({}, 0), module.probabilities)
    expected = -WORTH * (s * (1 - s)).sqrt() if variant == "official" else -WORTH
    torch.testing.assert_close(gradient, expected, atol=0.16, rtol=0)


def test_the_baseline_averages_the_newest_losses() -> None:
    module = learner(torch.tensor([1.0, 1.0, 0.0, 0.0]), num_samples=1)  # the loss is always -2
    module.baseline.fill_(8.0)
    module.training_step({}, 0)
    assert module.baseline.item() == pytest.approx(8 * 4 / 5 - 2 / 5)


def test_descent_finds_the_units_that_are_worth_keeping() -> None:
    module = learner(torch.full((4,), 0.5))
    descent, schedule = (module.configure_optimizers()[name] for name in ("optimizer", "lr_scheduler"))
    torch.manual_seed(0)
    for i in range(400):
        descent.zero_grad()
        module.training_step({}, i).backward()
        descent.step()
        schedule["scheduler"].step()
        with torch.no_grad():
            module.probabilities.copy_(two_at_most(module.probabilities))
    torch.testing.assert_close(module.probabilities.detach(), torch.tensor([1.0, 0.0, 1.0, 0.0]), atol=0.1, rtol=0)


def test_no_gradient_passes_the_model(tmp_path: Path) -> None:
    model, forward = small_llama(), []
    model.register_forward_pre_hook(lambda *_: forward.append(torch.is_grad_enabled()))
    model.model.register_forward_pre_hook(lambda *_: forward.append(torch.is_grad_enabled()))
    backward: list[str] = []
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda gradient, name=name: backward.append(name))
    methods["bypass_bp"](max_steps=3, batch_size=2).prune(model, context_of(tmp_path))
    assert len(forward) >= 6
    assert not any(forward)
    assert not backward
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_start_keeps_the_order_of_wanda_scores_within_the_budget(tmp_path: Path) -> None:
    model, chosen = small_llama(), methods["bypass_bp"](num_parameters=0.7)
    space = UnitSpace.of(model.config, 0.7)
    scores = criteria["wanda_sp"].score(context_of(tmp_path).collect(model, chosen.statistics(model.config)), Prune())
    start = space.start(scores)
    assert 0 <= start.min() < start.max() <= 1
    assert float(start @ space.prices) <= space.budget - space.fixed + 1e-3
    neurons = space.split(start)[1]
    in_order = neurons[0][scores["neuron"][0].argsort()]
    assert (in_order.diff() >= 0).all()
    assert len(in_order.unique()) > 30


class Killed(BaseException):
    """The end of the process."""


def test_killed_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    chosen, model = methods["bypass_bp"](max_steps=4, batch_size=2), small_llama()
    whole = chosen.prune(model, context_of(tmp_path / "whole"))
    stop_at(3, chosen, model, tmp_path / "cut")
    resumed_at: list[int] = []
    resumed = chosen.prune(model, context_of(tmp_path / "cut", on_step=resumed_at.append))
    assert resumed_at == [3, 4]
    assert resumed.plan == whole.plan
    over = [torch.load(tmp_path / name / "training/1/last.ckpt")["state_dict"] for name in ("whole", "cut")]
    assert over[0].keys() == over[1].keys() == {"probabilities", "baseline"}
    assert all(torch.equal(value, over[1][name]) for name, value in over[0].items())
    resumed_at.clear()
    again = chosen.prune(model, context_of(tmp_path / "cut", on_step=resumed_at.append))
    assert (again.plan, resumed_at) == (whole.plan, [])
    other = chosen.prune(model, context_of(tmp_path / "other", seed=1))
    assert not torch.equal(
        over[0]["probabilities"], torch.load(tmp_path / "other/training/1/last.ckpt")["state_dict"]["probabilities"]
    )
    assert other.plan is not None
    assert len(other.plan.layers) == LAYERS


def test_a_plan_file_replaces_the_training(tmp_path: Path) -> None:
    chosen, model = methods["bypass_bp"](max_steps=2, batch_size=2), small_llama()
    found = chosen.prune(model, context_of(tmp_path / "first"))
    found.plan.save(tmp_path / "plan.json")
    given = methods["bypass_bp"](plan_path=str(tmp_path / "plan.json"))
    again = given.prune(model, context_of(tmp_path / "second"))
    assert again.plan == found.plan
    assert torch.equal(again.model(IDS).logits, found.model(IDS).logits)
    assert not (tmp_path / "second/training").exists()


@pytest.mark.parametrize("size", [0.01, 1000, 1.5, "auto", None])
def test_a_budget_that_cannot_be_met_is_refused(size: Any) -> None:
    with refuses("prune.num_parameters", str(size) if isinstance(size, str | None) else ""):
        methods["bypass_bp"](num_parameters=size).check(small_llama().config)


def test_the_pipeline_resumes_a_killed_training(tiny_cell: Any, tmp_path: Path, monkeypatch: Any) -> None:
    def pruned(name: str) -> Any:
        return lp.prune(
            tmp_path / "tiny", method="bypass_bp", out=tmp_path / name / "out", corpus=str(tmp_path / "text.txt"),
            seq_len=32, store=tmp_path / name / "store",
            execution=Execution(accelerator="cpu", checkpoint_seconds=0.0, log_every=1),
            settings={
                "prune.max_steps": 4, "prune.batch_size": 2, "prune.num_parameters": 0.9,
                "calibration.num_sequences": 4, "evaluation.num_sequences": 4, "corpus.holdout_fraction": 0.2,
            },
        )  # fmt: skip

    found = pruned("whole")
    assert found.student["parameters"] <= 0.9 * found.teacher["parameters"]
    learn, begun = PolicyGradient.training_step, []

    def killed(self: Any, batch: Any, batch_idx: int) -> Any:
        begun.append(batch_idx)
        if len(begun) == 3:
            raise Killed
        return learn(self, batch, batch_idx)

    monkeypatch.setattr(PolicyGradient, "training_step", killed)
    with pytest.raises(Killed):
        pruned("cut")
    (checkpoint,) = (tmp_path / "cut/store/student").rglob("last.ckpt")
    again = pruned("cut")
    assert begun == [0, 1, 2, 2, 3]
    assert again.student["lm_loss"] == found.student["lm_loss"]
    folders = [path.parent for name in ("whole", "cut") for path in (tmp_path / name).rglob("metrics.csv")]
    logs = [pd.read_csv(folder / "metrics.csv").drop(columns="tokens_per_second") for folder in folders]
    pd.testing.assert_frame_equal(*logs, check_exact=True)
    assert not checkpoint.exists()
