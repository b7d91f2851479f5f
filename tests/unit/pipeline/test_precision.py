"""The precision of a cell: "auto" is resolved before the address, and every pass uses it."""

import copy

import pytest
import torch
from measured import CPU, Sequences, quietly
from safetensors.torch import load_file

from lit_prune.config import EVIDENCE, Cell
from lit_prune.config.overrides import override
from lit_prune.importance.collect import measure
from lit_prune.importance.layer_ablation import removal_losses
from lit_prune.pipeline import resolve
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.resolve import Resolver
from lit_prune.store.address import key

FIELDS = ("calibration.precision", "distill.precision", "evaluation.precision", "teacher.finetune.precision")


@pytest.mark.parametrize("machine", ["32-true", "bf16-mixed"])
def test_auto_has_the_address_of_the_precision_it_stands_for(monkeypatch, machine):
    monkeypatch.setattr(resolve, "fastest_precision", lambda: machine)
    everywhere = [*FIELDS, "parent.distill.precision"]
    base = override(Cell(), {"parent.distill.max_steps": 3})
    auto, stated = (Resolver().pin(override(base, dict.fromkeys(everywhere, value))) for value in ("auto", machine))
    assert auto == stated
    assert key(auto) == key(stated)


def test_calibration_in_float32_has_the_address_it_had_before_precision_was_a_setting():
    assert key(override(Cell(), {"calibration.precision": "32-true", "evaluation.precision": "32-true"})) == key(Cell())


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 200, (4, 24), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", EVIDENCE)
def test_statistics_in_bfloat16_are_those_of_float32_to_rounding(tiny_llama, ids, tmp_path, name):
    exact, rough = tmp_path / "exact.safetensors", tmp_path / "rough.safetensors"
    for path, precision in ((exact, "32-true"), (rough, "bf16-mixed")):
        measure(copy.deepcopy(tiny_llama), Sequences(ids, 2), {name: path}, CPU, quietly, precision)
    expected, found = load_file(exact), load_file(rough)
    assert expected.keys() == found.keys()
    for what, values in expected.items():
        assert found[what].dtype == values.dtype == torch.float64
        torch.testing.assert_close(
            found[what], values, rtol=0.05, atol=0.05 * values.abs().nanmean().item(), equal_nan=True
        )
    assert any(not torch.equal(found[what].nan_to_num(), values.nan_to_num()) for what, values in expected.items())


def test_the_loss_without_a_layer_is_taken_in_the_precision_too(tiny_llama, ids):
    exact, rough = (
        removal_losses(tiny_llama, Sequences(ids, 2), 1, CPU, quietly, precision)
        for precision in ("32-true", "bf16-mixed")
    )
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(rough, exact, rtol=2e-3, atol=0)


def test_a_student_is_evaluated_in_the_precision_of_its_cell(tiny_cell, tiny_runner):
    cells = [
        override(tiny_cell, {"distill.max_steps": 0, "evaluation.precision": precision})
        for precision in ("32-true", "bf16-mixed")
    ]
    assert tiny_runner.run([Entry(f"row {i}", 0, cell, {}) for i, cell in enumerate(cells)]) == 0
    exact, rough = (tiny_runner.store.node(cell, "cell").result["lm_loss"] for cell in cells)
    assert exact != rough
    assert rough == pytest.approx(exact, rel=2e-3)
