"""Inputs of public bug reports through the real commands: refused in one line before any compute, or accepted."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_prune.cli.evaluate import main as evaluate
from lit_prune.cli.table import main
from lit_prune.config import ConfigError, Execution
from lit_prune.experiments.loss_ablation import TABLE
from lit_prune.models import loading
from lit_prune.pipeline.request import TableRequest, requested_entries
from lit_prune.pipeline.runner import Runner
from lit_prune.progress import Silent
from lit_prune.store import Store

TEACHER = loading.SHIPPED / "python-3.1M"
SHORT = (
    "calibration.seq_len=32",
    "distill.seq_len=32",
    "evaluation.seq_len=32",
    "calibration.num_sequences=4",
    "evaluation.num_sequences=4",
)

REFUSED_MODELS = {
    "layer_missing_in_file": "layers.5",
    "head_missing_in_file": "lm_head.weight",
    "tied_config_other_head": "lm_head.weight",
    "truncated_weights": "model.safetensors",
    "remote_code": "config.json",
    "quantised": "bitsandbytes",
    "id_beyond_embedding": "2100",
    "adapter_beside_model": "adapter_config.json",
    "adapter_only": "adapter_config.json",
}
"""Case -> the file, tensor or value that the error names."""
ACCEPTED_MODELS = ("one_unused_special_token", "vocabulary_padded")
FOREIGN_STUDENT = "same_size_other_tokenizer"
TEXTS = {
    "one_null_text.jsonl": ("text", (400, 200, 1)),
    "nested_text.jsonl": ("meta.text", (200, 0, 0)),
    "duplicates.jsonl": ("text", (400, 200, 0)),
    "crlf_bom.txt": ("text", (1, 0, 0)),
}
"""Case -> column; documents, copies and skipped rows."""
ONE_DOCUMENT = ("other_column_changes_type.jsonl", "control_tokens.jsonl")
"""Texts of one document and its copies, which are all in one split."""
CHAT, PROFILE = "chat.jsonl", "duplicate_keys.yaml"


@pytest.fixture(scope="module")
def cases(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cases, a short text, and a teacher with a chat template."""
    out = tmp_path_factory.mktemp("cases")
    make = runpy.run_path(str(shared / "cases" / "make_cases.py"))
    make["models"](out, TEACHER, shared / "models" / "stories260K-hf")
    make["with_transformers"](out, TEACHER)
    make["texts"](out)
    (out / "short.jsonl").write_text("".join(f'{{"text": "{i}. {"a duck in the pond. " * 20}"}}\n' for i in range(40)))
    shutil.copytree(TEACHER, out / "with_template")
    path = out / "with_template" / "tokenizer_config.json"
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    return out


