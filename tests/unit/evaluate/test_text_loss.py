"""The loss of a text by document: by hand, window by window, byte by byte, and over two processes."""

import copy
import json
import math
import multiprocessing
from operator import itemgetter

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from families import CASES, model_of
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import distributed
from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast

from lit_prune.config import ConfigError
from lit_prune.evaluate import text_loss
from lit_prune.evaluate.text_loss import COLUMNS, DocumentLosses, count_windows, measure_text
from lit_prune.evaluate.text_task import Text
from lit_prune.evaluate.window_log import WindowLog
from lit_prune.evaluate.windows import Document, batches, read, rolling_windows, windows

CHOICES = [(1, 1), (4, 1), (5, 2), (7, 7), (16, 3), (128, 128)]


@pytest.fixture
def source(tmp_path, texts):
    return written(tmp_path, texts[:12])


def written(tmp_path, texts, name="text.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def measured(model, tokenizer, source, **given):
    reading = {name: given.pop(name) for name in ("column", "window", "stride", "limit", "windows") if name in given}
    return measure_text(model, tokenizer, Text(source, **reading), **given)


@pytest.fixture
def byte_tokenizer():
    """A token a byte, and a begin token before every text."""
    # Without the byte 255, which no UTF-8 text holds, 256 entries are enough.
    letters = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {"ÿ"})
    vocab = {letter: i + 1 for i, letter in enumerate(letters)} | {"<s>": 0}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def by_plain_passes(model, tokenizer, texts):
    """Nats of every document but its first token, a forward pass each."""
    found = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits
        found.append(F.cross_entropy(logits[0, :-1].double(), ids[0, 1:], reduction="sum").item())
    return found


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
@pytest.mark.parametrize(("length", "first"), [(1, 1), (2, 1), (3, 3), (9, 1), (40, 1), (40, 9), (129, 2)])
def test_every_token_is_scored_once_with_the_context_that_is_promised(length, first, window, stride):
    document = Document(0, range(length), first, 0, 0, 0)
    scored = [
        (t, t - part.start) for part in windows(document, window, stride) for t in range(part.scored, part.stop + 1)
    ]
    assert [token for token, _ in scored] == list(range(first, length))
    assert all(context >= min(token, window - stride + 1) for token, context in scored)
    assert all(context <= window for _, context in scored)


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


def test_a_batch_is_filled_and_not_overfilled():
    parts = [part for n in (30, 5, 9, 9, 2) for part in windows(Document(0, range(n), 1, 0, 0, 0), 16, 16)]
    found = list(batches(parts, 20))
    assert sorted(map(id, parts)) == sorted(id(part) for batch in found for part in batch)
    assert all(len(batch) == 1 or len(batch) * max(map(len, batch)) <= 20 for batch in found)
    assert len(found) < len(parts)


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
    told = []
    how = {"window": 16, "limit": 150}
    found = measured(tiny_llama.train(), tiny_tokenizer, written(tmp_path, texts), **how, progress=told.append)
    assert found.documents["document"].tolist() == list(range(150))
    assert told == sorted(told)
    assert told[-1] == count_windows(128, tiny_tokenizer, Text(written(tmp_path, texts), **how))
    assert told[-1] == sum(math.ceil(tokens / 16) for tokens in found.documents["tokens"])
    assert tiny_llama.training


@pytest.mark.parametrize(
    ("reading", "error"),
    [
        ({"window": 129}, r"--window: must be .* 128.*, got 129$"),
        ({"window": 0}, r"--window: must be at least 1, got 0$"),
        ({"stride": 129}, r"--stride: must be .* 128.*, got 129$"),
        ({"window": 8, "stride": 9}, r"--stride: must be .* 8, got 9$"),
        ({"window": 8, "stride": 0}, r"--stride: must be at least 1, got 0$"),
        ({"stride": 8, "windows": "rolling"}, r"--stride: must be unset .*, got 8$"),
        ({"limit": 0}, r"--limit: must be at least 1, got 0$"),
        ({"column": "story"}, r"'story'.*: text$"),
    ],
)
def test_a_reading_out_of_range_is_refused_in_one_line(tiny_llama, tiny_tokenizer, source, reading, error):
    with pytest.raises(ConfigError, match=error) as refused:
        measured(tiny_llama, tiny_tokenizer, source, **reading)
    assert "\n" not in str(refused.value)


def test_a_family_whose_head_is_not_known_is_refused(tiny_tokenizer, source):
    config = BloomConfig(vocab_size=256, hidden_size=8, n_layer=1, n_head=2)
    with pytest.raises(ConfigError, match="bloom"):
        measured(BloomForCausalLM(config), tiny_tokenizer, source)


def test_a_text_with_nothing_to_score_is_refused(tiny_llama, tiny_tokenizer, tmp_path):
    with pytest.raises(ConfigError, match=r"^--corpus: "):
        measured(tiny_llama, tiny_tokenizer, written(tmp_path, ["a"]))


# --- lm-eval's windows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 4, 7, 16, 128])
@pytest.mark.parametrize("length", [1, 2, 4, 7, 8, 33, 128, 129, 300])
def test_rolling_windows_are_those_of_lm_eval(length, window):
    utils = pytest.importorskip("lm_eval.utils")
    tokens = list(range(length))
    pairs = map(utils.make_disjoint_window, utils.get_rolling_token_windows(tokens, -1, window, 1))
    # Their model reads context and continuation but the last token, and predicts the continuation.
    expected = [((before + asked)[:-1], asked) for before, asked in pairs]
    document = Document(0, [-1, *tokens], 1, 0, 0, 0)
    found = [
        (document.ids[part.start : part.stop], document.ids[part.scored : part.stop + 1])
        for part in rolling_windows(document, window)
    ]
    assert found == expected


