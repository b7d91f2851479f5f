"""Text of every kind is read, split by document in any order, and identified by its content alone."""

import gzip
import json
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from refusals import refuses

from lit_prune.config import Corpus
from lit_prune.data import builtin
from lit_prune.data.corpus import SPLITS, documents, fingerprint, pin, split_of
from lit_prune.store.address import canonical

DROPPED = {
    "encodings", "pydoc_data", "lib2to3", "turtledemo", "ensurepip", "site-packages", "dist-packages", "test",
    "tests", "testing", "idle_test", "__pycache__", "_vendor", "vendor", "lib-dynload", "include",
}  # fmt: skip


def write(path: Path, texts: list[str]) -> Path:
    """The texts as the kind of file that the name asks for."""
    rows = [{"text": text, "other": 1} for text in texts]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pandas as pd

        pd.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress("".join(texts).encode()))
    else:
        path.write_text("".join(texts))
    return path


def read(path: Path, **fields) -> list[str]:
    return [text for _, text in documents(Corpus(path=str(path), **fields))]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_rows_are_documents(tmp_path: Path, texts: list[str], name: str) -> None:
    assert read(write(tmp_path / name, texts)) == texts


def test_a_folder_is_all_its_files(tmp_path: Path, texts: list[str]) -> None:
    write(tmp_path / "b" / "two.parquet", texts[100:200])
    write(tmp_path / "a" / "one.jsonl", texts[:100])
    write(tmp_path / "c.json", texts[200:])
    (tmp_path / "README.md").write_text("not of the corpus")
    assert read(tmp_path) == texts


