"""The objective against one computed by hand; training runs repeated, interrupted, diverging, accumulated."""

from __future__ import annotations

import dataclasses
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lit_prune.config import ConfigError, Corpus, Distill, Optim
from lit_prune.data.retraining import RetrainingData
from lit_prune.data.tokens import IGNORED, write_tokens
from lit_prune.distill import optim
from lit_prune.distill.callbacks import Diverged
from lit_prune.distill.module import Distiller
from lit_prune.distill.train import micro_batches, train
from lit_prune.execution import Execution
from lit_prune.losses.hidden import hidden_losses
from lit_prune.losses.logit import logit_losses

VOCAB, BLOCK, BLOCKS, BATCH, STEPS = 48, 16, 22, 4, 12

ALL_STATES = {"embedding": True, "mlp_input": ("2:1",), "block_output": ("0:0", "last:last")}


def llama(
    hidden: int = 32, layers: int = 4, vocab: int = VOCAB, seed: int = 0, dropout: float = 0.0
) -> LlamaForCausalLM:
    """A Llama of random weights; the norms' are random too, so that reading before a norm shows."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=40, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=0, attention_dropout=dropout,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
        else:
            parameter.data.mul_(4)
    return model.eval()


def student_of(hidden: int = 24, **config: Any) -> LlamaForCausalLM:
    return llama(hidden, layers=3, seed=1, **config)


def batch(*ignored: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Two sequences of 10 ids and their labels, IGNORED at the given places."""
    ids = torch.randint(0, VOCAB, (2, 10), generator=torch.Generator().manual_seed(5))
    labels = ids.clone()
    for place in ignored:
        labels[place] = IGNORED
    return ids, labels


IGNORED_PLACES = ((0, 0), (0, 7), (1, 8), (1, 9))
SCORED = [(b, t) for b in range(2) for t in range(9) if (b, t + 1) not in IGNORED_PLACES]
"""Places whose successor is scored."""


# The objective


@torch.no_grad()
def states_by_hand(model: LlamaForCausalLM, ids: Tensor) -> dict[tuple[str, int], Tensor]:
    """("output", i): the stream after i blocks, normed by what follows; ("mlp", i): block i's MLP input."""
    core = model.model
    streams = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    rotary = core.rotary_emb(streams[0], torch.arange(ids.shape[1])[None])
    states = {}
    for i, layer in enumerate(core.layers):
        normed = layer.input_layernorm(streams[i])
        states["output", i] = normed
        middle = streams[i] + layer.self_attn(normed, position_embeddings=rotary, attention_mask=None)[0]
        states["mlp", i] = layer.post_attention_layernorm(middle)
        after = middle + layer.mlp(states["mlp", i])
        last = i == len(core.layers) - 1
        torch.testing.assert_close(core.norm(after) if last else after, streams[i + 1])
    return states | {("output", len(core.layers)): streams[-1]}


def by_token(loss: Any, ours: Tensor, theirs: Tensor) -> float:
    """Mean over the scored places, one at a time."""
    return sum(loss(ours[p][None].double(), theirs[p][None].double()).item() for p in SCORED) / len(SCORED)


def same(value: Tensor, expected: float) -> bool:
    return value.item() == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("hidden", [24, 32])
@pytest.mark.parametrize("hidden_loss", list(hidden_losses))
@pytest.mark.parametrize(
    ("states", "pairs"),
    [
        ({"embedding": True}, [(("output", 0), ("output", 0))]),
        ({"mlp_input": ("1:0",)}, [(("mlp", 1), ("mlp", 0))]),
        ({"mlp_input": ("last:last",)}, [(("mlp", 3), ("mlp", 2))]),
        ({"block_output": ("0:1",)}, [(("output", 1), ("output", 2))]),
        ({"block_output": ("3:2",)}, [(("output", 4), ("output", 3))]),
        ({"block_output": ("last:last-1",)}, [(("output", 4), ("output", 2))]),
        (
            {"block_output": ("last-2:last-2", "2:0")},
            [(("output", 2), ("output", 1)), (("output", 3), ("output", 1))],
        ),
        (
            ALL_STATES,
            [
                (("output", 0), ("output", 0)),
                (("mlp", 2), ("mlp", 1)),
                (("output", 1), ("output", 1)),
                (("output", 4), ("output", 3)),
            ],
        ),
    ],
)
def test_the_intermediate_loss_is_a_sum_over_pairs_of_means_over_tokens(hidden, hidden_loss, states, pairs):
    """Each pair is (teacher's state, student's state); the teacher has 4 blocks, the student 3."""
    teacher, student = llama(), student_of(hidden)
    module = Distiller(student, teacher, Distill(alpha=1.0, hidden_loss=hidden_loss, **states))
    ids, labels = batch(*IGNORED_PLACES)
    theirs, ours = states_by_hand(teacher, ids), states_by_hand(student, ids)
    expected = sum(
        by_token(hidden_losses[hidden_loss], module.projection(ours[student_state]), theirs[teacher_state])
        for teacher_state, student_state in pairs
    )
    assert same(module.objective(ids, labels)["hidden"], expected)


