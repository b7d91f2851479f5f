"""Plain text is split by document, and one long document into contiguous parts."""

import dataclasses
import gzip
import importlib.metadata
import json
import random
from collections import defaultdict
from pathlib import Path

import pytest
from refusals import refuses

from lit_prune.config import ConfigError, Corpus
from lit_prune.data import corpus as corpora
from lit_prune.data import passages
from lit_prune.data.corpus import SPLITS, Reader, documents, fingerprint, pin, split_of


def splits_of(corpus: Corpus) -> dict[str, str]:
    """The text of each split, in the order of reading."""
    found: dict[str, str] = defaultdict(str)
    for split, text in documents(corpus):
        found[split] += text
    return dict(found)


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.txt.gz", "a.tokens"])
@pytest.mark.parametrize("heldout", [0.1, 0.3])
def test_one_document_is_cut_into_three_contiguous_parts(
    tmp_path: Path, texts: list[str], name: str, heldout: float
) -> None:
    whole = "".join(texts)
    data = whole.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    found = splits_of(Corpus(path=str(tmp_path / name), holdout_fraction=heldout))
    assert list(found) == ["validation", "calibration", "train"]
    assert "".join(found.values()) == whole
    assert all(text.endswith("\n") for text in found.values())
    longest = max(map(len, texts))
    for split in ("validation", "calibration"):
        assert len(found[split]) == pytest.approx(heldout * len(whole), abs=longest)


def test_a_document_that_is_not_split_is_whole(tmp_path: Path, texts: list[str]) -> None:
    (tmp_path / "a.txt").write_text("".join(texts))
    assert list(corpora.texts(Corpus(path=str(tmp_path / "a.txt")))) == ["".join(texts)]


def test_a_text_of_one_line_is_cut_between_words(tmp_path: Path) -> None:
    words = " ".join(f"word{i}" for i in range(2000))
    (tmp_path / "a.txt").write_text(words)
    found = splits_of(Corpus(path=str(tmp_path / "a.txt"), holdout_fraction=0.1))
    assert [word for split in found.values() for word in split.split()] == words.split()
    assert found.keys() == set(SPLITS)


