"""Texts of public bug reports, in the form of `shared/cases`."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from refusals import refuses

from lit_prune.config import Corpus
from lit_prune.data.corpus import Reader, pin, texts
from lit_prune.data.tokens import write_tokens
from lit_prune.models import loading


@pytest.fixture(scope="module")
def cases(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    runpy.run_path(str(shared / "cases" / "make_cases.py"))["texts"](folder)
    return folder


@pytest.mark.parametrize(
    ("name", "column", "documents", "skipped", "duplicates"),
    [
        ("one_null_text.jsonl", "text", 400, 1, 200),
        ("other_column_changes_type.jsonl", "text", 12001, 0, 12000),
        ("nested_text.jsonl", "meta.text", 200, 0, 0),
        ("duplicates.jsonl", "text", 400, 0, 200),
        ("chat.jsonl", "messages", 200, 0, 199),
    ],
)
def test_rows_are_read_and_counted(
    cases: Path, name: str, column: str, documents: int, skipped: int, duplicates: int
) -> None:
    reader = Reader(pin(Corpus(path=str(cases / name), text_column=column)))
    assert sum(1 for _ in reader) == documents
    assert (reader.num_documents, reader.skipped, reader.num_duplicates) == (documents, skipped, duplicates)


def test_no_control_token_comes_from_text(cases: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (cases / "control_tokens.jsonl").read_text().splitlines()]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"{i} {row['text']}"}) + "\n" for i, row in enumerate(rows))
    )
    tokenizer = loading.load_tokenizer(loading.locate("python-3.1M"))
    write_tokens(pin(Corpus(path=str(tmp_path / "a.jsonl"))), tokenizer, tmp_path / "tokens")
    ids = np.concatenate([np.fromfile(path, np.uint16) for path in (tmp_path / "tokens").glob("*.bin")])
    assert (ids == tokenizer.eos_token_id).sum() == len(rows)


def test_no_byte_order_mark_stays(cases: Path) -> None:
    (text,) = texts(Corpus(path=str(cases / "crlf_bom.txt")))
    assert text.startswith("The quick")
    assert "\r" not in text


def test_messages_need_a_chat_template(cases: Path, tmp_path: Path) -> None:
    corpus = pin(Corpus(path=str(cases / "chat.jsonl"), text_column="messages"))
    with refuses("corpus.text_column", "'messages'"):
        write_tokens(corpus, loading.load_tokenizer(loading.locate("python-3.1M")), tmp_path / "tokens")
