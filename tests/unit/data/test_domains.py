"""Text by domain: sequences of one domain each, shares by hand, and draws that follow them and can be resumed."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refuses

from lit_prune.config import Corpus
from lit_prune.data.corpus import fingerprint
from lit_prune.data.domains import DomainShares, updated_shares
from lit_prune.data.tokens import SPLITS, TokenSequences, write_tokens

SEQ_LEN = 16


@pytest.fixture
def corpus(tmp_path: Path, texts: list[str]) -> Corpus:
    """Rows of two domains, one in three from "wiki", in turns."""
    rows = ({"text": text, "meta": {"set": "wiki" if i % 3 == 0 else "code"}} for i, text in enumerate(texts))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Corpus(path=str(path), domain="meta.set")


def ids_of(tokens: Path, split: str, domain: str) -> list[int]:
    """The scored tokens of a domain, sequence after sequence in the order of the text."""
    sequences = TokenSequences(tokens, split, SEQ_LEN)  # type: ignore[arg-type]
    ours = sequences.members()[sequences.domains.index(domain)]
    parts = sorted(ours, key=lambda i: sequences._starts[i])
    return [token for i in parts for token in sequences[int(i)]["labels"].tolist() if token >= 0]


@pytest.mark.parametrize("split", SPLITS)
def test_a_sequence_has_one_domain_and_no_token_is_lost(
    tmp_path: Path, corpus: Corpus, texts: list[str], tiny_tokenizer: Any, split: str
) -> None:
    counts = write_tokens(corpus, tiny_tokenizer, tmp_path / "tokens")
    for domain, picked in {"wiki": lambda i: i % 3 == 0, "code": lambda i: i % 3 > 0}.items():
        alone = tmp_path / f"{domain}.jsonl"
        alone.write_text("".join(json.dumps({"text": text}) + "\n" for i, text in enumerate(texts) if picked(i)))
        write_tokens(Corpus(path=str(alone)), tiny_tokenizer, tmp_path / domain)
        ids = np.fromfile(tmp_path / domain / f"{split}.bin", np.uint16).tolist()
        ids = ids[: len(ids) - (len(ids) % SEQ_LEN == 1)]
        assert ids_of(tmp_path / "tokens", split, domain) == ids
    about = json.loads((tmp_path / "tokens" / "tokens.json").read_text())
    assert list(about["domains"][split]) == ["code", "wiki"]
    assert sum(about["domains"][split].values()) == counts[split]


def test_whole_sequences_come_first(tmp_path: Path, corpus: Corpus, tiny_tokenizer: Any) -> None:
    write_tokens(corpus, tiny_tokenizer, tmp_path / "tokens")
    sequences = TokenSequences(tmp_path / "tokens", "train", SEQ_LEN)
    padded = [bool((sequence["labels"] < 0).any()) for sequence in sequences]  # type: ignore[attr-defined]
    assert padded == [False] * sequences.num_whole + [True] * (len(sequences) - sequences.num_whole)
    sizes = json.loads((tmp_path / "tokens" / "tokens.json").read_text())["domains"]["train"]
    assert sequences.num_whole == sum(size // SEQ_LEN for size in sizes.values())


def test_shares_by_hand() -> None:
    """0.5 e^0.2 and 0.5 e^0, as a loss below its reference counts as one at it."""
    found = updated_shares([0.5, 0.5], [2.2, 1.0], [2.0, 3.0])
    e = float(np.exp(0.2))
    assert found == pytest.approx([e / (e + 1), 1 / (e + 1)])
    assert updated_shares([0.3, 0.7], [1.0, 1.0], [1.0, 1.0]) == pytest.approx([0.3, 0.7])
    assert updated_shares([0.5, 0.5], [1000.0, 1.0], [0.0, 0.0]) == pytest.approx([1.0, 0.0])


def shares_of(start: tuple[float, float] = (0.25, 0.75)) -> DomainShares:
    return DomainShares([np.arange(5), np.arange(5, 12)], start, batch_size=8, seed=3)


def counts_of(steps: list[tuple[int, ...]]) -> float:
    """Share of the first domain."""
    return sum(i < 5 for step in steps for i in step) / sum(map(len, steps))


def test_draws_follow_the_shares_and_take_each_sequence_once_per_pass() -> None:
    steps = list(shares_of().steps(0, 500))
    assert counts_of(steps) == pytest.approx(0.25, abs=0.03)
    counts = Counter(i for step in steps for i in step)
    for domain in (range(5), range(5, 12)):
        assert max(counts[i] for i in domain) - min(counts[i] for i in domain) <= 1
    assert len({len(set(step) & set(range(5))) for step in steps}) > 2


def test_a_change_holds_from_its_step_on() -> None:
    shares, steps = shares_of(), []
    for number, step in enumerate(shares.steps(0, 400)):
        steps.append(step)
        if number == 199:
            shares.change(200, [0.9, 0.1])
    assert steps[:200] == list(shares_of().steps(0, 200))
    assert counts_of(steps[200:]) == pytest.approx(0.9, abs=0.03)
    resumed = shares_of()
    resumed.history = shares.history
    assert list(resumed.steps(150, 400)) == steps[150:]
    with pytest.raises(RuntimeError, match="drawn already"):
        shares.change(399, [0.5, 0.5])


def test_a_corpus_without_such_domains_is_refused(tmp_path: Path, corpus: Corpus, tiny_tokenizer: Any) -> None:
    with refuses("corpus.domain", "meta.kind"):
        write_tokens(Corpus(path=corpus.path, domain="meta.kind"), tiny_tokenizer, tmp_path / "tokens")
    rows = Path(corpus.path)
    rows.write_text(rows.read_text() + json.dumps({"text": "x", "meta": {"set": None}}) + "\n")
    with refuses("corpus.domain", "meta.set", 301):
        write_tokens(corpus, tiny_tokenizer, tmp_path / "tokens")
    rows.write_text(rows.read_text().replace('{"set": null}', '{"set": "rare"}'))
    with refuses("corpus.domain", "rare"):
        write_tokens(corpus, tiny_tokenizer, tmp_path / "tokens")
    plain = tmp_path / "plain.txt"
    plain.write_text("some text")
    for path, domain in ((str(plain), "meta.set"), ("docstrings", "meta.set"), ("readmes", "package")):
        with refuses("corpus.domain", domain):
            fingerprint(Corpus(path=path, domain=domain))
    write_tokens(Corpus(path=corpus.path), tiny_tokenizer, tmp_path / "without")
    with refuses("corpus.domain"):
        TokenSequences(tmp_path / "without", "train", SEQ_LEN).members()