@pytest.fixture
def ask(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command in a folder of its own; returns the exit code, the lines of error, and the store."""
    monkeypatch.chdir(tmp_path)
    store = tmp_path / "store"

    def run(command: Any, *words: str) -> tuple[int, list[str], Path]:
        code = command([*words, "--store", str(store)])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, [line for line in said.err.splitlines() if line.startswith("error:")], store

    return run


def table(words: list[str]) -> int:
    return main(TABLE, [*words, "--dry-run", "--seeds", "1", "--wandb", "disabled"])


def reading(words: list[str]) -> int:
    """Validate the cells of a table and tokenise their texts, as a run does before it computes any."""
    place = words.index("--store")
    store, request = Store(words[place + 1]), TableRequest(set=tuple(words[1:place:2]), seeds=1)
    try:
        _, entries = requested_entries(TABLE, request, store)
        Runner(store, Execution(accelerator="cpu"), Silent()).check(entry.cell for entry in entries)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def settings(*values: str) -> list[str]:
    return [word for value in (*SHORT, *values) for word in ("--set", value)]


def of_model(field: str, folder: Path) -> list[str]:
    sizes = [] if field == "teacher.model" else [f"prune.{name}=null" for name in ("hidden_size", "intermediate_size")]
    return settings(
        f"{field}={folder}", "prune.num_attention_heads=null", *sizes, f"corpus.path={folder.parent / 'short.jsonl'}"
    )


def assert_refused(code: int, said: list[str], store: Path, field: str, named: str) -> None:
    assert code == 2
    (line,) = said
    assert line.startswith(f"error: {field}")
    assert named in line
    assert not list(store.glob("*/*/result.json"))


@pytest.mark.parametrize("field", ["teacher.model", "prune.init_from"])
@pytest.mark.parametrize("case", REFUSED_MODELS)
def test_a_table_refuses_the_model(case, field, cases, ask):
    found = ask(table, *of_model(field, cases / case))
    assert_refused(*found, field, REFUSED_MODELS[case])


@pytest.mark.parametrize("case", REFUSED_MODELS)
def test_evaluate_refuses_the_model(case, cases, ask):
    found = ask(evaluate, "--model", str(cases / case), "--corpus", str(cases / "short.jsonl"))
    assert_refused(*found, "--model", REFUSED_MODELS[case])


def test_a_student_whose_tokens_have_other_ids_is_refused_and_is_a_teacher_of_its_own(cases, ask):
    found = ask(table, *of_model("prune.init_from", cases / FOREIGN_STUDENT))
    assert_refused(*found, "prune.init_from", "2 ids differ")
    assert ask(table, *of_model("teacher.model", cases / FOREIGN_STUDENT))[0] == 0


@pytest.mark.parametrize("field", ["teacher.model", "prune.init_from"])
@pytest.mark.parametrize("case", ACCEPTED_MODELS)
def test_a_table_accepts_the_model(case, field, cases, ask):
    assert ask(table, *of_model(field, cases / case))[:2] == (0, [])


@pytest.mark.parametrize("case", [*ACCEPTED_MODELS, FOREIGN_STUDENT])
def test_evaluate_accepts_the_model(case, cases, ask):
    words = ("--corpus", str(cases / "short.jsonl"), "--limit", "2")
    assert ask(evaluate, "--model", str(cases / case), *words)[:2] == (0, [])


@pytest.mark.slow
def test_code_of_the_folder_is_not_run_whatever_standard_input_says(cases, tmp_path):
    command = [sys.executable, "-m", "lit_prune.experiments.loss_ablation", "--dry-run", "--store", str(tmp_path / "s")]
    words = settings(f"teacher.model={cases / 'remote_code'}")
    found = subprocess.run(
        [*command, *words], input="y\n", cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    errors = [line for line in found.stderr.splitlines() if line.startswith("error:")]
    assert (found.returncode, len(errors), "Traceback" in found.stderr) == (2, 1, False)
    assert not list(tmp_path.rglob("REMOTE_CODE_RAN"))


@pytest.mark.parametrize("case", TEXTS)
def test_a_table_reads_the_text_and_counts_it(case, cases, ask):
    column, counts = TEXTS[case]
    code, said, store = ask(reading, *settings(f"corpus.path={cases / case}", f"corpus.text_column={column}"))
    assert (code, said) == (0, [])
    (path,) = store.glob("tokens/*/tokens.json")
    about = json.loads(path.read_text())
    assert (about["num_documents"], about["num_duplicates"], about["num_skipped"]) == counts
    ids = np.fromfile(path.parent / "train.bin", about["dtype"])
    read = loading.load_tokenizer(str(TEACHER)).decode(ids)
    assert "The quick brown fox" in read
    assert not {"\ufeff", "\r"} & set(read)


def test_a_nested_column_is_named_where_another_is_asked_for(cases, ask):
    found = ask(reading, *settings(f"corpus.path={cases / 'nested_text.jsonl'}"))
    assert_refused(*found, "corpus.text_column", "there are: meta.text")


@pytest.mark.parametrize("case", ONE_DOCUMENT)
def test_copies_of_one_document_cannot_be_split_but_are_read(case, cases, ask):
    found = ask(reading, *settings(f"corpus.path={cases / case}", "corpus.max_tokens=2000"))
    assert_refused(*found, "corpus.path", "1 different documents")
    code, said, store = ask(evaluate, "--model", str(TEACHER), "--corpus", str(cases / case), "--limit", "1")
    assert (code, said) == (0, [])
    (path,) = store.glob("benchmark/*/result.json")
    first = json.loads((cases / case).read_text().splitlines()[0])["text"]
    scored = loading.load_tokenizer(str(TEACHER))(first, split_special_tokens=True)["input_ids"]
    assert json.loads(path.read_text())["numbers"]["num_tokens"] == len(scored) - 1


def test_evaluate_counts_the_rows_it_skips_once(cases, ask, caplog, tmp_path):
    case = shutil.copy(cases / "one_null_text.jsonl", tmp_path / "copy.jsonl")  # nothing was said of it yet
    assert ask(evaluate, "--model", str(TEACHER), "--corpus", str(case), "--limit", "1")[:2] == (0, [])
    (said,) = [record for record in caplog.records if record.args and record.args[0] == str(case)]
    assert said.args[1] == 1


def test_conversations_need_a_chat_template(cases, ask):
    text = (f"corpus.path={cases / CHAT}", "corpus.text_column=messages")
    assert_refused(*ask(reading, *settings(*text)), "corpus.text_column", "list of messages")
    text = text[0].replace(CHAT, "different.jsonl"), text[1]
    row = json.loads((cases / CHAT).read_text().splitlines()[0])
    rows = [{"messages": [row["messages"][0] | {"content": f"{i}?"}, row["messages"][1]]} for i in range(40)]
    (cases / "different.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, said, store = ask(reading, *settings(*text, f"teacher.model={cases / 'with_template'}"))
    assert (code, said) == (0, [])
    tokens = [json.loads(path.read_text()) for path in store.glob("tokens/*/tokens.json")]
    assert [about["num_documents"] for about in tokens] == [40]


def test_a_key_that_comes_twice_in_a_profile_is_refused(cases, ask):
    found = ask(table, "--profile", str(cases / PROFILE))
    assert_refused(*found, str(cases / PROFILE), "'steps'")


def test_every_case_of_the_list_is_here(shared):
    rows = [line.split("|")[1] for line in (shared / "cases" / "README.md").read_text().splitlines() if "|" in line]
    listed = {
        name
        for row in rows[2:]
        for name in re.findall(r"\b[a-z]+(?:_[a-z]+)*\.(?:jsonl|yaml|txt)|\b[a-z]+(?:_[a-z]+)+|^ [a-z]+ $", row)
    }
    here = {*REFUSED_MODELS, *ACCEPTED_MODELS, FOREIGN_STUDENT, *TEXTS, *ONE_DOCUMENT, CHAT, PROFILE}
    assert {name.strip() for name in listed} == here