@pytest.mark.parametrize("named", ["tiny_tokenizer", "byte_tokenizer"])
def test_rolling_losses_and_counts_are_those_of_lm_eval(named, tiny_llama, texts, tmp_path, request):
    harness = pytest.importorskip("lm_eval.models.huggingface")
    task = pytest.importorskip("lm_eval.api.task")
    metrics = pytest.importorskip("lm_eval.api.metrics")
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    tokenizer = request.getfixturevalue(named)
    documents = [*texts[:4], " ".join(texts[4:8]), " padded \n"]
    requests = [instance("loglikelihood_rolling", {}, (text,), 0) for text in documents]
    theirs = harness.HFLM(pretrained=tiny_llama, tokenizer=tokenizer, batch_size=1, max_length=24)
    logs = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    found = measured(tiny_llama, tokenizer, written(tmp_path, documents), window=24, windows="rolling")
    assert found.documents["nll"].to_numpy() == pytest.approx([-log for log in logs], rel=1e-5)
    words = [task.PerplexityTask.count_words(text) for text in documents]
    num_bytes = [task.PerplexityTask.count_bytes(text) for text in documents]
    assert found.documents["words"].tolist() == words
    assert found.documents["bytes"].tolist() == num_bytes
    expected = metrics.weighted_perplexity(list(zip(logs, words, strict=True)))
    assert found.word_perplexity == pytest.approx(expected, rel=1e-5)
    expected = metrics.bits_per_byte(list(zip(logs, num_bytes, strict=True)))
    assert found.bits_per_byte == pytest.approx(expected, rel=1e-5)


def test_rolling_windows_need_a_token_before_the_first(tiny_llama, tiny_tokenizer, source):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(ConfigError, match=r"^windows: must be sliding"):
        measured(tiny_llama, tokenizer, source, windows="rolling")


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
    asked = measured(model, tiny_tokenizer, source, window=2048)
    assert asked.lm_loss == found.lm_loss


def test_what_was_scored_before_a_stop_is_not_scored_again(tiny_llama, tiny_tokenizer, source, tmp_path, monkeypatch):
    whole = measured(tiny_llama, tiny_tokenizer, source, window=16)
    path, scored = tmp_path / "windows.csv", []

    def stop(count):
        if count > 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(tiny_llama, tiny_tokenizer, source, window=16, log=WindowLog(path), progress=stop, batch_tokens=64)
    kept = path.read_text()
    path.write_text(kept + "7,1")  # killed while it was writing
    losses = text_loss._losses
    monkeypatch.setattr(text_loss, "_losses", lambda model, batch: scored.extend(batch) or losses(model, batch))
    told = []
    again = measured(tiny_llama, tiny_tokenizer, source, window=16, log=WindowLog(path), progress=told.append)
    before = {tuple(map(int, line.split(",")[:2])) for line in kept.splitlines()}
    assert len(before) > 10
    assert not before & {part.place for part in scored}
    assert told[-1] == len(before) + len(scored) == len(path.read_text().splitlines())
    pd.testing.assert_frame_equal(again.documents, whole.documents, rtol=1e-6)


def test_long_documents_are_tokenised_alone(tiny_tokenizer, texts):
    long = " ".join(texts) * (2**20 // len(" ".join(texts)) + 1)
    groups = list(read(tiny_tokenizer, enumerate([texts[0], long, texts[1], texts[2]])))
    assert [[document.place for document in group] for group in groups] == [[0], [1], [2, 3]]


# --- the metric -----------------------------------------------------------------------------------------------------


def parts(*rows):
    return pd.DataFrame(rows, columns=COLUMNS)


def test_parts_of_a_document_are_added_up_and_the_rates_are_those_of_the_sums():
    metric = DocumentLosses()
    metric.update(parts((3, 2.0, 1, 2, 1, 0), (1, 1.0, 1, 4, 1, 0)))
    metric.update(parts((3, 4.0, 2, 0, 0, 1)))
    expected = parts((1, 1.0, 1, 4, 1, 0), (3, 6.0, 3, 2, 1, 1))
    pd.testing.assert_frame_equal(metric.table(), expected)
    found = {name: value.item() for name, value in metric.compute().items()}
    assert found == pytest.approx(
        {
            "lm_loss": 7 / 4,
            "perplexity": math.exp(7 / 4),
            "bits_per_byte": 7 / 6 / math.log(2),
            "word_perplexity": math.exp(7 / 2),
        }
    )
    metric.reset()
    assert metric.table().empty


def score_as_rank(rank, rendezvous, measure, answers):
    """What a forked process answers as one of two."""
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    found = measure()
    answers.put((rank, found.numbers, found.documents))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.parametrize("limit", [1, 5])
def test_two_processes_share_the_documents_and_both_know_the_whole(tiny_llama, tiny_tokenizer, source, tmp_path, limit):
    """With one document the second has none."""

    def measure():
        return measured(tiny_llama, tiny_tokenizer, source, limit=limit, window=20, stride=10)

    alone, fork = measure(), multiprocessing.get_context("fork")
    answers = fork.Queue()
    asked = (tmp_path / "rendezvous", measure, answers)
    both = [fork.Process(target=score_as_rank, args=(rank, *asked), daemon=True) for rank in (0, 1)]
    for process in both:
        process.start()
    found = sorted((answers.get(timeout=120) for _ in both), key=itemgetter(0))
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    for _, numbers, documents in found:
        assert numbers == pytest.approx(alone.numbers, rel=1e-6)
        pd.testing.assert_frame_equal(documents, alone.documents, rtol=1e-6)
