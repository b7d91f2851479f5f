"""The benchmark of the losses runs, and its ways compute the same loss; times are not asserted."""

import json

import pytest
import torch

from benchmarks.losses import WAYS, Case, Inputs, main
from lit_prune.losses.logit import logit_losses


@pytest.mark.parametrize("loss", ["clm", *logit_losses])
def test_all_ways_give_the_same_loss(loss):
    inputs = Inputs.of(Case(vocab=64, tokens=200, loss=loss, width=16, bfloat16=False))
    first, *others = (way(inputs, loss) for way in WAYS.values())
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-6, atol=0)


@pytest.mark.slow
def test_it_prints_tables_and_writes_what_it_measured(tmp_path, capsys):
    small = ["--vocab", "64", "--tokens", "32", "--width", "8", "--losses", "kld", "--repeats", "2", "--bfloat16"]
    main([*small, "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    (case,) = found["cases"]
    assert [timing["what"] for timing in case["timings"]] == list(WAYS)
    assert case["timings"][0]["ratio"] == 1
    assert all(peak["peak"] >= peak["before"] > 50 for peak in case.get("memory", []))
    assert "| kld, vocabulary 64, 32 tokens, bfloat16 |" in capsys.readouterr().out
