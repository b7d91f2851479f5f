"""Requests: generated tokens, order of models, and statistics of seconds and bytes.

Times are not asserted.
"""

import copy
import dataclasses
from types import SimpleNamespace

import families
import pytest
import torch
from clock import Clock
from refusals import refuses
from torch import nn

from lit_prune.config import Cell, ThroughputTest
from lit_prune.config.overrides import override
from lit_prune.evaluate import throughput as measuring
from lit_prune.evaluate.memory import peak_of
from lit_prune.evaluate.throughput import (
    Reply,
    compare_requests,
    memory_of_request,
    random_model,
    replies_in_turns,
    serve,
    speedups,
)
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.validate import check
from lit_prune.pruning import surgery

CPU = torch.device("cpu")
SPEED = ThroughputTest(batch_size=2, prompt_len=10, max_new_tokens=4, num_repeats=3)


class Timed(nn.Module):
    """A model that takes a second for each token of a sequence, times its slowness, and always says the same."""

    def __init__(self, clock: Clock, name: str, slowness: float) -> None:
        super().__init__()
        self.clock, self.name, self.slowness = clock, name, slowness

    def forward(self, input_ids, use_cache, logits_to_keep, past_key_values=None):
        assert use_cache
        assert logits_to_keep == 1
        assert torch.is_inference_mode_enabled()
        self.clock.now += self.slowness * input_ids.shape[1]
        self.clock.log.append(self.name)
        logits = torch.eye(7)[(input_ids[:, -1:] + 1) % 7]
        return SimpleNamespace(logits=logits, past_key_values=past_key_values or [])


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(measuring, "time", clock)
    return clock


@pytest.mark.parametrize("name", families.CASES)
def test_the_tokens_are_those_of_greedy_generation(name):
    model, ids = families.model_of(name), families.token_ids()
    options = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(serve(model, ids, 9).tokens, model.generate(ids, **options)[:, ids.shape[1] :])


def test_the_first_token_is_the_prefills_and_the_others_are_decoded(clock):
    reply = serve(Timed(clock, "model", 2.0), torch.tensor([[0, 1, 2], [3, 4, 5]]), 4)
    assert reply.tokens.tolist() == [[3, 4, 5, 6], [6, 0, 1, 2]]
    assert (reply.prefill, reply.decode) == (6.0, 6.0)
    assert clock.log == ["model"] * 4


def test_models_take_turns_and_each_begins_every_other_round(clock):
    models = [Timed(clock, "student", 1.0), Timed(clock, "teacher", 2.0)]
    reported: list[int] = []
    speed = ThroughputTest(batch_size=1, prompt_len=3, max_new_tokens=2, num_repeats=3)
    ours, theirs = replies_in_turns(models, torch.zeros(1, 3, dtype=torch.int64), speed, reported.append)
    requests = clock.log[::2]
    assert requests == ["teacher", "student", "student", "teacher", "teacher", "student", "student", "teacher"]
    assert [(reply.prefill, reply.decode) for reply in ours] == [(3.0, 1.0)] * 3
    assert [(reply.prefill, reply.decode) for reply in theirs] == [(6.0, 2.0)] * 3
    assert reported == [0, 1, 2, 3]


def test_speedups_are_medians_of_ratios_within_a_round():
    tokens = torch.zeros(1, 1)
    student = [Reply(tokens, 1.0, 1.0), Reply(tokens, 10.0, 10.0), Reply(tokens, 2.0, 1.0)]
    teacher = [Reply(tokens, 2.0, 3.0), Reply(tokens, 30.0, 40.0), Reply(tokens, 2.0, 2.0)]
    assert speedups(student, teacher) == {
        "speedup": 2.5,  # 5/2, 70/20, 4/3
        "prefill_speedup": 2.0,  # 2, 3, 1
        "decode_speedup": 3.0,  # 3, 4, 2
    }


def test_a_request_takes_the_memory_it_takes_as_a_whole(tiny_llama):
    ids = torch.zeros(2, 40, dtype=torch.int64)
    for num_new in (2, 30):
        cache, peak = memory_of_request(tiny_llama, ids, num_new)
        whole = peak_of(lambda n=num_new: serve(tiny_llama, ids, n), CPU)
        # The whole request also holds the tokens it has made, 8 bytes each, once more when they are put together.
        weights = 4 * tiny_llama.num_parameters()
        assert abs(peak - weights - whole) <= 2 * 8 * 2 * num_new + 100
        # Keys and values of 3 blocks, 2 groups of 8 channels, 4 bytes; the last token is never read.
        assert cache == 2 * 3 * 2 * 8 * 2 * (40 + num_new - 1) * 4


