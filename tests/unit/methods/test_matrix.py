"""What README.md, the help text and the errors say about the methods is what they are and do."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ROOT
from pruning_context import context_of, made, small_llama
from refusals import check_refusal, refuses

from lit_prune.cli.main import main
from lit_prune.config import Cell
from lit_prune.config.overrides import override
from lit_prune.config.prune import method_summaries
from lit_prune.methods import ABSENT, PruneContext, methods

SHIPPED = list(methods)
SOURCES = re.compile(r"\d{4}\.\d{5}")


def matrix() -> dict[str, dict[str, str]]:
    """The rows of the table in README.md by method, each from column to cell."""
    text = (ROOT / "README.md").read_text()
    table = text.partition("[start:methods] -->")[2].partition("<!-- --8<-- [end:methods]")[0]
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines())
    return {row[0].split("`")[1]: dict(zip(head, row, strict=True)) for row in rows}


@dataclasses.dataclass
class Calls:
    """What a method did: whether gradients passed the model, and whether it trained."""

    gradients: bool = False
    trains: bool = False


def watched(model: Any, ctx: PruneContext) -> tuple[Any, PruneContext, Calls]:
    """The same model and services, and what is noted while they are used: by copies of the model, too."""
    calls = Calls()

    def note(gradient: torch.Tensor) -> None:
        calls.gradients = True

    def follow(module: Any, given: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(note)

    def fit(module: Any, what: str, **settings: Any) -> Any:
        calls.trains = True
        return ctx.fit(module, what, **settings)

    model.model.norm.register_forward_hook(follow)
    return model, dataclasses.replace(ctx, fit=fit), calls


def test_the_matrix_has_every_method_once() -> None:
    text = (ROOT / "README.md").read_text()
    assert sorted(matrix()) == SHIPPED
    assert all(text.count(f"\n| `{name}`") == 1 for name in SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_matrix_says_what_a_method_does(name: str, tmp_path: Path) -> None:
    method = made(name)
    model, ctx, calls = watched(small_llama(), context_of(tmp_path))
    found = method.prune(model, ctx)
    heterogeneous = getattr(found.model.config, "is_heterogeneous", False) or not method.equal_layers
    said = matrix()[name]
    assert said["result"] == ("zeros" if found.masks else "smaller")
    assert said["gradients"] == ("yes" if calls.gradients else "no")
    assert said["trains"] == ("yes" if calls.trains else "no")
    assert said["stock"] == ("no" if heterogeneous or type(found.model) is not type(model) else "yes")
    assert (said["retraining in its paper"] == "none") == (not method.retraining)
    assert SOURCES.findall(said["source"]) == SOURCES.findall(method_summaries()[name])


def test_the_help_text_has_a_line_and_a_source_for_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prune", "--help"])
    lines = {
        line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ") and line.strip()
    }
    assert set(SHIPPED) <= set(lines)
    assert all(SOURCES.search(lines[name]) for name in SHIPPED)


@pytest.mark.parametrize("name", ABSENT)
def test_a_known_method_that_is_absent_says_why(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert name not in SHIPPED
    for given in (name, name.upper()):
        with refuses("prune.method", given, *SOURCES.findall(ABSENT[name])):
            override(Cell(), {"prune.method": given})
    assert main(["prune", "nowhere", "--method", name, "--out", "nowhere"]) == 2
    check_refusal(capsys.readouterr().err, "prune.method", name, ABSENT[name])