@pytest.mark.parametrize("name", list(logit_losses))
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("tau_squared", [False, True])
def test_the_logit_loss_is_the_mean_over_tokens_at_the_temperature(name, temperature, tau_squared):
    teacher, student = llama(), student_of()
    distill = Distill(logit_loss=name, temperature=temperature, tau_squared=tau_squared)
    ids, labels = batch(*IGNORED_PLACES)
    ours, theirs = (model(input_ids=ids).logits.detach() / temperature for model in (student, teacher))
    expected = by_token(logit_losses[name], ours, theirs) * (temperature**2 if tau_squared else 1)
    terms = Distiller(student, teacher, distill).objective(ids, labels)
    assert same(terms["logits"], expected)
    assert torch.equal(terms["loss"], terms["logits"])


def test_the_cross_entropy_is_that_of_the_next_token_where_it_is_scored():
    student = student_of()
    ids, labels = batch(*IGNORED_PLACES)
    log_p = student(input_ids=ids).logits.double().log_softmax(-1)
    expected = -sum(log_p[b, t, ids[b, t + 1]].item() for b, t in SCORED) / len(SCORED)
    terms = Distiller(student, None, Distill(w_clm=1.0, w_logits=0.0)).objective(ids, labels)
    assert same(terms["clm"], expected)
    assert set(terms) == {"clm", "loss"}


@pytest.mark.parametrize("name", ["clm", "logits", "hidden"])
def test_what_is_not_scored_does_not_matter_to_any_term(name):
    """The last id has no successor and the labels in between are ignored: other ids there change no term."""
    module = Distiller(student_of(), llama(), Distill(w_clm=1.0, alpha=1.0, **ALL_STATES))
    ids, labels = batch((0, 9), (1, 9))
    labels[0, 5:] = IGNORED
    other_ids = ids.clone()
    other_ids[:, 9] = (ids[:, 9] + 1) % VOCAB
    other_ids[0, 5:] = (ids[0, 5:] + 1) % VOCAB
    assert torch.equal(module.objective(ids, labels)[name], module.objective(other_ids, labels)[name])
    assert not torch.equal(module.objective(ids, labels)[name], module.objective(ids, ids)[name])


@pytest.mark.parametrize(
    "weights",
    [
        {"w_clm": 1.0},
        {"w_clm": 0.3, "w_logits": 0.7},
        {"w_clm": 0.3, "alpha": 0.2, **ALL_STATES},
        {"w_logits": 0.0, "alpha": 0.2, **ALL_STATES},
        {"w_logits": 0.0, "w_clm": 1.0},
    ],
)
def test_the_loss_is_the_weighted_sum_of_the_terms(weights):
    distill = Distill(**weights)
    terms = Distiller(student_of(), llama(), distill).objective(*batch())
    weight = {"clm": distill.w_clm, "logits": distill.w_logits, "hidden": distill.alpha}
    expected = sum(weight[name] * value.item() for name, value in terms.items() if name != "loss")
    assert same(terms["loss"], expected)
    assert set(terms) >= {"loss"} | {name for name in weight if weight[name]}


def gradients(module: Distiller, loss: Tensor) -> list[Tensor]:
    return torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)


