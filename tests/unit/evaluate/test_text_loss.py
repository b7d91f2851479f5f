"""The loss of a text by document: by hand, window by window, byte by byte, and over two processes."""

import math

import pandas as pd
import pytest
import torch
from families import CASES, model_of
from refusals import refuses
from scored_texts import CHOICES, by_plain_passes, measured, written
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast

from lit_prune.evaluate import text_loss
from lit_prune.evaluate.text_loss import count_windows
from lit_prune.evaluate.text_task import Text
from lit_prune.evaluate.window_log import WindowLog


def test_a_window_as_long_as_the_documents_is_a_plain_pass(tiny_llama, tiny_tokenizer, texts, source):
    found = measured(tiny_llama, tiny_tokenizer, source)
    expected = by_plain_passes(tiny_llama, tiny_tokenizer, texts[:12])
    assert found.documents["nll"].to_numpy() == pytest.approx(expected, rel=1e-5)
    tokens = [len(tiny_tokenizer(text)["input_ids"]) - 1 for text in texts[:12]]
    assert found.documents["tokens"].tolist() == tokens
    assert found.lm_loss == pytest.approx(sum(expected) / sum(tokens), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.lm_loss))
    assert (found.num_tokens, found.num_documents) == (sum(tokens), 12)


@pytest.mark.parametrize(("window", "stride"), CHOICES)
def test_windows_are_passes_over_pieces(tiny_llama, tiny_tokenizer, texts, source, window, stride):
    found = measured(tiny_llama, tiny_tokenizer, source, window=window, stride=stride, limit=1)
    ids, expected = tiny_tokenizer(texts[0])["input_ids"], 0.0
    for token in range(1, len(ids)):
        # The first window that reaches as far as to predict it.
        start = max(0, math.ceil((token - window) / stride)) * stride
        with torch.no_grad():
            logits = tiny_llama(input_ids=torch.tensor([ids[start:token]])).logits[0, -1].double()
        expected -= logits.log_softmax(-1)[ids[token]].item()
    assert found.documents["nll"].tolist() == pytest.approx([expected], rel=1e-5)


