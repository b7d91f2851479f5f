"""The metric sums the parts of documents, alone and over two processes."""

import math
import multiprocessing
from operator import itemgetter

import pandas as pd
import pytest
from scored_texts import measured
from torch import distributed

from lit_prune.evaluate.text_loss import COLUMNS, DocumentLosses

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
    arguments = (tmp_path / "rendezvous", measure, answers)
    both = [fork.Process(target=score_as_rank, args=(rank, *arguments), daemon=True) for rank in (0, 1)]
    for process in both:
        process.start()
    found = sorted((answers.get(timeout=120) for _ in both), key=itemgetter(0))
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    for _, numbers, documents in found:
        assert numbers == pytest.approx(alone.numbers, rel=1e-6)
        pd.testing.assert_frame_equal(documents, alone.documents, rtol=1e-6)