@pytest.mark.parametrize("hidden", [24, 32])
def test_dynamic_alpha_makes_the_terms_equal_and_is_a_constant_to_the_gradient(hidden):
    module = Distiller(student_of(hidden), llama(), Distill(alpha="dynamic", **ALL_STATES))
    terms = module.objective(*batch())
    assert same(terms["loss"], 2 * terms["logits"].item())
    alpha = terms["logits"].item() / terms["hidden"].item()
    expected = gradients(module, terms["logits"] + alpha * terms["hidden"])
    for ours, theirs in zip(gradients(module, terms["loss"]), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    only_logits = gradients(module, terms["logits"])
    assert any(b is not None and not torch.allclose(a, b) for a, b in zip(expected, only_logits, strict=True))


def test_a_batch_without_a_scored_token_costs_nothing():
    """A micro-batch may be one block that holds a single token and filling."""
    module = Distiller(student_of(), llama(), Distill(w_clm=1.0, alpha="dynamic", **ALL_STATES))
    ids, labels = batch()
    terms = module.objective(ids, torch.full_like(labels, IGNORED))
    assert {name: value.item() for name, value in terms.items()} == dict.fromkeys(terms, 0.0)
    assert all(g is None or not g.any() for g in gradients(module, terms["loss"]))


# Teacher and projection


@pytest.mark.parametrize(
    ("hidden", "distill", "projected"),
    [
        (24, Distill(alpha=1.0, **ALL_STATES), True),
        (32, Distill(alpha=1.0, **ALL_STATES), False),
        (24, Distill(**ALL_STATES), False),
        (24, Distill(w_clm=1.0), False),
    ],
    ids=["narrower", "same width", "alpha 0", "no pairs"],
)
def test_there_is_a_projection_only_where_states_of_other_width_are_compared(hidden, distill, projected):
    student = student_of(hidden)
    names = set(student.state_dict())
    module = Distiller(student, llama(), distill)
    assert isinstance(module.projection, nn.Linear if projected else nn.Identity)
    extra = {"projection.weight", "projection.bias"} if projected else set()
    assert set(module.state_dict()) == {f"student.{name}" for name in names} | extra
    assert set(student.state_dict()) == names
    if projected:
        assert module.projection.weight.shape == (32, hidden)


def test_the_projection_is_trained_with_the_student():
    module = Distiller(student_of(), llama(), Distill(alpha=1.0, **ALL_STATES))
    groups = module.configure_optimizers()["optimizer"].param_groups
    trained = {id(p) for group in groups for p in group["params"]}
    assert trained == {id(p) for p in module.parameters()}
    assert {id(p) for p in module.projection.parameters()} < trained
    loss = module.objective(*batch())["loss"]
    assert all(g.any() for g in torch.autograd.grad(loss, list(module.projection.parameters())))


def test_the_teacher_is_frozen_and_hidden():
    teacher = llama().train()
    module = Distiller(student_of(), teacher, Distill(alpha="dynamic", **ALL_STATES)).train()
    module.objective(*batch())["loss"].backward()
    assert not teacher.training
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in module.parameters()}
    assert teacher not in list(module.modules())
    assert all(p.grad is not None for p in module.student.parameters())


def test_no_hook_stays_on_a_model():
    """One teacher serves many runs, and the student is evaluated and kept."""
    teacher, student = llama(), student_of()
    Distiller(student, teacher, Distill(alpha=1.0, **ALL_STATES)).objective(*batch())
    assert not any(part._forward_hooks for model in (teacher, student) for part in model.modules())


@pytest.mark.parametrize("teacher_given", [True, False])
def test_a_teacher_that_is_not_needed_is_not_run(teacher_given):
    def never(*_: Any) -> None:
        raise AssertionError("the teacher was run")

    teacher = llama()
    teacher.register_forward_pre_hook(never)
    module = Distiller(student_of(), teacher if teacher_given else None, Distill(w_clm=1.0, w_logits=0.0))
    assert module.objective(*batch())["loss"].isfinite()


# Requests that cannot be met


@pytest.mark.parametrize(
    ("distill", "message"),
    [
        (Distill(w_logits=0.0), "distill: w_clm, w_logits and alpha are all 0"),
        (Distill(w_logits=0.0, **ALL_STATES), "distill: w_clm, w_logits and alpha are all 0"),
        (Distill(alpha=1.0), "distill.alpha: "),
        (Distill(alpha="dynamic"), "distill.alpha: "),
        (Distill(alpha=1.0, mlp_input=("1",)), "distill.mlp_input: '1' is not teacher:student"),
        (Distill(alpha=1.0, mlp_input=("4:0",)), "distill.mlp_input: teacher block '4' is not one of 0 to 3"),
        (Distill(alpha=1.0, mlp_input=("0:3",)), "distill.mlp_input: student block '3' is not one of 0 to 2"),
        (Distill(alpha=1.0, block_output=("0:0", "-1:0")), "distill.block_output: teacher block '-1'"),
        (Distill(alpha=1.0, block_output=("last-4:0",)), "distill.block_output: teacher block 'last-4'"),
        (Distill(alpha=1.0, block_output=("last:last-3",)), "distill.block_output: student block 'last-3'"),
        (Distill(alpha=1.0, block_output=("first:0",)), "distill.block_output: teacher block 'first'"),
        (Distill(alpha=1.0, block_output=("0:1:2",)), "distill.block_output: student block '1:2'"),
        (Distill(alpha=1.0, block_output=(":",)), "distill.block_output: teacher block ''"),
        (Distill(logit_loss="kdl"), "unknown logit loss 'kdl'; perhaps you meant 'kld'"),
        (Distill(hidden_loss="cosin"), "unknown hidden loss 'cosin'; perhaps you meant 'cosine'"),
    ],
)
def test_an_objective_that_does_not_fit_is_refused_in_one_line(distill, message):
    with pytest.raises(ConfigError) as caught:
        Distiller(student_of(), llama(), distill)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_another_vocabulary_is_refused():
    with pytest.raises(ConfigError, match=r"student\.model: .* 40 entries, the teacher's 48"):
        Distiller(student_of(vocab=40), llama(), Distill())


