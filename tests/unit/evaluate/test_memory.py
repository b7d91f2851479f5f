"""Memory of a call, against bytes counted by hand; peak memory of the process, and its reset."""

import copy
import subprocess
import sys

import pytest
import torch

from lit_prune.evaluate.memory import bytes_of_cache, bytes_of_weights, peak_of, reset_peak

MIB = 2**20
CPU = torch.device("cpu")


def test_the_peak_is_what_is_held_at_once():
    def call():
        first = torch.ones(1000)  # 4,000 bytes
        second = first.double()  # 8,000 more
        del first
        return second + second  # 8,000 in the place of the first's 4,000

    assert peak_of(call, CPU) == 16_000
    assert peak_of(lambda: [torch.ones(1000).fill_(place) for place in range(3)], CPU) == 12_000


def test_one_after_the_other_is_no_more_than_one():
    def call():
        for _ in range(5):
            torch.ones(1000)

    assert peak_of(call, CPU) <= 8_000


def test_what_was_there_before_is_not_counted():
    held = torch.ones(100_000)
    assert peak_of(lambda: held.add_(1), CPU) < 1000
    assert peak_of(lambda: None, CPU) == 0


def test_nothing_is_printed(capfd):
    peak_of(lambda: torch.ones(10), CPU)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_counted_once(tiny_llama, tied):
    config = copy.deepcopy(tiny_llama.config)
    config.tie_word_embeddings = tied
    model = type(tiny_llama)(config)
    attention, mlp, norms = 2 * 32 * 32 + 2 * 16 * 32, 3 * 48 * 32, 2 * 32
    weights = (1 if tied else 2) * 256 * 32 + 3 * (attention + mlp + norms) + 32
    rotary = sum(buffer.nbytes for buffer in model.buffers())
    assert rotary < 100
    assert bytes_of_weights(model) == 4 * weights + rotary


def test_keys_and_values_by_hand(tiny_llama):
    ids = torch.zeros(2, 10, dtype=torch.int64)
    with torch.inference_mode():
        cache = tiny_llama(input_ids=ids, use_cache=True).past_key_values
    # Keys and values of 3 blocks, 2 groups of 8 channels, 2 x 10 tokens, 4 bytes.
    assert bytes_of_cache(cache) == 2 * 3 * 2 * 8 * 20 * 4


PROCESS = """
import torch
from lit_prune.evaluate.memory import peak_memory, reset_peak

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.ones(1, device=device)
reset_peak()
print(peak_memory())
held = torch.ones(64 * 2**20 // 4, device=device)
print(peak_memory())
del held
print(peak_memory())
reset_peak()
print(peak_memory())
"""


@pytest.mark.skipif(not reset_peak(), reason="this system does not say how much memory a process has held")
def test_the_peak_of_a_process_has_what_was_held_and_is_forgotten_by_the_next_reset():
    # A process of its own: one that has freed memory before may serve a tensor from what it kept.
    output = subprocess.run([sys.executable, "-c", PROCESS], capture_output=True, text=True, check=True).stdout
    before, held, freed, reset = map(int, output.split())
    assert held - before >= 60 * MIB
    assert freed >= held - MIB  # the kernel counts in batches
    assert reset <= held - 60 * MIB
