"""Kneser-Ney by hand and against plain Python, and its comparison with a teacher."""

import json
import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refuses

from lit_prune.cli.pretrain import main
from lit_prune.config import Pretraining
from lit_prune.config.overrides import plain_of
from lit_prune.data.corpus import split_of
from lit_prune.evaluate.teacher_quality import recipe_of, worth
from lit_prune.evaluate.trigram import KneserNeyTrigram

# Trigrams 012 twice, 120 201 013 130 301 once: n1 = 5, n2 = 1, D = 5/7.
# Continuations: 01 after two tokens, 12 20 13 30 after one: D = 4/6. 0 ends two of them, 1 2 3 one: D = 3/5.
TOKENS = np.array([0, 1, 2, 0, 1, 3, 0, 1, 2])


def probability(model: KneserNeyTrigram, *ngram: int) -> float:
    return float(model.probability(np.array([ngram]))[0])


def test_values_by_hand() -> None:
    model = KneserNeyTrigram.fit(TOKENS, vocab_size=5)
    unseen = 3 / 5 * 4 / 5 / 5
    unigram = (1 - 3 / 5) / 5 + unseen
    bigram = (1 - 2 / 3) / 2 + 2 / 3 * unigram
    trigram = (2 - 5 / 7) / 3 + 5 / 7 * 2 / 3 * bigram
    assert [order.discount for order in model.orders] == pytest.approx([3 / 5, 2 / 3, 5 / 7])
    assert probability(model, 4) == pytest.approx(unseen)
    assert probability(model, 2) == pytest.approx(unigram)
    assert probability(model, 1, 2) == pytest.approx(bigram)
    assert probability(model, 0, 1, 2) == pytest.approx(trigram)
    assert trigram == pytest.approx(0.5638095, abs=1e-7)


def test_an_unseen_context_backs_off() -> None:
    model = KneserNeyTrigram.fit(TOKENS, vocab_size=5)
    assert probability(model, 4, 1, 2) == probability(model, 1, 2)
    assert probability(model, 1, 4, 2) == probability(model, 4, 2) == probability(model, 2)


@pytest.mark.parametrize("context", [(), (1,), (4,), (0, 0), (0, 1), (2, 1), (4, 4)])
@pytest.mark.parametrize("tokens", [TOKENS, np.zeros(4, int), np.arange(5)], ids=["few", "same", "different"])
def test_all_continuations_share_one(tokens: np.ndarray, context: tuple[int, ...]) -> None:
    model = KneserNeyTrigram.fit(tokens, vocab_size=5)
    found = [probability(model, *context, token) for token in range(5)]
    assert sum(found) == pytest.approx(1)
    assert min(found) > 0


def plain_python(train: list[int], heldout: list[int], vocab_size: int) -> list[float]:
    """The same model from dictionaries of tuples, written from the formula: nats of every held-out token."""
    counts = {3: Counter(zip(train, train[1:], train[2:], strict=False))}
    for length in (2, 1):
        counts[length] = Counter(longer[1:] for longer in counts[length + 1])
    discounts, following = {}, defaultdict(dict)
    for length, table in counts.items():
        once, twice = (sum(n == times for n in table.values()) for times in (1, 2))
        discounts[length] = once / (once + 2 * twice)
        for ngram, count in table.items():
            following[ngram[:-1]][ngram[-1]] = count

    def p(context: tuple[int, ...], token: int) -> float:
        lower = p(context[1:], token) if context else 1 / vocab_size
        seen = following.get(context)
        if not seen:
            return lower
        discount = discounts[len(context) + 1]
        kept = max(seen.get(token, 0) - discount, 0)
        return (kept + discount * len(seen) * lower) / sum(seen.values())

    return [-math.log(p(tuple(heldout[max(0, i - 2) : i]), heldout[i])) for i in range(len(heldout))]


