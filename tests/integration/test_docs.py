"""The code in the documents runs, and their commands are commands."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import tyro
import yaml
from documents import FOREIGN, KINDS, OURS, ROOT, Block, blocks, commands, fields, settings

import lit_prune
from lit_prune.cli import main as lit_prune_command
from lit_prune.cli import table as cli
from lit_prune.config import Cell, Profile
from lit_prune.config.overrides import fields_of, override, parse_setting
from lit_prune.config.profiles import load_profile
from lit_prune.pipeline.expand import entries
from lit_prune.pipeline.validate import check_names
from lit_prune.registry import Registry
from lit_prune.store.address import SCHEMA

BLOCKS = list(blocks())
PYTHON = {ast.dump(ast.parse(block.text)): block for block in BLOCKS if block.kind == "python"}
"""By what they do: a block that two documents have runs once."""
PARTS = [block for block in PYTHON.values() if block.module]
COMMANDS = list(dict.fromkeys(commands()))
TABLE_COMMANDS = [
    (place, ("python", "-m", f"lit_prune.experiments.{words[2]}", *words[3:]) if words[0] == "lit-prune" else words)
    for place, words in COMMANDS
    if (words[1:2] == ("-m",) and "experiments" in words[2]) or (words[:2] == ("lit-prune", "table") and len(words) > 2)
]
SHORT = ["--set", "corpus.path=stories.jsonl"]
HUB = re.compile(r"[\w-]+/[\w.-]+")
GIVEN = {
    name: SimpleNamespace(documents=pd.DataFrame({"nll": nll, "words": [10.0, 10.0, 20.0]}))
    for name, nll in (("ours", [40.0, 30.0, 50.0]), ("theirs", [30.0, 30.0, 40.0]))
}
"""What a block takes as given: two measured texts of three documents."""


def named(found):
    return [pytest.param(words, id=f"{place} {' '.join(words[2:])}") for place, words in found]


@functools.cache
def executed(block: Block) -> dict[str, Any]:
    """Return the names that a block has at its end."""
    return block.execute(**GIVEN)


def block_with(text: str) -> Block:
    """Return the first block of Python that has some text."""
    return next(block for block in PYTHON.values() if text in block.text)


class Parsed(Exception):
    """A command has read its words; what it would do next is left out."""


@pytest.fixture(scope="module")
def workplace(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the documents name."""
    folder = tmp_path_factory.mktemp("workplace")
    lines = [json.dumps({"text": f"{part} {text}"}) for part in range(16) for text in texts]
    (folder / "stories.jsonl").write_text("\n".join(lines))
    (folder / "my-llama").symlink_to(ROOT / "lit_prune/teachers/python-3.1M")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    return folder


@pytest.fixture(autouse=True)
def _there(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that the documents add to the registries, which are put back afterwards."""
    added = []
    for block in PARTS:
        module = importlib.import_module(block.module)
        registries = [part for part in vars(module).values() if isinstance(part, Registry)]
        before = {name for registry in registries for name in registry}
        for registry in registries:
            monkeypatch.setattr(registry, "_parts", dict(registry._parts))
        block.execute()
        added += {name for registry in registries for name in registry} - before
    return added


def test_every_block_is_of_a_kind_and_there_are_some_of_each():
    assert {block.kind for block in BLOCKS} == set(KINDS.values())
    for language, text in (("bash", "frobnicate all\n"), ("", "make test\n")):
        with pytest.raises(ValueError, match="nowhere:1"):
            _ = Block("nowhere", 1, text, language, None).kind


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.kind == "profile"], ids=str)
def test_a_block_of_yaml_is_a_profile(block, tmp_path):
    (tmp_path / "mine.yaml").write_text(block.text)
    assert load_profile(str(tmp_path / "mine.yaml")).seeds >= 1


@pytest.mark.parametrize(("place", "name"), list(fields()))
def test_a_field_that_is_listed_exists(place, name):
    known = [*fields_of(Cell), *fields_of(Profile)]
    assert any(f".{path}.".find(f".{name}.") >= 0 for path in known)


@pytest.mark.parametrize("block", PYTHON.values(), ids=str)
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


# Commands


@pytest.mark.parametrize("words", named(COMMANDS))
def test_a_command_takes_its_words(words, monkeypatch, capsys):
    program, *rest = words
    if {program, *rest[:1]} & set(FOREIGN):
        return
    if program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "lit-prune":
        verb, flags = lit_prune_command.parse(rest)
        assert type(flags) is verb.flags
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = re.search(r"\[(.*)\]", rest[-1])[1].split(",")
        assert set(extras) <= set(project["optional-dependencies"])
        assert all((ROOT / word).is_file() for word in rest if word.endswith(".txt"))
    else:
        assert rest[0] == "-m"
        assert rest[1].split(".")[0] in OURS
        parse(rest[1], rest[2:], monkeypatch)


def parse(module: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a command read its words, and stop it then."""

    def stopping(read):
        def stopped(*args, **kwargs):
            raise Parsed(read(*args, **kwargs))

        return stopped

    found = importlib.import_module(module)
    if hasattr(found, "__path__"):
        found = importlib.import_module(f"{module}.__main__")
    first = (found.TABLE,) if hasattr(found, "TABLE") else ()
    main = cli.main if first else found.main
    monkeypatch.setattr(tyro, "cli", stopping(tyro.cli))
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stopping(argparse.ArgumentParser.parse_args))
    with pytest.raises((Parsed, SystemExit)) as stop:
        main(*first, words)
    assert stop.type is Parsed or ("--help" in words and stop.value.code == 0)


