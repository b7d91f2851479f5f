"""Training runs: repeated, interrupted and resumed, diverging, accumulated."""

from __future__ import annotations

import dataclasses
import random
import shutil
import time
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import pytest
import torch
from distilled import ALL_STATES, VOCAB, gradients, llama, student_of
from safetensors import safe_open
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lit_prune.config import ConfigError, Corpus, Distill, Execution, Optimizer
from lit_prune.data.retraining import RetrainingData
from lit_prune.data.tokens import write_tokens
from lit_prune.distill.callbacks import Diverged
from lit_prune.distill.module import Distiller
from lit_prune.distill.train import micro_batches, train

BLOCK, BLOCKS, BATCH, STEPS = 16, 22, 4, 12


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BLOCKS blocks of text of 47 words, in which each word has two successors; the last block is not full."""
    return written(tmp_path_factory.mktemp("part"), BLOCKS * BLOCK - 5)


@pytest.fixture(scope="module")
def full_tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with every block full."""
    return written(tmp_path_factory.mktemp("full"), BLOCKS * BLOCK)


def written(folder: Path, num_tokens: int) -> Path:
    draw, word = random.Random(0), 0
    texts = folder / "texts"
    texts.mkdir()
    for i in range(60):
        words = [word := (2 * word + draw.randrange(2)) % (VOCAB - 1) for _ in range(30)]
        (texts / f"{i:02}.txt").write_text(f"{' '.join(f'w{w}' for w in words)}\n")
    corpus = Corpus(path=str(texts), holdout_fraction=0.1, max_tokens=num_tokens)
    counts = write_tokens(corpus, word_tokenizer(), folder / "tokens")
    assert counts["train"] == num_tokens
    return folder / "tokens"


def word_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<end>": 0} | {f"w{i}": i + 1 for i in range(VOCAB - 1)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


RECIPE = Distill(
    alpha="dynamic", ce_weight=0.5, seq_len=BLOCK, batch_size=BATCH, max_steps=STEPS,
    optimizer=Optimizer(lr=3e-3, warmup_steps=2),
    **ALL_STATES,
)  # fmt: skip

QUICK = Execution(accelerator="cpu", grad_accum_steps=1, checkpoint_seconds=0.0, log_every=5)


class Stop(Exception):
    """The interruption."""


def run(
    tokens: Path, folder: Path, *, recipe: Distill = RECIPE, stop_at: int | None = None, seed: int = 0,
    student: Any = None, dropout: float = 0.0, **execution: Any,
) -> Any:  # fmt: skip
    """Train a student in `folder`, from where it was interrupted if it was; interrupt it at step `stop_at`."""
    folder.mkdir(exist_ok=True)
    student = student if student is not None else student_of(dropout=dropout)

    def tell(step: int, row: dict[str, float]) -> None:
        if step == stop_at:
            raise Stop

    how = dataclasses.replace(QUICK, **execution)
    try:
        train(student, llama(), recipe, tokens, folder, seed=seed, execution=how, tell=tell)
    except Stop:
        assert stop_at is not None
    else:
        assert stop_at is None
    return student


def rows(folder: Path) -> pd.DataFrame:
    """metrics.csv without the speed, which is never the same."""
    return pd.read_csv(folder / "metrics.csv").drop(columns="tokens_per_second")


@dataclasses.dataclass
class Run:
    """A run that was never interrupted."""

    student: LlamaForCausalLM
    folder: Path


class Whole:
    """Runs of RECIPE that were never interrupted, each made once."""

    def __init__(self, tokens: Path, folder: Path) -> None:
        self.tokens, self.folder = tokens, folder
        self.made: dict[tuple[float, int], Run] = {}

    def __call__(self, dropout: float, accumulate: int) -> Run:
        how = dropout, accumulate
        if how not in self.made:
            folder = self.folder / f"{dropout} {accumulate}"
            self.made[how] = Run(run(self.tokens, folder, dropout=dropout, grad_accum_steps=accumulate), folder)
        return self.made[how]


@pytest.fixture(scope="module")
def whole(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tokens, tmp_path_factory.mktemp("whole"))


def equal(a: nn.Module, b: nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in a.state_dict().items())


