"""Every file format gives the same documents; unread files are named."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from refusals import refuses

from lit_prune.config import Corpus
from lit_prune.data.corpus import Reader, documents, fingerprint, pin, split_of

TEXTS = ['one\ntwo, "three"', "caf\u00e9 \u2028 line", "a\r\nb", *(f"document {i}" for i in range(30))]


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


ROWS = [{"text": text, "other": i} for i, text in enumerate(TEXTS)]
JSONL = lines(ROWS)
TABLE = pd.DataFrame(ROWS).to_csv(index=False).encode()
WRITTEN: dict[str, bytes] = {
    "a.jsonl": JSONL,
    "b.ndjson": JSONL.replace(b"\n", b"\n\n"),
    "c.jsonl.gz": gzip.compress(JSONL),
    "d.jsonl.zst": zstd(JSONL[:500]) + zstd(JSONL[500:]),
    "e.json": json.dumps(ROWS).encode(),
    "f.json": b"\n" + json.dumps(ROWS, indent=1).encode(),
    "g.json.gz": gzip.compress(json.dumps(ROWS, indent=1).encode()),
    "h.json": JSONL,
    "i.json": json.dumps(TEXTS).encode(),
    "j.csv": TABLE,
    "k.csv.gz": gzip.compress(TABLE),
    "l.csv": b"\xef\xbb\xbf" + TABLE,
    "m.jsonl": b"\xef\xbb\xbf" + JSONL,
    "n.csv.zst": zstd(TABLE),
}


@pytest.mark.parametrize("name", [*WRITTEN, "o.parquet"])
def test_each_format_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".parquet"):
        pd.DataFrame(ROWS).to_parquet(path)
    else:
        path.write_bytes(WRITTEN[name])
    assert list(documents(pin(Corpus(path=str(path))))) == [(split_of(text, 0.1), text) for text in TEXTS]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.txt.gz", "a.txt.zst"])
def test_plain_text_loses_its_byte_order_mark_and_carriage_returns(tmp_path: Path, name: str) -> None:
    data = b"\xef\xbb\xbf" + "na\u00efve\r\ntext\r\n".encode() * 50
    pack: Callable[[bytes], bytes] = {".gz": gzip.compress, ".zst": zstd}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(pack(data))
    assert "".join(text for _, text in documents(pin(Corpus(path=str(tmp_path / name))))) == "na\u00efve\ntext\n" * 50


NESTED = [{"meta": {"text": text, "n": i}, "id": i} for i, text in enumerate(TEXTS)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_dots_lead_into_nested_columns(tmp_path: Path, name: str) -> None:
    if name == "a.jsonl":
        (tmp_path / name).write_bytes(lines([*NESTED, {"meta": None, "id": 0}]))
    else:
        pd.DataFrame(NESTED).to_parquet(tmp_path / name)
    corpus = pin(Corpus(path=str(tmp_path / name), text_column="meta.text", group="meta.n"))
    assert list(documents(corpus)) == [(split_of(str(i), 0.1), text) for i, text in enumerate(TEXTS)]


def test_a_column_whose_name_has_a_dot_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([{"meta.text": "literal", "meta": {"text": "nested"}}]))
    pd.DataFrame([{"meta.text": "literal"}]).to_parquet(tmp_path / "b.parquet")
    assert [text for _, text in documents(Corpus(path=str(tmp_path), text_column="meta.text"))] == ["literal"] * 2


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv"])
def test_rows_without_text_are_skipped_and_counted(tmp_path: Path, name: str) -> None:
    rows = pd.DataFrame({"text": ["one", None, "two", " \n"]})
    if name == "a.parquet":
        rows.to_parquet(tmp_path / name)
    elif name == "a.csv":
        rows.to_csv(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(lines([{"text": t} for t in ["one", None, "two", " \n"]]) + b'{"id": 1}\n')
    reader = Reader(Corpus(path=str(tmp_path / name)))
    assert [passage.content for passage in reader] == ["one", "two"]
    assert reader.skipped == (3 if name == "a.jsonl" else 2)


def test_other_columns_may_be_anything(tmp_path: Path) -> None:
    """`datasets` gives every column a type by its first rows, and fails where a later row has another one."""
    rows = [{"text": "x", "score": None}] * 5000 + [
        {"text": "x", "score": "web"},
        {"text": "x", "score": [1, {"a": 2}]},
    ]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    assert sum(1 for _ in documents(Corpus(path=str(tmp_path / "a.jsonl")))) == 5002


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud83d b"}\n')
    assert [text for _, text in documents(Corpus(path=str(tmp_path / "a.jsonl")))] == ["a? b"]


def test_a_folder_names_what_it_ignores_and_reads_nothing_hidden(tmp_path: Path, caplog) -> None:
    for name in (".git/objects/a.txt", ".hidden.txt", "sub/.cache/a.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"text": "hidden"}\n')
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS))
    (tmp_path / "empty.parquet").touch()
    for name in ("README.md", "model.bin", "notes.docx", "z.py"):
        (tmp_path / name).write_text("ignored")
    assert [text for _, text in documents(pin(Corpus(path=str(tmp_path))))] == TEXTS
    assert caplog.messages == [f"corpus.path: {tmp_path}: ignored README.md, model.bin, notes.docx and 1 more"]
    caplog.clear()
    alone = Corpus(path=str(tmp_path / "a.jsonl"))
    assert fingerprint(alone) == fingerprint(Corpus(path=str(tmp_path)))
    assert [record for record in caplog.records if "a.jsonl" in record.message] == []


def test_markdown_is_read_where_it_is_the_text(tmp_path: Path) -> None:
    for number, text in enumerate(("# one", "# two")):
        (tmp_path / f"{number}.md").write_text(text)
    assert [text for _, text in documents(Corpus(path=str(tmp_path)))] == ["# one", "# two"]


def test_a_broken_row_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS[:2]) + b'{"text": \n')
    with refuses("corpus.path", "a.jsonl", "line 3"):
        list(documents(Corpus(path=str(tmp_path / "a.jsonl"))))


def test_real_data_is_read(shared: Path) -> None:
    """Every file format as the world writes it, with its known number of documents."""
    found = list(documents(Corpus(path=str(shared / "data" / "tinystories" / "tinystories_1000.json"))))
    assert len(found) == 1000
    shakespeare = shared / "data" / "tinyshakespeare" / "input.txt"
    assert "".join(text for _, text in documents(Corpus(path=str(shakespeare)))) == shakespeare.read_text()
    tasks = shared / "data" / "tasks"
    assert sum(1 for _ in documents(Corpus(path=str(tasks / "HumanEval.jsonl.gz"), text_column="prompt"))) == 164
