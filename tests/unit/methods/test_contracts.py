"""What every registered method must do, seen in one pruning of a small model each, with its default settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fresh_process import generating
from method_matrix import SOURCES, matrix
from observed import Observed, observe, stop_after
from planted import CHANNELS, WITHOUT_EFFECT, idle_groups, idle_neurons, planted_llama
from pruning_context import IDS, context_of, stop_at

from lit_prune.config import Calibration
from lit_prune.config.prune import method_summaries
from lit_prune.methods import methods
from lit_prune.models.shape import loading_module, num_parameters, shape_of
from lit_prune.pruning.masks import check_zero, sparsity_of
from lit_prune.pruning.method_work import Work
from lit_prune.store.journal import Journal

UNSCORED = {
    "reassessing": "drops layers by their place",
    "laco": "tries merges from deep to shallow",
    "edge_popup": "replaces the weights by random ones",
    "imp": "replaces the weights by random ones",
    "supermask": "replaces the weights by random ones",
    "sheared_llama": "begins with equal gates, which three steps hardly change",
    "mlpruning": "begins with equal scores, which three steps hardly change",
    "plrd": "removes no units",
}
"""Methods that need not prune first what contributes nothing, and why."""


@pytest.fixture(scope="module")
def planted() -> Any:
    return planted_llama()


@pytest.fixture(scope="module", params=list(methods))
def seen(request: pytest.FixtureRequest, planted: Any, tmp_path_factory: pytest.TempPathFactory) -> Observed:
    """Each method, with what it did."""
    return observe(request.param, planted, tmp_path_factory.mktemp(request.param))


# What is made


def test_the_student_is_the_predicted_one_and_the_model_is_left_alone(seen: Observed) -> None:
    config, student = seen.model.config, seen.found.model
    seen.method.check(config)
    predicted = seen.method.config_of(config)
    assert student is not seen.given
    assert seen.given.config.to_dict() == config.to_dict()
    assert same_weights(seen.given, seen.model)
    if seen.method.equal_layers:
        assert predicted.to_dict() == student.config.to_dict()
        assert num_parameters(predicted) == student.num_parameters()
    else:  # scores decide how wide each layer is
        assert num_parameters(predicted) == pytest.approx(student.num_parameters(), abs=most_left_over(config))


def test_the_budget_is_met_within_rounding_and_reported(seen: Observed) -> None:
    requested, achieved = seen.found.requested, seen.found.achieved
    if seen.found.plan is not None:
        assert {name for name, size in requested.items() if size is not None} <= achieved.keys()
    if seen.method.sparse:
        assert achieved == sparsity_of(seen.found.model, seen.found.masks)
        assert achieved["sparsity"] == pytest.approx(requested["sparsity"], abs=0.01)
        check_zero(seen.found.model, seen.found.masks, seen.name)
        return
    size, whole = seen.found.model.num_parameters(), seen.model.num_parameters()
    assert size < whole
    if requested.get("num_parameters") is not None:
        limit = round(requested["num_parameters"] * whole)
        assert limit - most_left_over(seen.model.config) < size <= limit
    assert achieved.get("num_parameters", size) == size
    for name, share in requested.items():
        if name != "num_parameters" and isinstance(share, float) and hasattr(seen.model.config, name):
            wanted = share * getattr(seen.model.config, name)
            assert abs(pruned_width(seen, name) - wanted) < 1, name


def pruned_width(seen: Observed, name: str) -> float:
    """The size of the layers in which it was pruned; the mean of all layers, if they share out the budget."""
    config, achieved = seen.found.model.config, seen.found.achieved[name]
    if not isinstance(achieved, list):
        assert achieved == getattr(config, name)
        return float(achieved)
    assert achieved == [getattr(config.per_layer_config[i], name) for i in range(config.num_hidden_layers)]
    if seen.name == "cfsp":
        return sum(achieved) / len(achieved)
    (narrow,) = {size for size in achieved if size < getattr(seen.model.config, name)}
    return float(narrow)


def most_left_over(config: Any) -> int:
    """The parameters of a neuron more in each layer, or of one KV group: less than these are left of a budget."""
    shape = shape_of(config)
    queries = shape.num_attention_heads // shape.num_key_value_heads
    return max(3 * shape.num_hidden_layers, 2 * (queries + 1) * config.head_dim) * shape.hidden_size


def test_what_contributes_nothing_goes_first(seen: Observed) -> None:
    if seen.name in UNSCORED:
        pytest.skip(UNSCORED[seen.name])
    if seen.name == "slicegpt":  # eight channels are idle, and eight directions go
        torch.testing.assert_close(seen.found.model(IDS).logits, seen.model(IDS).logits, rtol=0, atol=1e-3)
        return
    if seen.found.masks is not None:
        assert any((seen.model.get_parameter(name) == 0).any() for name in seen.found.masks)
        assert all(zeros_first(seen.model.get_parameter(name), kept) for name, kept in seen.found.masks.items())
        return
    plan = seen.found.plan
    assert plan is not None
    assert idle_first(CHANNELS, plan.hidden, 32)
    assert idle_first(WITHOUT_EFFECT, [layer.index for layer in plan.layers], len(seen.model.model.layers))
    for layer in plan.layers:
        assert idle_first(idle_neurons(layer.index), layer.neurons, 40)
        assert idle_first(idle_groups(layer.index), plan.groups_of(layer), 2)


def idle_first(idle: Any, kept: Any, count: int) -> bool:
    """Whether units that are not idle were pruned only if no idle one was left."""
    gone = set(range(count)) - set(kept)
    return not (set(idle) & set(kept) and gone - set(idle))


def zeros_first(weight: torch.Tensor, kept: torch.Tensor) -> bool:
    """Whether in every row other weights were pruned only if no zero was left."""
    zero_is_kept, other_is_gone = (kept & (weight == 0)).any(1), (~kept & (weight != 0)).any(1)
    return not (zero_is_kept & other_is_gone).any()


# How it is made


def test_methods_that_need_no_gradients_compute_none(seen: Observed) -> None:
    assert seen.gradients <= bool(seen.backward_passes)
    if not seen.gradients:
        assert not seen.graph
    if not (seen.gradients or seen.trains):
        assert seen.backward_passes == 0


def test_the_flops_are_known_before(seen: Observed) -> None:
    """Within a factor of two, or of half a pass over the calibration sequences."""
    work = Work(seen.model.config, Calibration(num_sequences=len(IDS), seq_len=IDS.shape[1]))
    expected, slack = seen.method.own_flops(work), 0.5 * work.passes()
    assert seen.flops <= 2 * expected + slack
    assert expected <= 2 * seen.flops + slack


def test_the_matrix_says_what_a_method_does(seen: Observed) -> None:
    said = matrix()[seen.name]
    assert said["result"] == ("zeros" if seen.found.masks else "smaller")
    assert said["gradients"] == ("yes" if seen.gradients else "no")
    assert said["trains"] == ("yes" if seen.trains else "no")
    assert (said["retraining in its paper"] == "none") == (not seen.method.retraining)
    assert SOURCES.findall(said["source"]) == SOURCES.findall(method_summaries()[seen.name])


def test_the_seed_decides_and_a_killed_run_is_resumed(seen: Observed) -> None:
    """Once more, methods that train or search in a folder where they were killed, with the same result."""
    folder, steps, numbers = seen.folder / "again", list[int](), list[float]()
    if seen.trains:
        stop_at(2, seen.method, seen.given, folder)
    if seen.measured:
        stop_after(seen.measured // 2, seen, folder)
    journal = Journal(folder / "measured.json", 0)

    def measured(measure: Callable[[], float]) -> float:
        numbers.append(measure())
        return numbers[-1]

    ctx = context_of(folder, on_step=steps.append)
    ctx = dataclasses.replace(ctx, measured=lambda measure: journal(lambda: measured(measure)))
    again = seen.method.prune(seen.given, ctx)
    assert steps[:1] == ([2] if seen.trains else [])
    assert len(numbers) == seen.measured - seen.measured // 2
    assert again.plan == seen.found.plan
    assert (again.masks is None) == (seen.found.masks is None)
    for name, kept in (seen.found.masks or {}).items():
        assert torch.equal(again.masks[name], kept)
    assert same_weights(again.model, seen.found.model)


def same_weights(model: Any, other: Any) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


# What is stored

PROMPT = IDS[:, :5].tolist()


@pytest.fixture(scope="module")
def fresh() -> Iterator[Any]:
    with generating(PROMPT) as load:
        yield load


def test_a_fresh_process_loads_the_student_and_generates_the_same(seen: Observed, fresh: Any) -> None:
    module, student = loading_module(seen.found.model.config), seen.found.model
    student.save_pretrained(seen.folder / "student")
    assert matrix()[seen.name]["stock"] == ("no" if module or not seen.method.equal_layers else "yes")
    found = fresh(seen.folder / "student", module)
    expected = student.generate(
        torch.tensor(PROMPT), max_new_tokens=8, do_sample=False, use_cache=True, eos_token_id=None
    )
    assert found == {"tokens": expected.tolist(), "parameters": student.num_parameters()}