def test_the_same_seed_gives_the_same_weights_and_history_bit_for_bit(whole, tmp_path):
    first = whole(0.1, 1)
    assert equal(first.student, run(whole.tokens, tmp_path / "again", dropout=0.1))
    pd.testing.assert_frame_equal(rows(first.folder), rows(tmp_path / "again"), check_exact=True)
    assert not equal(first.student, run(whole.tokens, tmp_path / "other", dropout=0.1, seed=1))
    assert not equal(first.student, whole(0.0, 1).student)


@pytest.mark.parametrize(
    ("stops", "dropout", "accumulate"),
    [((1,), 0.0, 1), ((3,), 0.1, 1), ((6, 7), 0.1, 1), ((5, 11), 0.1, 2), ((12, 12), 0.0, 2)],
)
def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(whole, tmp_path, stops, dropout, accumulate):
    """A pass over the 22 blocks ends in the middle of step 6; a step is told before its checkpoint is written."""
    uninterrupted = whole(dropout, accumulate)
    for stop in stops:
        run(whole.tokens, tmp_path, dropout=dropout, grad_accum_steps=accumulate, stop_at=stop)
        assert (tmp_path / "last.ckpt").exists() == (stop > 1)
    resumed = run(whole.tokens, tmp_path, dropout=dropout, grad_accum_steps=accumulate)
    assert equal(resumed, uninterrupted.student)
    pd.testing.assert_frame_equal(rows(tmp_path), rows(uninterrupted.folder), check_exact=True)


@pytest.mark.slow
def test_workers_that_read_ahead_lose_and_repeat_nothing(whole, tmp_path):
    for stop in (4, 8):
        run(whole.tokens, tmp_path, stop_at=stop, num_workers=2)
    assert equal(run(whole.tokens, tmp_path, num_workers=2), whole(0.0, 1).student)


def test_a_run_that_was_over_when_it_was_interrupted_is_found_as_it_was(whole, tmp_path):
    over = whole(0.0, 1)
    folder = shutil.copytree(over.folder, tmp_path / "run")
    assert equal(run(whole.tokens, folder), over.student)
    pd.testing.assert_frame_equal(rows(folder), rows(over.folder), check_exact=True)


def test_a_checkpoint_is_never_of_half_a_step(whole, tmp_path):
    """The time for one comes between the two micro-batches of step 3, whose gradients no checkpoint holds."""
    slow, calls = student_of(dropout=0.1), iter(range(1, 100))
    slow.register_forward_pre_hook(lambda *_: time.sleep(0.6) if next(calls) == 5 else None)
    run(whole.tokens, tmp_path, grad_accum_steps=2, student=slow, stop_at=3, checkpoint_seconds=0.5)
    assert equal(run(whole.tokens, tmp_path, grad_accum_steps=2, dropout=0.1), whole(0.1, 2).student)
    pd.testing.assert_frame_equal(rows(tmp_path), rows(whole(0.1, 2).folder), check_exact=True)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4)])
def test_a_run_may_go_on_in_other_micro_batches(whole, tmp_path, before, after):
    run(whole.tokens, tmp_path, stop_at=6, grad_accum_steps=before)
    resumed = run(whole.tokens, tmp_path, grad_accum_steps=after)
    close(resumed, whole(0.0, 1).student)
    pd.testing.assert_frame_equal(rows(tmp_path), rows(whole(0.0, 1).folder), rtol=1e-4)


def close(a: nn.Module, b: nn.Module) -> None:
    for name, value in a.state_dict().items():
        torch.testing.assert_close(value, b.state_dict()[name], rtol=1e-4, atol=2e-5)


def test_no_half_written_checkpoint_is_left(tokens, tmp_path):
    run(tokens, tmp_path, stop_at=4)
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt"}
    run(tokens, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "metrics.csv"}


def test_a_checkpoint_holds_the_student_and_the_projection_and_no_teacher(tokens, tmp_path):
    student = run(tokens, tmp_path, stop_at=2)
    saved = torch.load(tmp_path / "last.ckpt")["state_dict"]
    ours = {f"student.{name}" for name in student.state_dict()}
    assert set(saved) == ours | {"projection.weight", "projection.bias"}
    assert saved["projection.weight"].shape == (32, 24)


