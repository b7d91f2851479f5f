"""Text that changes between resolving a request and tokenising is refused."""

import functools
import gzip
import json
import shutil
import sysconfig
from pathlib import Path

import pytest
from refusals import refuses

from lit_prune.config import Corpus
from lit_prune.data.corpus import documents, fingerprint, pin
from lit_prune.data.tokens import write_tokens
from lit_prune.evaluate.text_loss import measure_text
from lit_prune.evaluate.text_task import Text


def write(path: Path, texts: list[str]) -> Path:
    import pandas as pd

    rows = pd.DataFrame({"text": texts})
    if path.suffix == ".parquet":
        rows.to_parquet(path)
    elif path.suffix == ".csv":
        rows.to_csv(path, index=False)
    else:
        data = "".join(texts) if ".txt" in path.name else "".join(json.dumps({"text": text}) + "\n" for text in texts)
        path.write_bytes(gzip.compress(data.encode()) if path.suffix == ".gz" else data.encode())
    return path


KINDS = ["a.txt", "a.txt.gz", "a.jsonl", "a.jsonl.gz", "a.csv", "a.parquet"]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("max_tokens", [None, 50])
def test_other_text_than_at_the_start_is_refused(
    tmp_path: Path, texts: list[str], tiny_tokenizer, name: str, max_tokens: int | None
) -> None:
    """Also where the change lies behind the last token that is taken."""
    source = write(tmp_path / name, texts)
    corpus = pin(Corpus(path=str(source), holdout_fraction=0.3, max_tokens=max_tokens))
    write_tokens(corpus, tiny_tokenizer, tmp_path / "same")
    write(source, [*texts[:-1], texts[-1].replace("9", "8")])
    with refuses("corpus.path", source):
        write_tokens(corpus, tiny_tokenizer, tmp_path / "other")
    assert not (tmp_path / "other" / "tokens.json").exists()


def test_a_file_that_is_added_to_a_folder_is_refused(tmp_path: Path, texts: list[str]) -> None:
    write(tmp_path / "a.jsonl", texts)
    corpus = pin(Corpus(path=str(tmp_path)))
    write(tmp_path / "b.jsonl", texts[:1])
    with refuses("corpus.path"):
        list(documents(corpus))


def test_a_built_in_text_is_verified_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(Path(sysconfig.get_paths()["stdlib"], "json"), tmp_path / "json")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    corpus = pin(Corpus())
    assert list(documents(corpus))
    with (tmp_path / "json" / "tool.py").open("a") as file:
        file.write("# changed\n")
    with refuses("corpus.path"):
        list(documents(corpus))


def test_a_cell_of_changed_text_is_not_computed(tiny_cell, tiny_runner) -> None:
    path = Path(tiny_cell.corpus.path)
    path.write_text(path.read_text().replace("0: ", "1: ", 1))
    with refuses("corpus.path"):
        tiny_runner.check([tiny_cell])
    assert tiny_runner.store.node(tiny_cell, "tokens").result is None


@pytest.mark.parametrize("limit", [None, 2])
def test_an_evaluation_of_changed_text_is_refused(
    tmp_path: Path, texts: list[str], tiny_llama, tiny_tokenizer, limit: int | None
) -> None:
    source = write(tmp_path / "a.jsonl", texts[:20])
    known = fingerprint(Corpus(path=str(source)))
    text = Text(str(source), limit=limit, fingerprint=known)
    measure = functools.partial(measure_text, tiny_llama, tiny_tokenizer, text)
    assert measure().num_documents == (limit or 20)
    write(source, [*texts[:19], "other"])
    with refuses("corpus.path"):
        measure()
