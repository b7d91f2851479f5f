"""Windows over documents: scored tokens, their context, and the reading of documents."""

import pytest
from scored_texts import CHOICES
from tokenizers import processors

from lit_prune.evaluate.windows import Document, batches, read, rolling_windows, windows


@pytest.mark.parametrize(("window", "stride"), CHOICES)
@pytest.mark.parametrize(("length", "first"), [(1, 1), (2, 1), (3, 3), (9, 1), (40, 1), (40, 9), (129, 2)])
def test_every_token_is_scored_once_with_the_context_that_is_promised(length, first, window, stride):
    document = Document(0, range(length), first, 0, 0, 0)
    scored = [
        (t, t - part.start) for part in windows(document, window, stride) for t in range(part.scored, part.stop + 1)
    ]
    assert [token for token, _ in scored] == list(range(first, length))
    assert all(context >= min(token, window - stride + 1) for token, context in scored)
    assert all(context <= window for _, context in scored)


def test_without_a_begin_token_the_bytes_are_those_of_the_scored_text(byte_tokenizer):
    byte_tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    (documents,) = read(byte_tokenizer, enumerate(["word and word", "漢字", "x", "é"]))
    # A character that the first token holds a part of is not scored at all: all that is counted is told by a token.
    assert [(d.first, d.num_bytes, d.num_scored, d.num_words) for d in documents] == [
        (1, 12, 12, 3), (3, 3, 3, 1), (1, 0, 0, 0), (2, 0, 0, 0),
    ]  # fmt: skip


def test_what_a_tokenizer_puts_behind_a_text_is_not_scored(byte_tokenizer):
    marks = [("<s>", 0), ("</s>", 1)]
    byte_tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=marks)
    ((document,),) = read(byte_tokenizer, [(7, "four")])
    assert (document.place, document.ids[0], len(document.ids), document.num_scored) == (7, 0, 5, 4)


def test_a_batch_is_filled_and_not_overfilled():
    parts = [part for n in (30, 5, 9, 9, 2) for part in windows(Document(0, range(n), 1, 0, 0, 0), 16, 16)]
    found = list(batches(parts, 20))
    assert sorted(map(id, parts)) == sorted(id(part) for batch in found for part in batch)
    assert all(len(batch) == 1 or len(batch) * max(map(len, batch)) <= 20 for batch in found)
    assert len(found) < len(parts)


# --- lm-eval's windows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 4, 7, 16, 128])
@pytest.mark.parametrize("length", [1, 2, 4, 7, 8, 33, 128, 129, 300])
def test_rolling_windows_are_those_of_lm_eval(length, window):
    utils = pytest.importorskip("lm_eval.utils")
    tokens = list(range(length))
    pairs = map(utils.make_disjoint_window, utils.get_rolling_token_windows(tokens, -1, window, 1))
    # Their model reads context and continuation but the last token, and predicts the continuation.
    expected = [((before + continuation)[:-1], continuation) for before, continuation in pairs]
    document = Document(0, [-1, *tokens], 1, 0, 0, 0)
    found = [
        (document.ids[part.start : part.stop], document.ids[part.scored : part.stop + 1])
        for part in rolling_windows(document, window)
    ]
    assert found == expected


def test_long_documents_are_tokenised_alone(tiny_tokenizer, texts):
    long = " ".join(texts) * (2**20 // len(" ".join(texts)) + 1)
    groups = list(read(tiny_tokenizer, enumerate([texts[0], long, texts[1], texts[2]])))
    assert [[document.place for document in group] for group in groups] == [[0], [1], [2, 3]]