def test_agrees_with_plain_python() -> None:
    draw = np.random.default_rng(0)
    train, heldout = (np.minimum(draw.geometric(0.1, size), 50) - 1 for size in (2000, 300))
    nats = KneserNeyTrigram.fit(train.astype(np.uint16), vocab_size=50).nats(heldout.astype(np.uint16))
    np.testing.assert_allclose(nats, plain_python(train.tolist(), heldout.tolist(), 50), rtol=1e-12)


def test_the_first_token_of_a_block_is_not_scored_but_seen() -> None:
    model = KneserNeyTrigram.fit(TOKENS, vocab_size=5)
    stream = np.array([0, 1, 2, 0, 1, 3])
    scored = [(0, 1), (0, 1, 2), (2, 0, 1), (0, 1, 3)]
    expected = -np.mean([math.log(probability(model, *ngram)) for ngram in scored])
    assert model.nats_per_token(stream, seq_len=3) == pytest.approx(expected)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_short_streams_are_scored(size: int) -> None:
    nats = KneserNeyTrigram.fit(TOKENS, vocab_size=5).nats(TOKENS[:size])
    assert nats.shape == (size,)
    assert np.isfinite(nats).all()


@pytest.mark.parametrize(
    ("tokens", "vocab_size", "limit"),
    [([0, 1], 5, "3"), ([0, 1, 5], 5, "4"), ([0, 1, 2], 2**22, "64")],
)
def test_what_cannot_be_counted_is_refused(tokens: list[int], vocab_size: int, limit: str) -> None:
    with pytest.raises(ValueError, match=limit):
        KneserNeyTrigram.fit(np.array(tokens), vocab_size)


@pytest.fixture
def save_teacher(tmp_path: Path, tiny_llama, tiny_tokenizer):
    """A maker of teachers that give every token 1/256, with a card of the texts they were trained on."""

    def save(texts: list[str]) -> Path:
        source, folder = tmp_path / "texts.jsonl", tmp_path / "teacher"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        torch.nn.init.zeros_(tiny_llama.lm_head.weight)
        tiny_llama.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        recipe = plain_of(Pretraining(seq_len=16))
        recipe["corpus"] |= {"source": str(source), "heldout": 0.3}
        (folder / "card.json").write_text(json.dumps({"recipe": recipe}))
        return folder

    return save


def test_a_teacher_that_knows_nothing_is_worth_nothing(texts, save_teacher) -> None:
    folder = save_teacher(texts)
    found = worth(folder)
    assert found["teacher"] == pytest.approx(math.log(256), abs=1e-5)
    assert found["trigram"] < found["teacher"] - 1
    assert found["gap"] == found["trigram"] - found["teacher"]
    assert found["scored"] % 15 == 0
    assert not found["same_text"]
    assert main(["--check", str(folder)]) == 1


def test_a_teacher_that_counting_cannot_follow_is_worth_something(save_teacher) -> None:
    """Held-out texts of letters that no train text has: a uniform guess beats all that was counted."""
    candidates = [f"{letters * 9}{i}" for i in range(400) for letters in ("abcab", "QRSTQ")]
    wanted = {"a": "train", "Q": "validation"}
    texts = [text for text in candidates if split_of(text, 0.3) in (wanted[text[0]], "calibration")]
    assert main(["--check", str(save_teacher(texts))]) == 0


def test_a_card_without_source_is_of_the_default_corpus(tmp_path: Path) -> None:
    recipe = plain_of(Pretraining(max_steps=5))
    del recipe["corpus"]["path"]
    (tmp_path / "card.json").write_text(json.dumps({"recipe": recipe}))
    assert recipe_of(tmp_path) == Pretraining(max_steps=5)
    assert recipe_of(tmp_path).corpus.path == "python+dependencies"


def test_a_folder_without_teacher_is_refused_in_one_line(tmp_path: Path, capsys) -> None:
    with refuses("--check", tmp_path):
        worth(tmp_path)
    assert main(["--check", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
