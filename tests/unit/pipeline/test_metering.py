"""The work of pruning, against the FLOPs that configs give, and the sharing of statistics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import CASES, model_of

from lit_prune.config import Cell
from lit_prune.config.overrides import override
from lit_prune.models.flops import forward_flops, training_flops
from lit_prune.models.model_family import anatomy_of
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.metering import Meter, Spent
from lit_prune.store.store import PRUNING

SEQ = 12


def ids(batch: int = 2) -> torch.Tensor:
    return torch.randint(3, 90, (batch, SEQ), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CASES)
def test_a_forward_pass_has_the_flops_of_its_config(name: str) -> None:
    model, meter = model_of(name), Meter()
    with torch.no_grad(), meter.account() as spent:
        model(input_ids=ids(), use_cache=False)
    assert spent.forward_flops == pytest.approx(2 * SEQ * forward_flops(model.config, SEQ))
    assert spent.backward_flops == 0


@pytest.mark.parametrize("name", ["llama", "llama, tied, with biases", "gemma2", "gpt2", "phi"])
def test_a_training_step_has_the_flops_of_its_config_and_changes_no_bit_by_being_metered(name: str) -> None:
    model, meter, gradients = model_of(name), Meter(), []
    for metered in (False, True):
        model.zero_grad()
        if metered:
            with meter.account() as spent:
                model(input_ids=ids(), labels=ids(), use_cache=False).loss.backward()
        else:
            model(input_ids=ids(), labels=ids(), use_cache=False).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(plain, metered) for plain, metered in zip(*gradients, strict=True))
    whole = spent.forward_flops + spent.backward_flops
    assert whole == pytest.approx(2 * SEQ * training_flops(model.config, SEQ))
    assert spent.forward_flops == pytest.approx(2 * SEQ * forward_flops(model.config, SEQ))


def test_an_inner_account_has_its_work_alone_and_nothing_counts_outside() -> None:
    model, meter = model_of("llama"), Meter()
    with torch.no_grad(), meter.account() as outer:
        model(input_ids=ids(), use_cache=False)
        with meter.account() as inner:
            model(input_ids=ids(6), use_cache=False)
    before = outer.forward_flops
    with torch.no_grad():
        model(input_ids=ids(), use_cache=False)
    assert outer.forward_flops == before == inner.forward_flops / 3
    both = outer + inner
    assert both.forward_flops == 4 * before
    assert both.peak_memory == max(outer.peak_memory or 0, inner.peak_memory or 0) > 2**20
    assert (outer + Spent(peak_memory=None)).peak_memory is None


def pruning_of(runner: Any, cell: Cell) -> dict[str, Any]:
    """Compute a cell and return the noted work of its pruning, which its student must have too."""
    assert runner.run([Entry("row", 0, cell, {})]) == 0
    student, retrained = (runner.store.node(cell, stage).env[PRUNING] for stage in ("student", "cell"))
    assert student == retrained
    return dict(student)


def test_statistics_are_charged_to_every_student_that_reads_them(tiny_cell: Cell, tiny_runner: Any) -> None:
    from lit_prune.pruning.shapes import teacher_config

    config, calibration = teacher_config(tiny_cell), tiny_cell.calibration
    tokens = calibration.num_sequences * calibration.seq_len
    without_head = forward_flops(config, calibration.seq_len) - 2 * config.vocab_size * config.hidden_size
    base = override(tiny_cell, {"distill.max_steps": 0})
    found = [pruning_of(tiny_runner, override(base, {"prune.intermediate_size": size})) for size in (0.5, 0.75)]
    for one in found:
        assert (one["tokens"], one["backward_flops"]) == (tokens, 0)
        assert one["forward_flops"] == pytest.approx(tokens * without_head)
        assert one["seconds"] > 0
        assert one["peak_memory"] > 2**20
    position = pruning_of(tiny_runner, override(base, {"prune.method": "reassessing", "prune.num_hidden_layers": 2}))
    assert (position["tokens"], position["forward_flops"], position["backward_flops"]) == (0, 0, 0)


def test_gradients_cost_a_backward_pass_and_learned_masks_the_tokens_of_their_training(
    tiny_cell: Cell, tiny_runner: Any
) -> None:
    from lit_prune.pruning.shapes import teacher_config

    config, calibration = teacher_config(tiny_cell), tiny_cell.calibration
    tokens = calibration.num_sequences * calibration.seq_len
    base = override(tiny_cell, {"distill.max_steps": 0})
    scored = pruning_of(tiny_runner, override(base, {"prune.method": "llm_pruner", "prune.spare_last": 0}))
    step = training_flops(config, calibration.seq_len)
    assert scored["forward_flops"] == pytest.approx(tokens * forward_flops(config, calibration.seq_len))
    assert scored["forward_flops"] + scored["backward_flops"] == pytest.approx(tokens * step)
    learned = override(
        base, {"prune.method": "bip", "prune.max_steps": 2, "prune.batch_size": 4, "prune.num_parameters": 0.9}
    )
    spent = pruning_of(tiny_runner, learned)
    assert spent["tokens"] == 2 * 4 * calibration.seq_len
    assert spent["backward_flops"] > spent["forward_flops"] > 0


def test_the_attention_of_every_family_is_known_by_its_name() -> None:
    for name in CASES:
        model = model_of(name)
        path = anatomy_of(model.config).attention_output.rpartition(".")[0]
        layer = model.get_submodule(anatomy_of(model.config).layers)[0]
        assert type(layer.get_submodule(path)).__name__.endswith("Attention"), name