def test_longer_answers_take_more_memory_than_reading_the_prompt(tiny_llama):
    short, long = (memory_of_request(tiny_llama, torch.zeros(2, 8, dtype=torch.int64), n)[1] for n in (2, 100))
    assert long > short


def test_a_student_of_fewer_blocks_takes_less_memory_and_the_teacher_itself_as_much(tiny_llama):
    smaller = copy.deepcopy(tiny_llama.config)
    smaller.num_hidden_layers = 1
    found = compare_requests(smaller, tiny_llama.config, SPEED, CPU)
    assert found["memory_share"] < 1
    student, teacher = found["serving"]["student"], found["serving"]["teacher"]
    assert found["memory_share"] == student["peak"] / teacher["peak"]
    assert teacher["cache"] == 3 * student["cache"] == 2 * 3 * 2 * 8 * 2 * 13 * 4
    assert student["weights"] + student["cache"] < student["peak"]
    assert all(found[name] > 0 for name in ("speedup", "prefill_speedup", "decode_speedup"))
    assert student["decode"].keys() == {"tokens_per_second", "iqr"}
    assert compare_requests(tiny_llama.config, tiny_llama.config, SPEED, CPU)["memory_share"] == 1


def test_in_bfloat16_keys_and_values_take_half_the_bytes(tiny_llama):
    whole = compare_requests(tiny_llama.config, tiny_llama.config, SPEED, CPU)["serving"]["student"]
    speed = dataclasses.replace(SPEED, precision="bf16-true")
    half = compare_requests(tiny_llama.config, tiny_llama.config, speed, CPU)["serving"]["student"]
    assert 2 * half["cache"] == whole["cache"]
    assert half["weights"] < 0.51 * whole["weights"]


def test_tokens_a_second_by_hand(tiny_llama, clock):
    served = measuring._served([Reply(torch.zeros(1), 2.0, 4.0)], SPEED, 0, 0, 0)
    # 2 x 10 tokens read in 2 s, 2 x 3 decoded in 4 s, 2 x 4 in all 6 s.
    assert served.prefill.tokens_per_second == 10
    assert served.decode.tokens_per_second == 1.5
    assert served.whole.tokens_per_second == pytest.approx(8 / 6)


def test_blocks_of_different_widths_serve_too():
    uneven = surgery.apply(families.model_of("llama"), families.plan_for("llama", "uneven"))
    assert uneven.config.is_heterogeneous
    model = random_model(uneven.config)
    assert [p.shape for p in model.parameters()] == [p.shape for p in uneven.parameters()]
    assert serve(model, families.token_ids(), 3).tokens.shape == (2, 3)


@pytest.mark.parametrize(
    ("changes", "field", "values"),
    [
        ({"batch_size": 0}, ".batch_size", (">= 1", "got 0")),
        ({"prompt_len": 0}, ".prompt_len", (">= 1", "got 0")),
        ({"max_new_tokens": 1}, ".max_new_tokens", (">= 2", "got 1")),
        ({"num_repeats": 0}, ".num_repeats", (">= 1", "got 0")),
        ({"prompt_len": 1000, "max_new_tokens": 25}, "", (1000, 25, 1024)),
    ],
)
def test_a_request_that_cannot_be_served_is_refused(changes, field, values):
    with refuses(f"evaluation.throughput{field}", *values):
        check(override(Cell(), {f"evaluation.throughput.{name}": value for name, value in changes.items()}))


def test_a_cell_that_asks_for_it_says_how_fast_its_student_is(tiny_cell, tiny_runner):
    settings = {f"evaluation.throughput.{name}": value for name, value in dataclasses.asdict(SPEED).items()}
    changes = {
        "distill.max_steps": 0,
        "prune.hidden_size": None,
        "prune.num_hidden_layers": 1,
        "prune.intermediate_size": None,
    }
    plain = override(tiny_cell, changes | {"prune.layer_selection": "last"})
    slow = tiny_runner.cell(Entry("plain", 0, plain, {}))
    fast = tiny_runner.cell(Entry("timed", 0, override(plain, settings), {}))
    assert {"speedup", "prefill_speedup", "decode_speedup", "memory_share", "serving"} == fast.keys() - slow.keys()
    assert fast["memory_share"] < 1
    assert {name: fast[name] for name in slow} == slow
