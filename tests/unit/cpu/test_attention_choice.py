"""The attention kernel is chosen by timing the attention of the cells that will run."""

import pytest
import torch

from lit_prune import cpu
from lit_prune.config import Execution
from lit_prune.cpu import attention, matmul


@pytest.fixture(autouse=True)
def _as_it_was():
    yield
    matmul.use(False)
    attention.use({})


def test_the_kernel_is_chosen_at_the_shape_that_will_run(monkeypatch):
    seen = []

    def noted(query, key, value, scale):
        seen.append((tuple(query.shape), tuple(key.shape), query.dtype))
        return attention.native(query, key, value, scale)

    monkeypatch.setattr(attention, "KERNELS", {"sdpa": attention.native, "noted": noted})
    attention.switch(True, attention.AttentionShape(batch=4, heads=9, groups=3, seq_len=512, head_dim=64))
    assert set(seen) == {((1, 9, 512, 64), (1, 3, 512, 64), dtype) for dtype in (torch.float32, torch.bfloat16)}
    assert attention.QUICK.timed == attention.QUICK
    assert attention.AttentionShape(16, 6, 2, 256, 32).timed.batch == 2


def test_kernels_are_timed_again_for_another_shape_only(monkeypatch):
    timed = []
    for name, empty in (("_chosen", None), ("_applied", {}), ("runtime", {})):
        monkeypatch.setattr(cpu, name, empty)
    monkeypatch.setattr(cpu, "_elsewhere", lambda accelerator: False)
    monkeypatch.setattr(attention, "_fastest", lambda dtype, shape: timed.append(shape) or ("sdpa", "sdpa"))
    shape = attention.AttentionShape(1, 2, 2, 16, 8)
    cpu.choose(Execution(cpu="auto", accelerator="cpu", threads=1))
    for one in (shape, shape, None, attention.QUICK):
        cpu.prepare(one)
    assert timed == [shape] * 2 + [attention.QUICK] * 2
