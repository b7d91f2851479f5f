"""Code blocks of the documents: Python runs, YAML is a profile, and listed folders exist."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from documents import KINDS, SHORT, Block, blocks, python_blocks
from paths import ROOT

from lit_prune.cli import table as cli
from lit_prune.config.profiles import load_profile
from lit_prune.pipeline.expand import entries
from lit_prune.store.address import SCHEMA

pytestmark = pytest.mark.usefixtures("in_workplace")

BLOCKS = list(blocks())
PYTHON = python_blocks()
PARTS = [block for block in PYTHON if block.module]
GIVEN = {
    name: SimpleNamespace(documents=pd.DataFrame({"nll": nll, "words": [10.0, 10.0, 20.0]}))
    for name, nll in (("ours", [40.0, 30.0, 50.0]), ("theirs", [30.0, 30.0, 40.0]))
}
"""What a block takes as given: two measured texts of three documents."""


@functools.cache
def executed(block: Block) -> dict[str, Any]:
    """Return the names that a block has at its end."""
    return block.execute(**GIVEN)


def block_with(text: str) -> Block:
    """Return the first block of Python that has some text."""
    return next(block for block in PYTHON if text in block.text)


def test_every_block_is_of_a_kind_and_there_are_some_of_each():
    assert {block.kind for block in BLOCKS} == set(KINDS.values())
    for language, text in (("bash", "frobnicate all\n"), ("", "make test\n")):
        with pytest.raises(ValueError, match="nowhere:1"):
            _ = Block("nowhere", 1, text, language, None).kind


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.kind == "profile"], ids=str)
def test_a_block_of_yaml_is_a_profile(block, tmp_path):
    (tmp_path / "mine.yaml").write_text(block.text)
    assert load_profile(str(tmp_path / "mine.yaml")).seeds >= 1


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_a_block_of_python_runs(block, registered):
    if block not in PARTS:  # those were executed by the fixture
        assert executed(block).keys() - GIVEN.keys() > {"__name__"}
    assert len(registered) == len(PARTS) >= 3


@pytest.mark.slow
def test_every_part_that_is_added_keeps_the_contract_of_its_kind(registered, tmp_path):
    (tmp_path / "documented.py").write_text(
        "from documents import blocks\n"
        "for block in blocks():\n"
        "    if block.kind == 'python' and block.module:\n"
        "        block.execute()\n"
    )
    files = (
        "losses/test_logit", "losses/test_chunked", "distill/test_module", "importance/test_criteria",
        "pruning/test_allocate",
    )  # fmt: skip
    words = ["-n", "0", "-rp", "-p", "no:cacheprovider", "-p", "documented", "-k", " or ".join(registered)]
    command = [sys.executable, "-m", "pytest", *words, *(f"tests/unit/{name}.py" for name in files)]
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests/fixtures", tmp_path)))
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in registered:
        assert re.search(rf"PASSED .*{name}", done.stdout), name


def test_the_table_that_is_added_has_cells():
    table, quick = executed(block_with("TABLE = "))["TABLE"], load_profile("quick")
    found = entries(table.at(quick, Path("store")), quick)
    assert {row for claim in table.claims for row in (claim.better, claim.worse)} <= {entry.row for entry in found}


@pytest.mark.slow
def test_the_table_that_is_added_is_a_command():
    assert cli.main(executed(block_with("TABLE = "))["TABLE"], ["--dry-run", *SHORT]) == 0


def test_the_statistic_that_is_added_is_compared():
    """120 nats over 40 words against 100 over 40."""
    assert executed(block_with("paired_bootstrap"))["found"].difference == pytest.approx(3.0 - 2.5)


def test_the_frame_has_every_recorded_cell():
    recorded = sum(len(pd.read_csv(path)) for path in (ROOT / "experiments").glob("*/*/results.csv"))
    assert len(executed(block_with("import frame"))["cells"]) == recorded


def test_folders_that_are_listed_exist():
    for block in BLOCKS:
        if block.kind == "listing":
            for folder in re.findall(r"(\S+/) +", block.text):
                stages = re.fullmatch(r"store/([\w|]+)/<address>/", folder)
                if stages:
                    assert set(stages[1].split("|")) <= {*SCHEMA, "benchmark", "identical", "teacher_outputs"}
                elif not folder.startswith(("store/", "model/")):
                    assert (ROOT / folder).is_dir(), folder
