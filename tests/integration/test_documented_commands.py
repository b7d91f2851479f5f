"""Commands, settings and fields in the documents exist, and the commands of tables would run."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import re
import tomllib
from pathlib import Path

import pytest
import tyro
from documents import FOREIGN, OURS, SHORT, blocks, commands, fields, names_hub, settings
from paths import ROOT

from lit_prune.cli import main as lit_prune_command
from lit_prune.cli import table as cli
from lit_prune.config import Cell, Profile
from lit_prune.config.overrides import fields_of, override, parse_setting
from lit_prune.config.profiles import load_profile
from lit_prune.models.named_teachers import teachers
from lit_prune.pipeline.expand import entries
from lit_prune.pipeline.validate import check_names

pytestmark = pytest.mark.usefixtures("in_workplace")

PLACES = {str(block) for block in blocks()}
COMMANDS = list(dict.fromkeys(commands()))
TABLE_COMMANDS = [
    (place, ("python", "-m", f"lit_prune.experiments.{words[2]}", *words[3:]) if words[0] == "lit-prune" else words)
    for place, words in COMMANDS
    if (words[1:2] == ("-m",) and "experiments" in words[2]) or (words[:2] == ("lit-prune", "table") and len(words) > 2)
]


class Parsed(Exception):
    """A command has read its words; what it would do next is left out."""


def named(found):
    return [pytest.param(words, id=f"{place} {' '.join(words[2:])}") for place, words in found]


@pytest.mark.parametrize("words", named(COMMANDS))
def test_a_command_takes_its_words(words, monkeypatch, capsys):
    program, *rest = words
    if {program, *rest[:1]} & set(FOREIGN):
        return
    if program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "lit-prune" and "--help" in rest:
        with pytest.raises(SystemExit) as left:
            lit_prune_command.parse(rest)
        assert left.value.code == 0
    elif program == "lit-prune":
        verb, flags = lit_prune_command.parse(rest)
        assert type(flags) is verb.flags
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = re.search(r"\[(.*)\]", rest[-1])
        if extras:
            assert set(extras[1].split(",")) <= set(project["optional-dependencies"])
        else:
            assert rest[-1] in {teachers[name].requirement for name in teachers}
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
    if names_hub(words):
        check_names(override(profile.cell, flags.settings))
        return
    also, only = map(parse_setting, flags.add_row), map(parse_setting, flags.filter)
    table = table.at(profile, Path("store"), flags.settings)
    found = entries(table, profile, settings=flags.settings, num_seeds=flags.seeds, add_rows=also, filters=only)
    assert found
    for entry in found:
        check_names(entry.cell)


@pytest.mark.slow
@pytest.mark.parametrize("words", named(command for command in TABLE_COMMANDS if command[0] in PLACES))
def test_a_command_would_run(words, registered):
    """With --dry-run, where it computes something and what it names lies on this machine; over a short text."""
    if names_hub(words) or "diff" in words:
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


@pytest.mark.parametrize(("place", "name"), list(fields()))
def test_a_field_that_is_listed_exists(place, name):
    known = [*fields_of(Cell), *fields_of(Profile), "tables"]  # the last one is of a profile's file alone
    assert any(f".{path}.".find(f".{name}.") >= 0 for path in known)
