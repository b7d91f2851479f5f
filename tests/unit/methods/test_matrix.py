"""README.md, the help text and the errors name every method; test_contracts.py tests what README.md says of them."""

from __future__ import annotations

import pytest
from method_matrix import SOURCES, matrix
from paths import ROOT
from refusals import check_refusal, refuses

from lit_prune.cli.main import main
from lit_prune.config import Cell
from lit_prune.config.overrides import override
from lit_prune.methods import ABSENT, methods

SHIPPED = list(methods)


def test_the_matrix_has_every_method_once() -> None:
    text = (ROOT / "README.md").read_text()
    assert sorted(matrix()) == SHIPPED
    assert all(text.count(f"\n| `{name}`") == 1 for name in SHIPPED)


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