def test_parts_of_a_document_are_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first passage of a part begins it and only the last one ends it."""
    monkeypatch.setattr(passages, "LONGEST", 100)
    (tmp_path / "a.txt").write_text("a line of words\n" * 200)
    flags = defaultdict(list)
    for passage in Reader(Corpus(path=str(tmp_path / "a.txt"))):
        assert len(passage.content) <= 100
        flags[passage.split].append((passage.begins, passage.ends))
    assert flags.keys() == set(SPLITS)
    for found in flags.values():
        assert len(found) > 2
        assert found == [(True, False), *[(False, False)] * (len(found) - 2), (False, True)]


@pytest.mark.parametrize("separator", ["\n\n\n", "--\n", "x"])
def test_a_separator_parts_documents_as_split_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str
) -> None:
    """Wherever the separators lie relative to what is read at once."""
    monkeypatch.setattr(passages, "LONGEST", 16)
    draw = random.Random(separator)
    for number in range(30):
        whole = "".join(draw.choice(["\n", "-", "x", "ab ", separator]) for _ in range(draw.randint(1, 150)))
        (tmp_path / "a.txt").write_text(whole)
        with (tmp_path / "a.txt").open() as stream:
            found: list[str] = []
            for begins, text in passages.pieces(stream, separator):
                if begins:
                    found.append(text)
                else:
                    found[-1] += text
        assert found == whole.split(separator), number


def test_documents_between_separators_are_split_whole(tmp_path: Path, texts: list[str]) -> None:
    texts = [text.strip() for text in texts]
    (tmp_path / "a.txt").write_text("\n\n\n".join([*texts, " \n"]))
    found = list(documents(Corpus(path=str(tmp_path / "a.txt"), separator="\n\n\n")))
    assert found == [(split_of(text, 0.1), text) for text in texts]
    assert {split for split, _ in found} == set(SPLITS)


def test_files_of_a_folder_are_documents(tmp_path: Path, texts: list[str]) -> None:
    for number, text in enumerate(texts[:60]):
        (tmp_path / f"{number:02}.txt").write_text(text)
    assert list(documents(Corpus(path=str(tmp_path)))) == [(split_of(text, 0.1), text) for text in texts[:60]]


def test_an_article_of_wikitext_is_a_document(tmp_path: Path) -> None:
    """A title stands between blank lines; a section has more equals signs, and so may a line of a table one."""
    first = " \n = Robert = \n \n Robert is an actor . \n \n = = Career = = \n \n He acts . \n = Goals ; A = \n"
    second = " \n = Du Fu = \n \n Du Fu was a poet . \n"
    (tmp_path / "wiki.tokens").write_text(first + second)
    found = [text for _, text in documents(Corpus(path=str(tmp_path / "wiki.tokens")))]
    assert found == [first.removeprefix(" \n") + " \n", second.removeprefix(" \n")]


def test_wikitext_has_its_published_number_of_articles(shared: Path) -> None:
    for name, number in (("train", 600), ("valid", 60)):
        path = shared / "data" / "wikitext-2" / f"wiki.{name}.tokens"
        found = [text for _, text in documents(Corpus(path=str(path)))]
        assert len(found) == number
        assert "".join(found).strip() == path.read_text().strip()


def test_a_readme_is_a_document() -> None:
    found = {text: split for split, text in documents(Corpus(path="readmes", holdout_fraction=0.2))}
    for package in ("torch", "lightning", "pandas"):
        text = str(importlib.metadata.metadata(package).json["description"])
        assert found[text] == split_of(package, 0.2)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv"])
def test_rows_of_a_group_share_a_split(tmp_path: Path, texts: list[str], name: str) -> None:
    import pandas as pd

    rows = pd.DataFrame({"text": texts, "book": [f"book {i % 40}" for i in range(len(texts))]})
    path = tmp_path / name
    if name == "a.csv":
        rows.to_csv(path, index=False)
    elif name == "a.parquet":
        rows.to_parquet(path)
    else:
        rows.to_json(path, orient="records", lines=True)
    found = list(documents(Corpus(path=str(path), group="book")))
    assert found == [(split_of(book, 0.1), text) for text, book in zip(texts, rows["book"], strict=True)]


BAD: dict[str, tuple[str, dict[str, str], str]] = {
    "separator of nothing": ("a.txt", {"separator": ""}, "corpus.separator"),
    "separator of rows": ("a.jsonl", {"separator": "\n"}, "corpus.separator"),
    "separator of a built-in text": ("python", {"separator": "\n"}, "corpus.separator"),
    "group of plain text": ("a.txt", {"group": "book"}, "corpus.group"),
    "group of a built-in text": ("readmes", {"group": "book"}, "corpus.group"),
    "no such group": ("a.jsonl", {"group": "book"}, "corpus.group"),
}


@pytest.mark.parametrize("case", BAD)
def test_fields_without_effect_are_refused(tmp_path: Path, case: str) -> None:
    name, fields, field = BAD[case]
    (tmp_path / name).write_text('{"text": "x"}\n')
    source = name if "." not in name else str(tmp_path / name)
    with refuses(field):
        list(documents(pin(Corpus(path=source, **fields))))


def test_text_split_by_document_has_other_fingerprints(tmp_path: Path) -> None:
    """Results of the pieces of earlier versions are not found again."""
    import hashlib

    (tmp_path / "a.txt").write_text("text\n")
    assert fingerprint(Corpus(path=str(tmp_path / "a.txt"))) != hashlib.sha256(b"text\ntext 5").hexdigest()
    row = json.dumps({"text": "x"}) + "\n"
    (tmp_path / "a.jsonl").write_text(row)
    before = hashlib.sha256(row.encode() + f"json {len(row)}".encode()).hexdigest()
    assert fingerprint(Corpus(path=str(tmp_path / "a.jsonl"))) != before


def wikitext(number: int) -> list[str]:
    """The rows of an article as the hub has them: lines, blank ones empty."""
    return ["", f" = Title {number} = \n", "", f" Text of {number} . \n", "", " = = Section = = \n", "", " More . \n"]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.json.gz"])
def test_rows_that_are_lines_of_articles_are_split_by_article(tmp_path: Path, name: str) -> None:
    """Also an article that begins in one file and ends in the next."""
    import pandas as pd

    rows = [line for number in range(60) for line in wikitext(number)]
    for place, part in (("0", rows[:101]), ("1", rows[101:])):
        path = tmp_path / f"{place}{name}"
        if name.endswith(".parquet"):
            pd.DataFrame({"text": part}).to_parquet(path)
        else:
            pd.DataFrame({"text": part}).to_json(path, orient="records", lines=True)
    found = list(documents(pin(Corpus(path=str(tmp_path)))))
    assert len(found) == 60
    assert {split for split, _ in found} == set(SPLITS)
    for number, (split, text) in enumerate(found):
        assert text.startswith(f" = Title {number} = \n")
        assert text.endswith(" More . \n")
        assert split == split_of(text, 0.1)


def test_rows_of_other_articles_are_documents(tmp_path: Path) -> None:
    rows = ["", "= Title =", "", "Text .", " = Title = \n"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    assert [text for _, text in documents(pin(Corpus(path=str(tmp_path / "a.jsonl"))))] == [row for row in rows if row]


def test_an_array_is_not_read_to_know_its_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`status` and `--dry-run` would hold all of it in memory."""
    (tmp_path / "a.json").write_text("\n" + json.dumps([{"text": line} for line in wikitext(0)], indent=1))
    monkeypatch.setattr(json, "loads", lambda text: pytest.fail("parsed"))
    assert len(fingerprint(Corpus(path=str(tmp_path / "a.json")))) == 64


