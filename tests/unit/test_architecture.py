"""Every table is well formed at every profile."""

import ast
import importlib
import re

import pytest
from config_teachers import offline
from paths import ROOT
from tables import PROFILES, TABLES

from lit_prune.pipeline.expand import entries
from lit_prune.pipeline.outcomes import check_rows


def imports(path):
    """The lit_prune modules a file imports at its top level."""
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lit_prune"):
            yield node.module.removeprefix("lit_prune").removeprefix(".")


def test_there_are_tables_and_profiles():
    assert TABLES
    assert {"quick", "laptop", "h200", "paper"} <= set(PROFILES)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_imports_what_a_question_is_made_of_and_nothing_else(name):
    assert set(imports(ROOT / "lit_prune/experiments" / f"{name}.py")) <= {"cli.table", "config.table", "config"}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_well_formed_at_every_profile(name, profile, tmp_path):
    requested, settings = offline(profile, tmp_path / "teacher", name)
    table = importlib.import_module(f"lit_prune.experiments.{name}").TABLE.at(requested, tmp_path, settings)
    assert table.name == name
    found = entries(table, requested, settings=settings)
    retrained = sum(changes.get("distill.max_steps") != 0 for changes in table.rows.values())
    drawn = len(table.rows) - retrained
    assert len(found) == retrained * requested.seeds + drawn * requested.calibration_seeds + len(table.reference_rows)
    assert {entry.row for entry in found} == set(table.rows) | set(table.reference_rows)
    assert {metric for values in table.paper.values() for metric in values} <= set(table.metrics)
    check_rows(table, profile, found)


def test_modules_have_at_most_300_lines_and_methods_80():
    for folder in ("lit_prune", "tests", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            most = 80 if path.parent.name == "methods" and folder == "lit_prune" else 300
            assert len(path.read_text().splitlines()) <= most, path


def test_the_tree_holds_no_leftovers():
    for path in (ROOT / "lit_prune").rglob("*.py"):
        assert not re.search(r"TODO|FIXME|XXX|NotImplementedError", path.read_text()), path
        assert path.name not in ("utils.py", "common.py", "helpers.py", "base.py")
