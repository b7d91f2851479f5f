"""Rolling windows give the numbers of lm-eval."""

import copy

import pytest
from refusals import refuses
from scored_texts import measured, written


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
    with refuses("windows", "sliding"):
        measured(tiny_llama, tokenizer, source, windows="rolling")