C4 = [
    {"text": f"Page {number} of a site.", "timestamp": "2019-04-25T12:57:54Z", "url": f"https://{number % 40}.org/x"}
    for number in range(400)
]


@pytest.fixture
def c4(tmp_path: Path) -> Path:
    """A folder with two shards as C4 has them."""
    for shard in range(2):
        lines = "".join(json.dumps(row) + "\n" for row in C4[shard * 200 : (shard + 1) * 200])
        path = tmp_path / "c4" / "en" / f"c4-train.{shard:05}-of-01024.json.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(lines.encode()))
    return tmp_path / "c4"


def test_shards_of_c4_are_split_by_page_or_by_site(c4: Path) -> None:
    pages = list(documents(pin(Corpus(path=str(c4)))))
    assert pages == [(split_of(row["text"], 0.1), row["text"]) for row in C4]
    sites = list(documents(pin(Corpus(path=str(c4), group="url"))))
    assert sites == [(split_of(row["url"], 0.1), row["text"]) for row in C4]
    (one,) = c4.rglob("*00001-of-01024*")
    assert list(documents(pin(Corpus(path=str(one))))) == pages[200:]


def hub_of(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, str]]) -> None:
    """Let `datasets`, which has no network here, stream these rows for every data set of the hub."""
    import datasets

    streamed = datasets.Dataset.from_list(rows).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **options: streamed)


def test_rows_of_the_hub_are_split_by_row_or_group(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_of(monkeypatch, C4)
    pinned = Corpus(path="allenai/c4", fingerprint="0" * 40 + "+2")
    assert list(documents(pinned)) == [(split_of(row["text"], 0.1), row["text"]) for row in C4]
    found = list(documents(dataclasses.replace(pinned, group="url")))
    assert found == [(split_of(row["url"], 0.1), row["text"]) for row in C4]
    with pytest.raises(ConfigError, match=r"corpus.group: .* has no column .book."):
        list(documents(dataclasses.replace(pinned, group="book")))


def test_wikitext_of_the_hub_is_split_by_article(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_of(monkeypatch, [{"text": line} for number in range(20) for line in wikitext(number)])
    found = [text for _, text in documents(Corpus(path="Salesforce/wikitext", fingerprint="0" * 40 + "+2"))]
    assert [text.splitlines()[0] for text in found] == [f" = Title {number} = " for number in range(20)]
    with pytest.raises(ConfigError, match=r"^corpus.group: "):
        list(documents(Corpus(path="Salesforce/wikitext", group="page", fingerprint="0" * 40 + "+2")))


def test_books_are_split_whole(shared: Path) -> None:
    """Three newlines also part the chapters of these books: a book begins with its title."""
    path = shared / "data" / "books" / "books.txt.gz"
    book, where = 0, defaultdict(set)
    for passage in Reader(Corpus(path=str(path), separator="# Title: ")):
        book += passage.begins
        where[book].add(passage.split)
    assert book == 129
    assert all(len(splits) == 1 for splits in where.values())
    assert set.union(*where.values()) == set(SPLITS)