@pytest.mark.parametrize("distill", [Distill(), Distill(w_logits=0.0, alpha=1.0, embedding=True)])
def test_a_term_that_needs_a_teacher_is_refused_without_one(distill):
    with pytest.raises(ConfigError, match="need a teacher"):
        Distiller(student_of(), None, distill)


# Optimizer and schedule


@pytest.mark.parametrize(("warmup", "steps"), [(10, 100), (1, 2), (0, 5), (200, 7000)])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_its_minimum(warmup, steps):
    recipe = Optim(lr=1e-3, min_lr=1e-5, warmup=warmup)
    rates = [optim.learning_rate(recipe, step, steps) for step in range(steps)]
    assert rates[:warmup] == pytest.approx([1e-3 * (i + 1) / warmup for i in range(warmup)])
    assert rates[min(warmup, steps - 1) - bool(warmup)] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-5)
    assert all(a >= b for a, b in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    assert optim.learning_rate(recipe, steps + 10, steps) == pytest.approx(1e-5)


def test_the_learning_rate_is_halfway_in_the_middle_of_the_decay():
    assert optim.learning_rate(Optim(lr=1.0, min_lr=0.2, warmup=10), 55, 101) == pytest.approx(0.6)


def test_the_schedule_gives_every_step_its_learning_rate():
    recipe = Optim(lr=1e-3, min_lr=1e-5, warmup=3)
    made = optim.configure(nn.Linear(2, 2), recipe, 10)
    assert made["lr_scheduler"]["interval"] == "step"
    for step in range(10):
        rates = [group["lr"] for group in made["optimizer"].param_groups]
        assert rates == pytest.approx([optim.learning_rate(recipe, step, 10)] * 2)
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()


def test_weight_decay_is_for_matrices_and_not_for_vectors():
    module = Distiller(student_of(), llama(), Distill(alpha=1.0, **ALL_STATES))
    module.student.model.embed_tokens.weight.requires_grad_(False)
    recipe = Optim(weight_decay=0.3, beta1=0.8, beta2=0.9)
    groups = optim.configure(module, recipe, 10)["optimizer"].param_groups
    names = {id(p): name for name, p in module.named_parameters()}
    decay_of = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    vectors = {name for name in names.values() if "norm" in name or name.endswith("bias")}
    assert decay_of == {
        name: 0.0 if name in vectors else 0.3 for name in names.values() if name != "student.model.embed_tokens.weight"
    }
    assert all(group["betas"] == (0.8, 0.9) for group in groups)


# Training runs


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
    corpus = Corpus(source=str(texts), heldout=0.1, max_tokens=num_tokens)
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
    alpha="dynamic", w_clm=0.5, block=BLOCK, batch=BATCH, steps=STEPS, optim=Optim(lr=3e-3, warmup=2),
    **ALL_STATES,
)  # fmt: skip
FIXED_ALPHA = dataclasses.replace(RECIPE, alpha=0.3)
"""A dynamic alpha is another for each micro-batch."""

QUICK = Execution(accelerator="cpu", accumulate=1, checkpoint_seconds=0.0, log_every=5)


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
            self.made[how] = Run(run(self.tokens, folder, dropout=dropout, accumulate=accumulate), folder)
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
        run(whole.tokens, tmp_path, dropout=dropout, accumulate=accumulate, stop_at=stop)
        assert (tmp_path / "last.ckpt").exists() == (stop > 1)
    resumed = run(whole.tokens, tmp_path, dropout=dropout, accumulate=accumulate)
    assert equal(resumed, uninterrupted.student)
    pd.testing.assert_frame_equal(rows(tmp_path), rows(uninterrupted.folder), check_exact=True)