@pytest.mark.parametrize("family", CASES)
def test_what_fills_a_batch_up_is_seen_by_no_family(family, tmp_path):
    tokenizer = Tokenizer(models.WordLevel({str(i): i for i in range(96)}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    texts = [" ".join(str(7 * i % 96) for i in range(length, 3 * length)) for length in (3, 20, 11)]
    model = model_of(family, torch.float64)
    found = measured(model, tokenizer, written(tmp_path, texts)).documents
    assert found["nll"].to_numpy() == pytest.approx(by_plain_passes(model, tokenizer, texts), rel=1e-6)


def test_more_context_is_worth_something_to_a_model_that_looks_back(tiny_tokenizer, source, shared):
    from lit_prune.models.loading import load_model, load_tokenizer

    folder = str(shared / "models/stories260K-hf")
    stories = str(shared / "data/tinystories/tinystories_1000.json")
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    long, short, sliding = (
        measured(model, tokenizer, stories, window=window, stride=stride, limit=5).lm_loss
        for window, stride in ((512, 512), (32, 32), (32, 8))
    )
    assert long < sliding < short


def test_a_model_that_knows_nothing_takes_as_many_bits_as_a_token_can_tell_apart(tiny_llama, tiny_tokenizer, source):
    torch.nn.init.zeros_(tiny_llama.lm_head.weight)
    for choice in CHOICES:
        found = measured(tiny_llama, tiny_tokenizer, source, window=choice[0], stride=choice[1])
        assert found.perplexity == pytest.approx(256)
        assert found.bits_per_byte == pytest.approx(8 * found.num_tokens / found.num_bytes)
        assert found.word_perplexity == pytest.approx(256 ** (found.num_tokens / found.num_words))


def test_a_loss_that_is_not_a_number_is_an_error(tiny_llama, tiny_tokenizer, source):
    tiny_llama.lm_head.weight.data[7] = math.nan
    with pytest.raises(FloatingPointError, match="nan"):
        measured(tiny_llama, tiny_tokenizer, source)


def test_a_text_behind_a_begin_token_is_scored_whole(tiny_llama, byte_tokenizer, tmp_path):
    texts = ["a", "Grüße, 漢字!", "  two words\n"]
    torch.nn.init.zeros_(tiny_llama.lm_head.weight)
    found = measured(tiny_llama, byte_tokenizer, written(tmp_path, texts))
    sizes = [len(text.encode()) for text in texts]
    assert found.documents["bytes"].tolist() == sizes
    assert found.documents["tokens"].tolist() == sizes
    assert found.bits_per_byte == pytest.approx(8)
    assert found.documents["words"].tolist() == [1, 2, 2]
    assert found.num_unread == 0


def test_what_a_tokenizer_loses_is_counted(tiny_llama, tiny_tokenizer, tmp_path):
    found = measured(tiny_llama, tiny_tokenizer, written(tmp_path, ["all read", "übel, 漢 there", "ü"]))
    assert found.documents["unread"].tolist() == [0, 5, 2]
    assert found.documents["tokens"].tolist()[2] == found.documents["bytes"].tolist()[2] == 0


@pytest.mark.parametrize("batch_tokens", [1, 50, 300])
def test_the_size_of_a_batch_and_what_else_is_in_it_change_nothing(tiny_llama, tiny_tokenizer, source, batch_tokens):
    model = tiny_llama.double()
    whole = measured(model, tiny_tokenizer, source, window=24, stride=10)
    parts = measured(model, tiny_tokenizer, source, window=24, stride=10, batch_tokens=batch_tokens)
    pd.testing.assert_frame_equal(whole.documents, parts.documents, rtol=1e-6)
    assert parts.lm_loss == pytest.approx(whole.lm_loss, rel=1e-6)


def test_the_order_of_the_documents_changes_nothing(tiny_llama, tiny_tokenizer, texts, tmp_path):
    there = measured(tiny_llama, tiny_tokenizer, written(tmp_path, texts[:9]))
    back = measured(tiny_llama, tiny_tokenizer, written(tmp_path, texts[8::-1], "back.jsonl"))
    assert back.documents["nll"].to_numpy()[::-1] == pytest.approx(there.documents["nll"].to_numpy(), rel=1e-6)
    assert back.bits_per_byte == pytest.approx(there.bits_per_byte, rel=1e-6)


def test_few_logits_at_a_time_give_the_same(tiny_llama, tiny_tokenizer, source, monkeypatch):
    whole = measured(tiny_llama, tiny_tokenizer, source)
    monkeypatch.setattr(text_loss, "tokens_at_once", lambda vocab, on_gpu: 7)
    assert measured(tiny_llama, tiny_tokenizer, source).lm_loss == pytest.approx(whole.lm_loss, rel=1e-6)


def test_a_limit_takes_the_first_documents_and_their_windows_are_told_of(tiny_llama, tiny_tokenizer, texts, tmp_path):
    reported = []
    how = {"window": 16, "limit": 150}
    found = measured(tiny_llama.train(), tiny_tokenizer, written(tmp_path, texts), **how, on_progress=reported.append)
    assert found.documents["document"].tolist() == list(range(150))
    assert reported == sorted(reported)
    assert reported[-1] == count_windows(128, tiny_tokenizer, Text(written(tmp_path, texts), **how))
    assert reported[-1] == sum(math.ceil(tokens / 16) for tokens in found.documents["tokens"])
    assert tiny_llama.training


@pytest.mark.parametrize(
    ("reading", "field", "values"),
    [
        ({"window": 129}, "--window", (128, "got 129")),
        ({"window": 0}, "--window", ("got 0",)),
        ({"stride": 129}, "--stride", (128, "got 129")),
        ({"window": 8, "stride": 9}, "--stride", (8, "got 9")),
        ({"window": 8, "stride": 0}, "--stride", ("got 0",)),
        ({"stride": 8, "windows": "rolling"}, "--stride", ("rolling", "got 8")),
        ({"limit": 0}, "--limit", ("got 0",)),
        ({"column": "story"}, "corpus.text_column", ("'story'", "text")),
    ],
)
def test_a_reading_out_of_range_is_refused_in_one_line(tiny_llama, tiny_tokenizer, source, reading, field, values):
    with refuses(field, *values):
        measured(tiny_llama, tiny_tokenizer, source, **reading)


def test_a_family_whose_head_is_not_known_is_refused(tiny_tokenizer, source):
    config = BloomConfig(vocab_size=256, hidden_size=8, n_layer=1, n_head=2)
    with refuses("teacher.model", "bloom"):
        measured(BloomForCausalLM(config), tiny_tokenizer, source)


def test_a_text_with_nothing_to_score_is_refused(tiny_llama, tiny_tokenizer, tmp_path):
    with refuses("--corpus"):
        measured(tiny_llama, tiny_tokenizer, written(tmp_path, ["a"]))


# --- long texts -----------------------------------------------------------------------------------------------------


def test_the_default_window_is_capped(tiny_tokenizer, texts, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=131_072,
    )  # fmt: skip
    torch.manual_seed(0)
    model, source = LlamaForCausalLM(config), written(tmp_path, [" ".join(texts)])
    found = measured(model, tiny_tokenizer, source)
    assert (found.window, found.stride) == (2048, 2048)
    assert found.num_tokens > 2 * 2048
    explicit = measured(model, tiny_tokenizer, source, window=2048)
    assert explicit.lm_loss == found.lm_loss


def test_what_was_scored_before_a_stop_is_not_scored_again(tiny_llama, tiny_tokenizer, source, tmp_path, monkeypatch):
    whole = measured(tiny_llama, tiny_tokenizer, source, window=16)
    path, scored = tmp_path / "windows.csv", []

    def stop(count):
        if count > 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(
            tiny_llama, tiny_tokenizer, source, window=16, log=WindowLog(tmp_path), on_progress=stop, batch_tokens=64
        )
    kept = path.read_text()
    path.write_text(kept + "7,1")  # killed while it was writing
    losses = text_loss._losses
    monkeypatch.setattr(text_loss, "_losses", lambda model, batch: scored.extend(batch) or losses(model, batch))
    reported = []
    again = measured(
        tiny_llama, tiny_tokenizer, source, window=16, log=WindowLog(tmp_path), on_progress=reported.append
    )
    before = {tuple(map(int, line.split(",")[:2])) for line in kept.splitlines()}
    assert len(before) > 10
    assert not before & {part.place for part in scored}
    assert reported[-1] == len(before) + len(scored) == len(path.read_text().splitlines())
    pd.testing.assert_frame_equal(again.documents, whole.documents, rtol=1e-6)


def test_what_other_ranks_have_scored_is_not_scored_again(tmp_path):
    """A rank may have been killed while it wrote, and the next run may have fewer."""
    for rank in range(3):
        WindowLog(tmp_path, rank).add([(rank, 1), (rank, 17)], [0.5 * rank, 1 / 3])
    with (tmp_path / "windows.2.csv").open("a") as file:
        file.write("5,1,0.")
    found = WindowLog(tmp_path, 1).nats
    assert found == {(rank, first): nats for rank in range(3) for first, nats in ((1, 0.5 * rank), (17, 1 / 3))}
    assert (tmp_path / "windows.2.csv").read_text().endswith("5,1,0.")  # its rank may be writing
    WindowLog(tmp_path, 2)
    assert not (tmp_path / "windows.2.csv").read_text().endswith("5,1,0.")
