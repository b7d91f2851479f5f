"""Throughput: the passes, their order, and the statistics of their seconds. Times are not asserted."""

from types import SimpleNamespace

import pytest
import torch
from clock import Clock
from refusals import refuses
from torch import nn

from lit_prune.evaluate.throughput import Speedup, Throughput, speedup, throughput
from lit_prune.models import pass_time
from lit_prune.models.random_weights import random_model


class Timed(nn.Module):
    """A model whose passes take the seconds it is told, one after the other."""

    def __init__(self, clock: Clock, name: str, seconds: list[float], positions: int | None = 64) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(vocab_size=7, max_position_embeddings=positions)
        self.clock, self.name, self.seconds = clock, name, iter(seconds)
        self.seen: list[dict] = []

    def forward(self, **inputs):
        self.clock.now += next(self.seconds)
        self.clock.log.append(self.name)
        self.seen.append(inputs | {"inference": torch.is_inference_mode_enabled()})


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pass_time, "time", clock)
    return clock


def test_the_median_and_the_quartiles_leave_out_the_warm_up(clock):
    model = Timed(clock, "model", [100, 1, 8, 2, 5, 4])
    # 2 x 10 tokens: 20, 2.5, 10, 4 and 5 tokens/s, with quartiles 4 and 10
    assert throughput(model, 2, 10, repeats=5) == Throughput(5.0, 6.0)
    assert clock.log == ["model"] * 6


def test_one_pass_has_no_spread(clock):
    assert throughput(Timed(clock, "model", [100, 4]), 2, 10, repeats=1) == Throughput(5.0, 0.0)


def test_student_and_teacher_take_turns(clock):
    student = Timed(clock, "student", [100, 1, 4, 2])
    teacher = Timed(clock, "teacher", [100, 5, 4, 8])
    found = speedup(student, teacher, 4, 5, repeats=3)
    assert clock.log == ["student", "teacher"] * 4
    assert found == Speedup(Throughput(10.0, 7.5), Throughput(4.0, 1.25))
    assert found.ratio == 2.5


def test_a_pass_is_a_prefill_without_gradients(clock):
    model = Timed(clock, "model", [1] * 3)
    throughput(model, 3, 5, repeats=2)
    for seen in model.seen:
        ids = seen["input_ids"]
        assert ids.shape == (3, 5)
        assert ids.dtype == torch.int64
        assert set(ids.flatten().tolist()) == set(range(7))
        assert seen["inference"]
        assert seen["use_cache"] is False
        assert seen["logits_to_keep"] == 1


@pytest.mark.parametrize(
    ("batch", "seq_len", "repeats", "field", "values"),
    [
        (0, 8, 1, "batch", (0,)),
        (1, 0, 1, "seq_len", (0,)),
        (1, 8, 0, "repeats", (0,)),
        (1, 65, 1, "seq_len", (65, 64)),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(clock, batch, seq_len, repeats, field, values):
    model, other = Timed(clock, "model", [1] * 9, positions=None), Timed(clock, "other", [1] * 9)
    with refuses("throughput", field, *values):
        speedup(model, other, batch, seq_len, repeats)
    assert clock.log == []


def test_as_many_tokens_as_there_are_positions_can_be_measured(clock):
    assert throughput(Timed(clock, "model", [1, 1]), 1, 64, repeats=1).tokens_per_second == 64


def test_a_real_model_computes_the_last_logits_of_every_sequence(tiny_llama):
    shapes = []
    tiny_llama.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.logits.shape)))
    before = {name: weight.clone() for name, weight in tiny_llama.state_dict().items()}
    found = throughput(tiny_llama, 2, 16, repeats=3)
    assert shapes == [(2, 1, 256)] * 4
    assert found.tokens_per_second > 0
    assert found.iqr >= 0
    assert all(torch.equal(weight, before[name]) for name, weight in tiny_llama.state_dict().items())
    assert all(weight.grad is None for weight in tiny_llama.parameters())


def test_a_random_model_has_the_configs_shape_and_leaves_the_random_state_alone(tiny_llama):
    config = tiny_llama.config
    described, state = config.to_dict(), torch.get_rng_state()
    model = random_model(config, dtype=torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), state)
    assert config.to_dict() == described
    assert not model.training
    expected = {name: tuple(weight.shape) for name, weight in tiny_llama.state_dict().items()}
    assert {name: tuple(weight.shape) for name, weight in model.state_dict().items()} == expected
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert all(weight.isfinite().all() for weight in model.parameters())
    assert model.lm_head.weight.std() > 0


def test_a_random_model_is_made_where_it_shall_run(tiny_llama):
    model = random_model(tiny_llama.config, device="meta")
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