@pytest.mark.parametrize("words", named(TABLE_COMMANDS))
def test_the_cells_that_a_command_names_exist(words, registered):
    flags = tyro.cli(cli.CliArgs, args=words[3:])
    table, profile = importlib.import_module(words[2]).TABLE, load_profile(flags.profile)
    if needs_hub(words):
        check_names(override(profile.cell, flags.settings))
        return
    also, only = map(parse_setting, flags.add_row), map(parse_setting, flags.filter)
    table = table.at(profile, Path("store"), flags.settings)
    found = entries(table, profile, settings=flags.settings, num_seeds=flags.seeds, add_rows=also, filters=only)
    assert found
    for entry in found:
        check_names(entry.cell)


def needs_hub(words) -> bool:
    """Whether a command reads a model or a text of the hub."""
    return any(HUB.fullmatch(word.partition("=")[2]) for word in words)


@pytest.mark.slow
@pytest.mark.parametrize("words", named(command for command in TABLE_COMMANDS if command[0] in map(str, BLOCKS)))
def test_a_command_would_run(words, registered):
    """With --dry-run, where it computes something and what it names lies on this machine; over a short text."""
    if needs_hub(words) or "diff" in words:
        return
    more = ["--wandb", "disabled"]
    if not {"status", "report"} & set(words):
        more += ["--dry-run"]
    if "corpus.path" not in " ".join(words):
        more += SHORT
    assert cli.main(importlib.import_module(words[2]).TABLE, [*words[3:], *more]) == 0


@pytest.mark.parametrize(("place", "setting"), list(settings()))
def test_a_setting_is_a_field_of_a_cell_with_a_value_it_takes(place, setting):
    path, value = parse_setting(setting)
    assert dataclasses.is_dataclass(override(Cell(), {path: value}))


# Lists of folders


def test_folders_that_are_listed_exist():
    for block in BLOCKS:
        if block.kind == "listing":
            for folder in re.findall(r"(\S+/) +", block.text):
                stages = re.fullmatch(r"store/([\w|]+)/<address>/", folder)
                if stages:
                    assert set(stages[1].split("|")) <= {*SCHEMA, "benchmark", "teacher_outputs"}
                elif not folder.startswith(("store/", "model/")):
                    assert (ROOT / folder).is_dir(), folder


# Versions, continuous integration and hooks


def test_every_file_names_the_same_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert lit_prune.__version__ == version
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == version


def test_continuous_integration_runs_the_test_target():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"].values()
    assert "make test" in [step.get("run") for job in jobs for step in job["steps"]]


def test_hooks_run_the_tools_of_make_check():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    check = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    tools = {line.strip().removeprefix("$(BIN)/").split()[0] for line in check.splitlines()}
    hooked = {hook["entry"].removeprefix(".venv/bin/").split()[0] for hook in hooks}
    assert hooked <= tools
    assert "ruff" in hooked


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem)
def test_an_issue_form_has_the_fields_that_a_form_needs(path):
    form = yaml.safe_load(path.read_text())
    if path.stem == "config":
        assert set(form) == {"blank_issues_enabled"}
        return
    assert {"name", "description", "body"} <= set(form)
    assert all(part["attributes"]["label"] for part in form["body"] if part["type"] != "markdown")
