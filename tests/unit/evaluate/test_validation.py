"""Validation losses by hand; validations during a run change nothing and survive an interruption."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from lit_prune.config import Corpus, Distill, Execution, Optimizer
from lit_prune.data.corpus import documents, fingerprint
from lit_prune.distill.callbacks import Checks, check_steps
from lit_prune.distill.train import train
from lit_prune.evaluate.validation import sizes_of, validation_losses

RECIPE = Distill(seq_len=16, batch_size=4, max_steps=6, temperature=2.0, optimizer=Optimizer(lr=3e-3, warmup_steps=2))
CPU = Execution(accelerator="cpu", grad_accum_steps=1, checkpoint_seconds=0.0, log_every=2)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    draw = np.random.default_rng(0)
    for split in ("train", "validation", "calibration"):
        draw.integers(1, 256, 16 * 40).astype(np.uint16).tofile(folder / f"{split}.bin")
    about = {"dtype": "uint16", "eos": 0, "num_tokens": dict.fromkeys(("train", "validation", "calibration"), 640)}
    (folder / "tokens.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def student(tiny_llama):
    return disturbed(tiny_llama)


def disturbed(model):
    """A model of the same shape with other weights."""
    import copy

    other = copy.deepcopy(model).requires_grad_(True)  # a teacher is frozen by the first run it serves
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return other


def batches():
    ids = torch.randint(0, 256, (3, 2, 12), generator=torch.Generator().manual_seed(2))
    labels = ids.clone()
    labels[2, 1, 7:] = -100
    return [{"input_ids": i, "labels": label} for i, label in zip(ids, labels, strict=True)]


def means(losses):
    return {name: loss.mean for name, loss in losses.items()}


def test_the_losses_are_sums_over_the_scored_tokens_of_a_sequence_at_the_recipes_temperature(student, tiny_llama):
    found = validation_losses(student, tiny_llama, RECIPE, batches())
    cross_entropy, divergence, count = ([0.0] * 6, [0.0] * 6, [0] * 6)
    with torch.no_grad():
        for number, batch in enumerate(batches()):
            ours, theirs = (model(batch["input_ids"]).logits.double() for model in (student, tiny_llama))
            for row in range(2):
                sequence = 2 * number + row
                for place in range(11):
                    label = batch["labels"][row, place + 1]
                    if label != -100:
                        count[sequence] += 1
                        cross_entropy[sequence] -= F.log_softmax(ours[row, place], -1)[label].item()
                        p, q = (F.softmax(x[row, place] / 2, -1) for x in (theirs, ours))
                        divergence[sequence] += (p * (p / q).log()).sum().item()
    assert count == [11, 11, 11, 11, 11, 6]
    assert all(loss.tokens.tolist() == count for loss in found.values())
    assert found["lm_loss"].sums.tolist() == pytest.approx(cross_entropy, rel=1e-5)
    assert found["kd_loss"].sums.tolist() == pytest.approx(divergence, rel=1e-5)
    by_hand = {"lm_loss": sum(cross_entropy) / 61, "kd_loss": sum(divergence) / 61}
    assert means(found) == pytest.approx(by_hand, rel=1e-5)
    assert means(validation_losses(student, None, RECIPE, batches())) == {"lm_loss": found["lm_loss"].mean}


@pytest.mark.parametrize("training", [True, False])
def test_the_student_is_left_in_the_mode_it_was_in(student, tiny_llama, training):
    student.train(training)
    validation_losses(student, tiny_llama, RECIPE, batches())
    assert student.training is training


def test_the_checks_part_a_run_equally():
    assert check_steps(50, 5) == {10, 20, 30, 40, 50}
    assert check_steps(7, 3) == {2, 5, 7}


class Stop(Exception):
    """The interruption."""


def run(model, teacher, tokens, folder, *, checked, stop_at=None):
    folder.mkdir(exist_ok=True)

    def evaluate(student, at_end):
        return validation_losses(student, teacher if at_end else None, RECIPE, batches())

    def on_progress(step, row):
        if step == stop_at:
            raise Stop

    checks = [Checks(folder / "checks.csv", check_steps(6, 3), evaluate)] if checked else []
    train(model, teacher, RECIPE, tokens, folder, seed=0, execution=CPU, on_progress=on_progress, callbacks=checks)
    return checks[0] if checks else model


def test_checks_change_nothing_and_begin_before_the_first_step(tiny_llama, tokens, tmp_path):
    plain = run(disturbed(tiny_llama), tiny_llama, tokens, tmp_path / "plain", checked=False)
    checked = disturbed(tiny_llama)
    checks = run(checked, tiny_llama, tokens, tmp_path / "checked", checked=True)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), checked.parameters(), strict=True))
    rows = pd.read_csv(tmp_path / "checked" / "checks.csv")
    assert list(rows["step"]) == [0, 2, 4, 6]
    assert list(rows["kd_loss"].notna()) == [True, False, False, True]
    before, after = disturbed(tiny_llama), checked
    for row, model in ((0, before), (3, after)):
        expected = means(validation_losses(model, tiny_llama, RECIPE, batches()))
        assert means(checks.ends[rows.loc[row, "step"]]) == pytest.approx(expected, rel=1e-12)
        assert rows.loc[row, ["lm_loss", "kd_loss"]].to_dict() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_an_interruption_loses_and_repeats_no_check(tiny_llama, tokens, tmp_path, stop):
    uncut = run(disturbed(tiny_llama), tiny_llama, tokens, tmp_path / "whole", checked=True)
    with pytest.raises(Stop):
        run(disturbed(tiny_llama), tiny_llama, tokens, tmp_path / "cut", checked=True, stop_at=stop)
    resumed = run(disturbed(tiny_llama), tiny_llama, tokens, tmp_path / "cut", checked=True)
    assert list(uncut.ends) == list(resumed.ends) == [0, 6]
    for step, name in itertools.product((0, 6), ("lm_loss", "kd_loss")):
        assert torch.equal(uncut.ends[step][name].sums, resumed.ends[step][name].sums)
        assert torch.equal(uncut.ends[step][name].tokens, resumed.ends[step][name].tokens)
    whole, cut = (pd.read_csv(tmp_path / name / "checks.csv") for name in ("whole", "cut"))
    pd.testing.assert_frame_equal(whole, cut, check_exact=True)


def test_tied_tables_are_counted_once(tiny_llama):
    tables = 2 * 256 * 32
    sizes = sizes_of(tiny_llama)
    assert sizes["parameters"] - sizes["parameters_without_embeddings"] == tables
    tiny_llama.config.tie_word_embeddings = True
    tiny_llama.lm_head.weight = tiny_llama.model.embed_tokens.weight
    tied = sizes_of(tiny_llama)
    assert tied["parameters"] - tied["parameters_without_embeddings"] == tables // 2
    assert tied["parameters_without_embeddings"] == sizes["parameters_without_embeddings"]


def test_the_readmes_are_prose_on_every_machine_and_fall_into_all_splits():
    corpus = Corpus(path="readmes", holdout_fraction=0.45)
    splits = {split for split, _ in documents(corpus)}
    assert splits == {"train", "validation", "calibration"}
    whole = "".join(text for _, text in documents(corpus))
    assert "PyTorch" in whole
    assert len(whole) > 100_000
    assert fingerprint(corpus) == fingerprint(corpus)
    assert fingerprint(corpus) != fingerprint(Corpus(path="python"))
