"""`lit-prune` and `python -m lit_prune`: dispatch of all commands, and exit codes."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from typing import get_type_hints

import pytest
from refusals import check_refusal

from lit_prune.cli import evaluate, table
from lit_prune.cli.fields import settings
from lit_prune.cli.main import VERBS, main, parse
from lit_prune.cli.process import Verb, execute
from lit_prune.config import Cell, ConfigError, Profile
from lit_prune.config.overrides import override
from lit_prune.store import Locked


@pytest.mark.parametrize("name", VERBS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    assert f"lit-prune {name}" in capsys.readouterr().out


def test_the_words_of_a_table_are_those_of_its_own_command():
    verb, flags = parse(
        ["table", "loss_ablation", "diff", "3f2a", "77", "--set", "seed=1", "--set", "distill.max_steps=2"]
    )
    assert verb is VERBS["table"]
    assert (flags.table, flags.command, flags.keys) == ("loss_ablation", "diff", ("3f2a", "77"))
    assert flags.set == ("seed=1", "distill.max_steps=2")


def test_a_table_is_checked_like_its_own_command(tmp_path, capsys):
    assert main(["table", "loss_ablation", "status", "--store", str(tmp_path)]) == 0
    assert "L_logits(KLD)" in capsys.readouterr().out
    assert main(["table", "los_ablation", "--store", str(tmp_path)]) == 2
    check_refusal(capsys.readouterr().err, "table", "'los_ablation'", "'loss_ablation'")


def test_without_a_table_all_are_listed(capsys):
    assert main(["table"]) == 0
    assert {"loss_ablation", "depth_ablation"} <= {line.split()[0] for line in capsys.readouterr().out.splitlines()}


@pytest.mark.parametrize(
    ("verb", "words", "new"),
    [
        (verb, (old, "a=b"), new)
        for verb in (table.VERB, evaluate.VERB)
        for old, new in verb.renamed.items()
    ],
)  # fmt: skip
@pytest.mark.parametrize("joined", [False, True])
def test_a_former_flag_is_accepted_with_a_hint_of_the_new_one(verb, words, new, joined, capsys):
    seen = []
    words = ["=".join(words)] if joined else list(words)

    def read(words):
        seen.extend(words)
        raise SystemExit(0)

    with pytest.raises(SystemExit):
        execute(read, words, verb.renamed)
    assert seen == ([f"{new}=a=b"] if joined else [new, "a=b"])
    (hint,) = capsys.readouterr().err.splitlines()
    assert new in hint


@pytest.mark.parametrize("error", [ConfigError("field: must be 1,\n got 2"), Locked("busy"), OSError(28, "full", "x")])
def test_an_error_is_one_line_and_exit_code_2(error, capsys):
    def fail(flags):
        raise error

    verb = Verb("toy", table.CliArgs, fail)
    assert verb.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    with pytest.raises(type(error)):
        verb.main(["--debug"])


def test_a_reader_that_leaves_early_is_no_error():
    """As `lit-prune fields | head`: the pipe is full before everything is written."""
    command = [sys.executable, "-c", "from lit_prune.cli.main import main; raise SystemExit(main(['fields']))"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ) as process:
        process.stdout.close()
        assert process.wait(60) == 0
        assert b"Traceback" not in process.stderr.read()


def test_listed_defaults_are_the_values_that_an_override_begins_with():
    listed = {one.path: one.default for one in settings()}
    cell = override(Cell(), {"teacher.pretraining.seed": 0, "teacher.finetune.seed": 0})
    assert listed["teacher.pretraining.optimizer.lr"] == cell.teacher.pretraining.optimizer.lr == 3e-3
    assert listed["teacher.pretraining.corpus.path"] == cell.teacher.pretraining.corpus.path == "python+dependencies"
    assert listed["teacher.finetune.optimizer.lr"] == cell.teacher.finetune.optimizer.lr == 6e-4
    assert listed["second_corpus.path"] == Profile(cell).second_corpus.path == "readmes"


@pytest.mark.slow
def test_the_package_is_the_command():
    result = subprocess.run([sys.executable, "-m", "lit_prune", "fields", "seed"], capture_output=True, text=True)
    assert result.returncode == 0
    assert "seed = 0" in result.stdout


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_every_flag_has_a_help_text_of_one_paragraph(verb):
    def flags(kind):
        for name, hint in get_type_hints(kind, include_extras=True).items():
            if dataclasses.is_dataclass(section := get_type_hints(kind)[name]):
                yield from flags(section)
            else:
                yield name, [about.help for about in getattr(hint, "__metadata__", ()) if getattr(about, "help", None)]

    for name, texts in flags(verb.flags):
        assert texts, name
        assert "\n" not in texts[-1]