def test_a_trained_student_is_saved_without_the_projection(tokens, tmp_path):
    student = run(tokens, tmp_path / "run")
    student.save_pretrained(tmp_path / "model")
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(student.state_dict())
    assert equal(LlamaForCausalLM.from_pretrained(tmp_path / "model"), student)
    assert not student.training


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_make_the_same_step(whole, accumulate):
    together, cut = whole(0.0, 1), whole(0.0, accumulate)
    close(cut.student, together.student)
    pd.testing.assert_frame_equal(rows(cut.folder), rows(together.folder), rtol=1e-4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_step_is_told_once_with_the_newest_row(tokens, tmp_path, accumulate):
    told = []
    how = dataclasses.replace(QUICK, grad_accum_steps=accumulate)
    train(
        student_of(), llama(), RECIPE, tokens, tmp_path, seed=0, execution=how,
        tell=lambda step, row: told.append((step, row.get("step"))),
    )  # fmt: skip
    newest = [None] * 4 + [5] * 5 + [10] * 2 + [12]
    assert told == list(zip(range(1, STEPS + 1), newest, strict=True))


def test_a_row_is_the_mean_of_its_steps(tokens, tmp_path):
    run(tokens, tmp_path / "each", log_every=1)
    run(tokens, tmp_path / "some", log_every=5)
    each, some = rows(tmp_path / "each"), rows(tmp_path / "some")
    assert each["step"].tolist() == list(range(1, STEPS + 1))
    assert some["step"].tolist() == [5, 10, 12]
    for name in ("loss", "ce_loss", "kd_loss", "hidden_loss", "grad_norm"):
        means = [each[name][a:b].mean() for a, b in ((0, 5), (5, 10), (10, 12))]
        assert some[name].tolist() == pytest.approx(means, rel=1e-5)


def test_the_first_row_is_of_the_first_batch_and_its_gradient_before_clipping(tokens, tmp_path):
    recipe = dataclasses.replace(RECIPE, alpha=0.0, optimizer=Optimizer(max_grad_norm=1e-3))
    run(tokens, tmp_path, recipe=recipe, log_every=1)
    data = RetrainingData(tokens, block=BLOCK, batch=BATCH, steps=STEPS, seed=0)
    first = next(iter(data.train_dataloader()))
    module = Distiller(student_of(), llama(), recipe)
    loss = module.objective(first["input_ids"], first["labels"])["loss"]
    norm = torch.stack([g.norm() for g in gradients(module, loss)]).norm()
    row = rows(tmp_path).iloc[0]
    assert (row["loss"], row["grad_norm"]) == pytest.approx((loss.item(), norm.item()), rel=1e-4)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_loss_that_is_no_number_stops_the_run(tokens, tmp_path, precision):
    broken = student_of()
    broken.lm_head.weight.data[3, 3] = float("nan")
    recipe = dataclasses.replace(RECIPE, precision=precision)
    with pytest.raises(Diverged, match="the loss is nan at step 5"):
        run(tokens, tmp_path, student=broken, recipe=recipe, checkpoint_seconds=1e9)
    assert rows(tmp_path)["loss"].isna().tolist() == [True]


def test_a_run_that_diverges_on_the_way_stops_at_the_next_row(tokens, tmp_path):
    recipe = dataclasses.replace(RECIPE, optimizer=Optimizer(lr=1e30, min_lr=1e30, warmup_steps=0))
    with pytest.raises(Diverged, match="at step 5"):
        run(tokens, tmp_path, recipe=recipe, checkpoint_seconds=1e9)


@pytest.mark.parametrize(
    ("place", "message"), [("loss", "the loss"), ("weight", "a weight"), ("moment", "the optimizer's state")]
)
@pytest.mark.parametrize("step", [3, STEPS])
def test_no_checkpoint_holds_a_number_that_is_not_finite(whole, tmp_path, place, message, step):
    """The poison comes in before the checkpoint of the step; a healthy run in the same folder starts clean."""
    saved = []

    class Poison(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            if trainer.global_step > 1:
                saved.append(torch.load(tmp_path / "last.ckpt")["global_step"])
            if trainer.global_step == step:
                parameter = next(module.parameters())
                moment = trainer.optimizers[0].state[parameter]["exp_avg_sq"]
                poisoned = {"loss": outputs["loss"], "weight": parameter.data, "moment": moment}[place]
                poisoned[(0,) * poisoned.dim()] = float("inf")

    how = dataclasses.replace(QUICK, log_every=100)
    with pytest.raises(Diverged, match=f"{message} is not finite at step {step}"):
        train(
            student_of(), llama(), RECIPE, whole.tokens, tmp_path, seed=0, execution=how, tell=lambda *_: None,
            callbacks=[Poison()],
        )  # fmt: skip
    assert saved == list(range(1, step))
    assert not (tmp_path / "last.ckpt").exists()
    if step < STEPS and place == "weight":
        assert equal(run(whole.tokens, tmp_path), whole(0.0, 1).student)


def test_weights_that_the_last_update_breaks_are_told_at_the_end(tokens, tmp_path):
    class Poison(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            if trainer.global_step == STEPS:
                next(module.parameters()).data[0, 0] = float("nan")

    how = dataclasses.replace(QUICK, checkpoint_seconds=1e9)
    with pytest.raises(Diverged, match=f"a weight is not finite at step {STEPS}"):
        train(
            student_of(), llama(), RECIPE, tokens, tmp_path, seed=0, execution=how, tell=lambda *_: None,
            callbacks=[Poison()],
        )  # fmt: skip


@pytest.mark.parametrize(
    ("batch", "block", "vocab_size", "parts"),
    [
        (8, 256, 2048, 1),
        (8, 1024, 128 * 1024, 4),  # a sequence's logits are half a GiB
        (6, 1024, 128 * 1024, 3),
        (6, 1024, 64 * 1024, 2),  # room for 4 sequences, of which 3 make equal parts
        (7, 1024, 64 * 1024, 7),
        (8, 4096, 256 * 1024, 8),  # one sequence is over a GiB and cannot be cut
    ],
)
def test_micro_batches_are_the_fewest_equal_ones_whose_logits_fit(batch, block, vocab_size, parts):
    assert micro_batches(Distill(batch_size=batch, seq_len=block), vocab_size, Execution()) == parts


def test_a_batch_that_cannot_be_cut_is_refused(tokens, tmp_path):
    with pytest.raises(ConfigError, match=r"distill\.batch_size: 4 is no multiple"):
        run(tokens, tmp_path, grad_accum_steps=3)


GOLDEN_CURVES = {
    "pretraining": [3.488, 2.069, 1.058, 0.6326, 0.452],
    "distillation": [0.09237, 0.05058, 0.03777, 0.03234, 0.02982],
}
"""Mean losses of 12 steps each. They may change with how a run is carried out: data order, optimizer, schedule."""


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN_CURVES)
def test_a_golden_curve(full_tokens, tmp_path, name):
    """Cross-entropy begins near ln 48 = 3.87, and 22 blocks are soon known by heart."""
    student = student_of()
    torch.manual_seed(0)
    student.apply(student._init_weights)
    recipe = Distill(
        ce_weight=float(name == "pretraining"), kd_weight=float(name == "distillation"), seq_len=BLOCK, batch_size=8,
        max_steps=60,
        optimizer=Optimizer(lr=1e-2, min_lr=1e-3, warmup_steps=10),
    )  # fmt: skip
    run(full_tokens, tmp_path, recipe=recipe, student=student, log_every=12, checkpoint_seconds=1000.0)
    curve = rows(tmp_path)["loss"].tolist()
    assert curve == sorted(curve, reverse=True)
    assert curve == pytest.approx(GOLDEN_CURVES[name], rel=0.01)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_train_the_same_student_to_rounding_and_are_left_as_they_were(tokens, tmp_path):
    recipe = dataclasses.replace(
        RECIPE, alpha=0.0, match_embedding=False, match_mlp_input=(), match_layer_output=(), max_steps=3
    )
    plain = run(tokens, tmp_path / "plain", recipe=recipe)
    compiled = run(tokens, tmp_path / "compiled", recipe=recipe, compile=True)
    close(compiled, plain)
    assert not any(module._compiled_call_impl for module in compiled.modules())
