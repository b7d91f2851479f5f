"""The model card states the published retraining of the method, and whether it was done."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lit_prune.config import Cell
from lit_prune.config.overrides import override
from lit_prune.methods import methods
from lit_prune.render.model_card import model_card

MEASURED = {"parameters": 1000, "lm_loss": 3.25, "num_tokens": 512}


def line(changes: dict[str, Any], verb: str = "prune") -> list[str]:
    """The lines of a card that are about the retraining of the publication."""
    cell = override(Cell(), changes)
    card = model_card(cell, MEASURED, MEASURED, {}, verb)
    return [found for found in card.splitlines() if found.startswith("Published retraining")]


@pytest.mark.parametrize("name", list(methods))
def test_a_card_names_every_setting_of_the_published_retraining(name: str) -> None:
    (found,) = line({"prune.method": name, "distill.max_steps": 0})
    assert f"of {name}:" in found.replace("\\", "")
    published = methods[name].retraining
    assert re.findall(r"`([\w.]+)=", found) == list(published)
    assert found.endswith("; not done here." if published else ": none.")


def test_the_published_numbers_are_those_of_the_papers() -> None:
    (minitron,) = line({"distill.max_steps": 0})
    for setting in ("batch_size=1152", "optimizer.lr=0.0001", "optimizer.min_lr=1e-05", "ce_weight=0.0"):
        assert f"`distill.{setting}`" in minitron
    (deeper,) = line({"prune.method": "deeper_layers", "distill.max_steps": 0})
    assert '`distill.lora.target_modules=["gate_proj", "up_proj", "down_proj"]`' in deeper


def test_a_card_tells_whether_the_retraining_was_done_or_another_one() -> None:
    published = {"prune.method": "deeper_layers"} | methods["deeper_layers"].retraining
    (done,) = line(published)
    assert done.endswith("; done here.")
    (other,) = line(published | {"distill.optimizer.lr": 1e-3})
    assert other.endswith("; retrained here with the settings below.")


def test_nothing_is_said_of_a_student_that_was_given() -> None:
    assert line({"prune.init_from": "./small"}, "distill") == []


def test_sizes_that_differ_between_layers_are_shown_as_a_range() -> None:
    shapes = {"num_hidden_layers": (4, (3, 3)), "intermediate_size": (2000, (900, 2000))}
    card = model_card(Cell(), MEASURED, MEASURED, {}, "prune", shapes)
    assert "| num_hidden_layers | 4 | 3 |" in card
    assert "| intermediate_size | 2,000 | 900 to 2,000 |" in card