@pytest.mark.slow
def test_workers_that_read_ahead_lose_and_repeat_nothing(whole, tmp_path):
    for stop in (4, 8):
        run(whole.tokens, tmp_path, stop_at=stop, workers=2)
    assert equal(run(whole.tokens, tmp_path, workers=2), whole(0.0, 1).student)


def test_a_run_that_was_over_when_it_was_interrupted_is_found_as_it_was(whole, tmp_path):
    over = whole(0.0, 1)
    folder = shutil.copytree(over.folder, tmp_path / "run")
    assert equal(run(whole.tokens, folder), over.student)
    pd.testing.assert_frame_equal(rows(folder), rows(over.folder), check_exact=True)


def test_a_checkpoint_is_never_of_half_a_step(whole, tmp_path):
    """The time for one comes between the two micro-batches of step 3, whose gradients no checkpoint holds."""
    slow, calls = student_of(dropout=0.1), iter(range(1, 100))
    slow.register_forward_pre_hook(lambda *_: time.sleep(0.6) if next(calls) == 5 else None)
    run(whole.tokens, tmp_path, accumulate=2, student=slow, stop_at=3, checkpoint_seconds=0.5)
    assert equal(run(whole.tokens, tmp_path, accumulate=2, dropout=0.1), whole(0.1, 2).student)
    pd.testing.assert_frame_equal(rows(tmp_path), rows(whole(0.1, 2).folder), check_exact=True)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4)])
def test_a_run_may_go_on_in_other_micro_batches(full_tokens, tmp_path, before, after):
    uninterrupted = run(full_tokens, tmp_path / "whole", recipe=FIXED_ALPHA)
    run(full_tokens, tmp_path / "broken", recipe=FIXED_ALPHA, stop_at=6, accumulate=before)
    resumed = run(full_tokens, tmp_path / "broken", recipe=FIXED_ALPHA, accumulate=after)
    close(resumed, uninterrupted)
    pd.testing.assert_frame_equal(rows(tmp_path / "broken"), rows(tmp_path / "whole"), rtol=1e-4)


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
def test_micro_batches_make_the_same_step(full_tokens, tmp_path, accumulate):
    together = run(full_tokens, tmp_path / "together", recipe=FIXED_ALPHA)
    cut = run(full_tokens, tmp_path / "cut", recipe=FIXED_ALPHA, accumulate=accumulate)
    close(cut, together)
    pd.testing.assert_frame_equal(rows(tmp_path / "cut"), rows(tmp_path / "together"), rtol=1e-4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_step_is_told_once_with_the_newest_row(tokens, tmp_path, accumulate):
    told = []
    how = dataclasses.replace(QUICK, accumulate=accumulate)
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
    for name in ("loss", "clm", "logits", "hidden", "grad_norm"):
        means = [each[name][a:b].mean() for a, b in ((0, 5), (5, 10), (10, 12))]
        assert some[name].tolist() == pytest.approx(means, rel=1e-5)


def test_the_first_row_is_of_the_first_batch_and_its_gradient_before_clipping(tokens, tmp_path):
    recipe = dataclasses.replace(RECIPE, alpha=0.0, optim=Optim(clip=1e-3))
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
    with pytest.raises(Diverged, match="the loss is nan at step 5"):
        run(tokens, tmp_path, student=broken, recipe=dataclasses.replace(RECIPE, precision=precision))
    assert rows(tmp_path)["loss"].isna().tolist() == [True]


def test_a_run_that_diverges_on_the_way_stops_at_the_next_row(tokens, tmp_path):
    recipe = dataclasses.replace(RECIPE, optim=Optim(lr=1e30, min_lr=1e30, warmup=0))
    with pytest.raises(Diverged, match="at step 5"):
        run(tokens, tmp_path, recipe=recipe)


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
    assert micro_batches(Distill(batch=batch, block=block), vocab_size) == parts


def test_a_batch_that_cannot_be_cut_is_refused(tokens, tmp_path):
    with pytest.raises(ConfigError, match=r"distill\.batch: 4 is no multiple"):
        run(tokens, tmp_path, accumulate=3)


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
        w_clm=float(name == "pretraining"), w_logits=float(name == "distillation"), block=BLOCK, batch=8, steps=60,
        optim=Optim(lr=1e-2, min_lr=1e-3, warmup=10),
    )  # fmt: skip
    run(full_tokens, tmp_path, recipe=recipe, student=student, log_every=12, checkpoint_seconds=1000.0)
    curve = rows(tmp_path)["loss"].tolist()
    assert curve == sorted(curve, reverse=True)
    assert curve == pytest.approx(GOLDEN_CURVES[name], rel=0.01)
