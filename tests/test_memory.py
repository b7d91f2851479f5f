"""Peak memory: what a block of memory adds to it, and that it begins anew."""

import pytest
import torch

from lit_prune.evaluate.memory import peak_memory, reset_peak

MIB = 2**20


@pytest.mark.skipif(not reset_peak(), reason="this system does not say how much memory a process has held")
def test_the_peak_has_what_was_held_and_is_forgotten_by_the_next_reset():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reset_peak()
    before = peak_memory()
    held = torch.ones(64 * MIB // 4, device=device)
    with_it = peak_memory()
    del held
    assert with_it - before >= 48 * MIB  # what was free of the process' own serves a part
    assert peak_memory() >= with_it - MIB  # the kernel counts in batches
    reset_peak()
    assert peak_memory() <= with_it - 32 * MIB
