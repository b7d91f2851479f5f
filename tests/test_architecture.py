"""What keeps the tree readable: one-way imports, tables and profiles that are well formed, records that resolve."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from config_teachers import offline

import lit_prune.experiments
from lit_prune.config.overrides import override
from lit_prune.config.profiles import load_profile, profiles_folder
from lit_prune.pipeline.expand import entries
from lit_prune.pipeline.outcomes import check_rows
from lit_prune.store.address import key

ROOT = Path(__file__).parents[1]
PROFILES = sorted(path.stem for path in profiles_folder().glob("*.yaml"))
TABLES = sorted(module.name for module in pkgutil.iter_modules(lit_prune.experiments.__path__))
ABOVE = ("cli", "experiments", "integrations", "pipeline", "render", "report")
LIGHT = (
    "config",
    "config.profiles",
    "registry",
    "pipeline.expand",
    "store",
    "report",
    "render.files",
    "render.catalog",
    "render.terminal",
    "render.evaluations",
    "evaluate.runner",
    "pipeline.request",
    "cli.table",
    "cli.process",
)


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


@pytest.mark.parametrize("name", LIGHT)
def test_what_asks_and_what_reads_imports_no_torch(name):
    script = f"import sys, lit_prune.{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


def test_nothing_below_imports_the_command_line_or_the_runner():
    below = [p for p in (ROOT / "lit_prune").glob("*/*.py") if p.parent.name not in ABOVE]
    assert below
    for path in below:
        assert not {name.split(".")[0] for name in imports(path)} & set(ABOVE), path


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_well_formed_at_every_profile(name, profile, tmp_path):
    asked, settings = offline(profile, tmp_path / "teacher")
    table = importlib.import_module(f"lit_prune.experiments.{name}").TABLE.at(asked, tmp_path, settings)
    assert table.name == name
    found = entries(table, asked, settings=settings)
    rows = {table.label(point) for point in table.grid}
    retrained = sum(point.get("distill.steps") != 0 for point in table.grid)
    drawn = len(table.grid.points) - retrained
    assert len(found) == retrained * asked.seeds + drawn * asked.draws + len(table.references)
    assert {entry.row for entry in found} == rows | set(table.references)
    assert {metric for values in table.paper.values() for metric in values} <= set(table.metrics)
    check_rows(table, profile, found)


@pytest.mark.parametrize("name", TABLES)
def test_claims_of_one_family_are_of_one_source(name, tmp_path):
    quick = load_profile("quick")
    table = importlib.import_module(f"lit_prune.experiments.{name}").TABLE.at(quick, tmp_path)
    zero_shot = {entry.row for entry in entries(table, quick) if not entry.cell.distill.steps}
    sources = {}
    for claim in table.claims:
        before = table.metric_of(claim).endswith("_before") or {claim.better, claim.worse} <= zero_shot
        place = re.search(r"(Table|Figure|section|appendix)s? ([\w.]+)", claim.source).groups()
        sources.setdefault((claim.family, before), set()).add(place)
    assert all(len(places) == 1 for places in sources.values()), sources


def test_records_hold_no_code_and_their_addresses_are_still_those_of_their_question(tmp_path):
    assert not list((ROOT / "experiments").rglob("*.py"))
    for record in (ROOT / "experiments").glob("*/*/results.csv"):
        table = importlib.import_module(f"lit_prune.experiments.{record.parents[1].name}").TABLE
        profile = load_profile(record.parent.name)
        found = entries(table.at(profile, tmp_path), profile)
        recorded = pd.read_csv(record)
        assert (recorded["state"] == "done").all()
        assert (record.parents[1] / "NOTES.md").is_file()
        assert list(recorded["row"]) == [entry.row for entry in found], record
        assert addresses(recorded, found) == list(recorded["key"]), record


def addresses(recorded, found):
    """The keys of a table's cells, with the fingerprints of its record; nothing where their number differs."""
    if len(recorded) != len(found):
        return []
    none = pd.Series([None] * len(recorded))
    others = (recorded.get(name, none) for name in ("second_text", "source_corpus"))
    origins = zip(found, recorded["corpus"], recorded["teacher"], *others, strict=True)
    return [key(pinned(entry.cell, *origin)) for entry, *origin in origins]


def pinned(cell, corpus, teacher, second, source_corpus):
    """The cell with the fingerprints of its record."""
    if isinstance(source_corpus, str):
        cell = override(cell, {"source.corpus.fingerprint": source_corpus})
    if isinstance(second, str):
        text = replace(cell.evaluation.second, fingerprint=second)
        cell = replace(cell, evaluation=replace(cell.evaluation, second=text))
    if cell.teacher.pretraining is None:
        pinned_teacher = replace(cell.teacher, fingerprint=teacher)
    else:
        recipe = cell.teacher.pretraining
        recipe = replace(recipe, corpus=replace(recipe.corpus, fingerprint=teacher))
        pinned_teacher = replace(cell.teacher, pretraining=recipe)
    return replace(cell, corpus=replace(cell.corpus, fingerprint=corpus), teacher=pinned_teacher)


def test_the_tree_holds_no_leftovers():
    for path in (ROOT / "lit_prune").rglob("*.py"):
        assert not re.search(r"TODO|FIXME|XXX|NotImplementedError", path.read_text()), path
        assert path.name not in ("utils.py", "common.py", "helpers.py", "base.py")