def test_another_column_and_no_empty_rows(tmp_path: Path) -> None:
    rows = [{"body": "one"}, {"body": " \n"}, {"body": "two"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(tmp_path, text_column="body") == ["one", "two"]


def test_the_home_folder_is_found(tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jsonl", texts)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read(Path("~/a.jsonl")) == read(Path("$HOME/a.jsonl")) == texts


@pytest.mark.parametrize("heldout", [0.1, 0.3])
def test_splits_have_their_share(heldout: float) -> None:
    splits = [split_of(f"document {i}", heldout) for i in range(4000)]
    spread = 4 * (heldout * (1 - heldout) / 4000) ** 0.5
    assert splits.count("validation") / 4000 == pytest.approx(heldout, abs=spread)
    assert splits.count("calibration") / 4000 == pytest.approx(heldout, abs=spread)


def test_the_split_of_a_document_is_its_own(tmp_path: Path, texts: list[str]) -> None:
    """Neither order, nor the other documents, nor a second copy of it changes the split of a document."""

    def splits(name: str, some: list[str]) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for split, text in documents(Corpus(path=str(write(tmp_path / name, some)))):
            found.setdefault(text, set()).add(split)
        return found

    forward = splits("a.jsonl", texts)
    assert splits("b.jsonl", texts[::-1]) == splits("c.jsonl", texts + texts) == forward
    assert splits("d.jsonl", texts[::7]) == {text: forward[text] for text in texts[::7]}
    assert all(len(found) == 1 for found in forward.values())
    assert set.union(*forward.values()) == set(SPLITS)


def test_documents_that_begin_alike_are_told_apart(tmp_path: Path) -> None:
    same = "# Copyright of somebody, all rights reserved.\n" * 20
    source = write(tmp_path / "a.jsonl", [f"{same}{i}" for i in range(200)])
    assert {split for split, _ in documents(Corpus(path=str(source)))} == set(SPLITS)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.parquet"])
def test_fingerprint_is_of_content_and_not_of_place(tmp_path: Path, texts: list[str], name: str) -> None:
    def of(folder: str, some: list[str]) -> str:
        return fingerprint(Corpus(path=str(write(tmp_path / folder / name, some))))

    first = of("here", texts)
    assert of("there", texts) == first
    assert fingerprint(Corpus(path=str(tmp_path / "there"))) == first
    assert of("changed", [*texts[:-1], texts[-1].replace(".", "!")]) != first


def test_fingerprint_knows_how_text_is_read(tmp_path: Path, texts: list[str]) -> None:
    """The same bytes as plain text and as rows, or cut into files elsewhere, are other documents."""
    row = json.dumps({"text": "one"}) + "\n"
    cut = {"whole": [row, row + row], "moved": [row + row, row], "one": [row + row + row]}
    for folder, contents in cut.items():
        for number, content in enumerate(contents):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{number}.txt").write_text(content)
    (tmp_path / "rows.jsonl").write_text(row + row + row)
    sources = [*cut, "rows.jsonl"]
    assert len({fingerprint(Corpus(path=str(tmp_path / source))) for source in sources}) == len(sources)


def test_a_packed_file_is_known_by_what_is_in_it(tmp_path: Path, texts: list[str]) -> None:
    plain, packed = write(tmp_path / "a.txt", texts), write(tmp_path / "a.txt.gz", texts)
    assert fingerprint(Corpus(path=str(plain))) == fingerprint(Corpus(path=str(packed)))


def test_pin_replaces_the_place_in_the_address(tmp_path: Path, texts: list[str]) -> None:
    here = pin(Corpus(path=str(write(tmp_path / "a.jsonl", texts))))
    there = pin(Corpus(path=str(write(tmp_path / "b" / "c.jsonl", texts))))
    assert here != there
    assert canonical(here) == canonical(there)
    (tmp_path / "a.jsonl").unlink()
    assert pin(here) is here


def nothing(path: Path) -> None:
    """Leave the path free."""


BAD: dict[str, tuple[str, Callable[[Path], object], str, str]] = {
    "missing": ("a.txt", nothing, "path", ""),
    "empty file": ("a.txt", lambda path: path.touch(), "path", "empty"),
    "empty rows": ("a.jsonl", lambda path: path.touch(), "path", "empty"),
    "no text in folder": ("a", lambda path: write(path / "model.bin", ["x"]), "path", "no text"),
    "empty folder": ("a", lambda path: path.mkdir(), "path", "no text"),
    "unknown kind": ("a.xml", lambda path: path.write_text("text\nx\n"), "path", "no text"),
    "packed parquet": ("a.parquet.gz", lambda path: path.write_bytes(gzip.compress(b"x")), "path", "no text"),
    "only hidden": ("a", lambda path: write(path / ".git" / "a.txt", ["x"]), "path", "no text"),
    "not packed rows": ("a.jsonl.zst", lambda path: path.write_text("{}"), "path", "read"),
    "rows cut short": ("a.json.gz", lambda p: p.write_bytes(gzip.compress(b'{"text": "x"}' * 99)[:-9]), "path", "read"),
    "broken table": ("a.csv", lambda path: path.write_text('text\n"x\n'), "path", "read"),
    "no such column in a table": ("a.csv", lambda path: path.write_text("body,b\nx,1\n"), "text_column", "body, b"),
    "no nested column": ("a.jsonl", lambda path: path.write_text('{"meta": {"body": 1}}\n'), "text_column", "meta"),
    "no rows but numbers": ("a.json", lambda path: path.write_text("[1, 2]"), "path", "row 1"),
    "a list": ("a.jsonl", lambda path: path.write_text('{"text": ["x", "y"]}\n'), "text_column", "row 1"),
    "latin-1": ("a.txt", lambda path: path.write_bytes("na\u00efve".encode("latin-1")), "path", "UTF-8"),
    "utf-16": ("a.txt", lambda path: path.write_text("text", encoding="utf-16"), "path", "UTF-8"),
    "half a letter": ("a.txt", lambda path: path.write_bytes("caf\u00e9".encode()[:-1]), "path", "UTF-8"),
    "latin-1 rows": ("a.jsonl", lambda path: path.write_bytes(b'{"text": "\xe9"}'), "path", "UTF-8"),
    "packed latin-1": ("a.txt.gz", lambda p: p.write_bytes(gzip.compress(b"caf\xe9s")), "path", "UTF-8"),
    "not packed": ("a.txt.gz", lambda path: path.write_text("plain"), "path", "read"),
    "cut short": ("a.txt.gz", lambda p: p.write_bytes(gzip.compress(b"text" * 99)[:-9]), "path", "read"),
    "no column": ("a.jsonl", lambda path: path.write_text('{"body": "x"}\n'), "text_column", "body"),
    "no such column in parquet": ("a.parquet", lambda path: write(path, ["x"]), "text_column", "text, other"),
    "column of numbers": ("a.jsonl", lambda path: path.write_text('{"text": 2}\n'), "text_column", "row 1"),
    "broken rows": ("a.jsonl", lambda path: path.write_text('{"text": "x"}\n{{{'), "path", "read"),
    "broken parquet": ("a.parquet", lambda path: path.write_text("PAR1 and no more"), "path", "read"),
}


def pin_and_read(corpus: Corpus) -> None:
    """What every run does with a corpus."""
    list(documents(pin(corpus)))


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(tmp_path: Path, case: str) -> None:
    name, make, field, value = BAD[case]
    make(tmp_path / name)
    column = "wanted" if "parquet" in case else "text"
    with refuses(f"corpus.{field}", tmp_path / name, value):
        pin_and_read(Corpus(path=str(tmp_path / name), text_column=column))


def test_an_empty_file_among_others_is_no_error(tmp_path: Path, texts: list[str]) -> None:
    write(tmp_path / "a.jsonl", texts)
    (tmp_path / "b.txt").touch()
    assert fingerprint(Corpus(path=str(tmp_path)))
    assert read(tmp_path) == texts


@pytest.mark.parametrize("source", ["nobody/has-this", "has-no-owner", "no/such/place", "a b"])
def test_a_hub_id_that_cannot_be_reached_is_one_line(source: str) -> None:
    for act in (fingerprint, lambda corpus: list(documents(corpus))):
        with refuses("corpus.path", source):
            act(Corpus(path=source))


@pytest.fixture(scope="module")
def python() -> dict[str, str]:
    """The documents of the default corpus by name."""
    return {document.name: document.text for document in builtin._python()}


def test_the_standard_library_is_source_worth_reading(python: dict[str, str]) -> None:
    assert {"argparse.py", "json/decoder.py", "asyncio/events.py"} <= python.keys()
    for name in python:
        assert not DROPPED & set(name.split("/")[:-1]), name
        assert not name.startswith("_sysconfigdata"), name
    assert all(text.strip() for text in python.values())
    assert len(python) > 500
    assert sum(map(len, python.values())) > 5_000_000


def test_the_language_reference_is_there(python: dict[str, str]) -> None:
    topics = {name: text for name, text in python.items() if name.startswith("topic ")}
    assert {"topic lambda", "topic if", "topic operator-summary"} <= topics.keys()
    assert "lambda" in topics["topic lambda"]


def test_what_is_no_source_is_dropped(tmp_path: Path) -> None:
    for folder in ("", "package", "package/sub", *DROPPED, *(f"package/{name}" for name in DROPPED)):
        write(tmp_path / folder / "module.py", ["x = 1\n"])
    for name in ("_sysconfigdata_linux.py", "config-3.11/x.py", "package/data.txt", "package/lib.so"):
        write(tmp_path / name, ["x = 1\n"])
    write(tmp_path / "empty.py", [" \n"])
    (tmp_path / "latin.py").write_bytes(b"# coding: latin-1\n# caf\xe9\n")
    names = [document.name for document in builtin._sources(tmp_path, prefix="p/")]
    assert names == ["p/module.py", "p/package/module.py", "p/package/sub/module.py"]


def test_the_standard_library_is_split_by_name_wherever_it_lies(
    tmp_path: Path, python: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(Path(sysconfig.get_paths()["stdlib"], "json"), tmp_path / "json")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    elsewhere = {document.name: document.text for document in builtin._python()}
    assert "json/decoder.py" in elsewhere
    assert elsewhere.items() <= python.items()


def test_dependencies_are_only_trained_on(python: dict[str, str]) -> None:
    alone = list(documents(Corpus(path="python")))
    more = list(documents(Corpus(path="python+dependencies")))
    assert more[: len(alone)] == alone
    assert len(more) > len(alone) + 1000
    assert {split for split, _ in more[len(alone) :]} == {"train"}
    assert {split for split, _ in alone} == set(SPLITS)
    assert [split for split, _ in alone] == [split_of(name, Corpus().holdout_fraction) for name in python]
