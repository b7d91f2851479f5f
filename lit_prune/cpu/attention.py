"""Causal self-attention on a processor, a few heads at a time, so that their scores stay in its cache.

PyTorch's own kernel cuts the scores into small products, which some libraries compute slowly: on AMD it was half of a
distillation step, and this took 0.55 of its time. On Intel it is the other way round in float32. In bfloat16 without
hardware for it, both are slower than float32 itself. So what runs is what a probe finds fastest, for each of the two.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lit_prune.cpu import matmul
from lit_prune.cpu.timing import seconds

Kernel = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""Queries [batch, heads, seq, width], keys and values [batch, groups, seq, width], scale -> as the queries."""

MAX_TOKENS = 512
"""Scores above the diagonal are computed too, and dropped: at 1024 tokens it took 3 times as long as PyTorch's."""
_CACHE = 2 * 2**20
"""Bytes of scores at once."""
_MARGIN = 1.2
_PROBE = (2, 8, 4, 256, 32)
"""Batch, heads, groups, tokens and width of the attention that is timed: half of a `quick` step's."""
_UNUSUAL = ("softcap", "position_bias", "cache", "s_aux", "output_attentions")
"""What a model may ask of attention beyond its scale."""

_kernels: dict[torch.dtype, Kernel] = {}


def switch(wanted: bool) -> dict[str, str]:
    """Put the fastest kernel in the place of transformers' `sdpa`; returns which it is for each precision, and why.

    The name stays: the configs of models that are saved say `sdpa`.
    """
    use({})
    if not wanted:
        return {"float32": "sdpa", "bfloat16": "sdpa"}
    found = {dtype: _fastest(dtype) for dtype in (torch.float32, torch.bfloat16)}
    use({dtype: KERNELS[name] for dtype, (name, _) in found.items() if name != "sdpa"})
    return {str(dtype).removeprefix("torch."): why for dtype, (_, why) in found.items()}


def use(kernels: dict[torch.dtype, Kernel]) -> None:
    """Let these kernels compute what they can in their precisions, and `sdpa` the rest."""
    _kernels.clear()
    _kernels.update(kernels)
    AttentionInterface.register("sdpa", attend if kernels or matmul.using() else sdpa_attention_forward)


@contextmanager
def only(kernels: dict[torch.dtype, Kernel]) -> Iterator[None]:
    """Use these kernels inside `with`."""
    before = dict(_kernels)
    use(kernels)
    try:
        yield
    finally:
        use(before)


def attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **asked: Any
) -> tuple[Tensor, None]:
    """Return what transformers' `sdpa` computes, [batch, seq, heads, width]; by another kernel where it is plain
    causal."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    kernel = _kernels.get(dtype)
    if kernel is None or not _is_plain(module, query, key, value, attention_mask, asked):
        return _sdpa(module, query, key, value, attention_mask, **asked)
    scale = asked.get("scaling")
    with torch.autocast("cpu", enabled=False):
        found = kernel(query, key, value, query.shape[-1] ** -0.5 if scale is None else scale)
    return found.to(dtype).transpose(1, 2).contiguous(), None


def _is_plain(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, asked: dict[str, Any]
) -> bool:
    """Return whether this is causal attention of whole sequences to themselves, without anything else."""
    causal, window, (_, heads, num_tokens, _) = asked.get("is_causal"), asked.get("sliding_window"), query.shape
    return (
        mask is None
        and (getattr(module, "is_causal", True) if causal is None else causal)
        and 1 < num_tokens <= MAX_TOKENS
        and query.device.type == "cpu"
        and (query.shape[0], *query.shape[2:]) == (key.shape[0], *key.shape[2:])
        and key.shape == value.shape
        and heads % key.shape[1] == 0
        and (window is None or window >= num_tokens)
        and not asked.get("dropout")
        and all(asked.get(name) is None or asked[name] is False for name in _UNUSUAL)
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
    )  # fmt: skip


def blocked(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Explicit scores in float32, a few groups of heads at a time."""
    return _Blocked.apply(query.float(), key.float(), value.float(), scale)


def float32(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """PyTorch's kernel in float32."""
    return native(query.float(), key.float(), value.float(), scale)


def native(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """PyTorch's kernel in the precision of its input."""
    return _with_own_products(
        functools.partial(F.scaled_dot_product_attention, is_causal=True, scale=scale, enable_gqa=True),
        query, key, value,
    )  # fmt: skip


KERNELS: dict[str, Kernel] = {"sdpa": native, "sdpa in float32": float32, "blocked": blocked}


class _Blocked(torch.autograd.Function):
    """softmax(scale Q K^T) V below the diagonal, in float32; the scores are computed again for the gradient.

    The query heads of a group are rows of one matrix, since they share keys and values.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        ctx.scale, ctx.shape = scale, query.shape
        rows, keys, values = _rows(query, key), key.flatten(0, 1), value.flatten(0, 1)
        ctx.save_for_backward(rows, keys, values)
        out = torch.empty_like(rows)
        for part in _parts(rows, keys):
            torch.bmm(_probabilities(rows[part], keys[part], scale), values[part], out=out[part])
        return out.view(query.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, keys, values = ctx.saved_tensors
        gradient = gradient.reshape(rows.shape)
        found = [torch.empty_like(x) for x in (rows, keys, values)]
        of_rows, of_keys, of_values = found
        with torch.autocast("cpu", enabled=False):
            for part in _parts(rows, keys):
                weights = _probabilities(rows[part], keys[part], ctx.scale)
                torch.bmm(weights.mT, gradient[part], out=of_values[part])
                scores = torch.bmm(gradient[part], values[part].mT)
                scores = torch.ops.aten._softmax_backward_data(scores, weights, -1, torch.float32)
                torch.bmm(scores, keys[part], out=of_rows[part])
                torch.bmm(scores.mT, rows[part], out=of_keys[part])
        of_rows.mul_(ctx.scale)
        of_keys.mul_(ctx.scale)
        batch, _, seq, width = ctx.shape
        return of_rows.view(ctx.shape), *(x.view(batch, -1, seq, width) for x in (of_keys, of_values)), None


def _rows(query: Tensor, key: Tensor) -> Tensor:
    """Queries [batch, heads, seq, width] -> [batch * groups, heads of a group * seq, width]."""
    batch, groups, _, width = key.shape
    return query.reshape(batch * groups, -1, width)


def _parts(rows: Tensor, keys: Tensor) -> Iterator[slice]:
    """As many groups at once as have room for their scores."""
    size = max(1, _CACHE // (4 * rows.shape[1] * keys.shape[1]))
    return (slice(start, start + size) for start in range(0, len(rows), size))


def _probabilities(rows: Tensor, keys: Tensor, scale: float) -> Tensor:
    """[groups, heads of a group * seq, seq], 0 above the diagonal."""
    scores = torch.baddbmm(_above_diagonal(keys.shape[1], rows.shape[1]), rows, keys.mT, alpha=scale)
    return scores.softmax(-1)


@functools.lru_cache(maxsize=4)
def _above_diagonal(num_tokens: int, num_rows: int) -> Tensor:
    """[1, num_rows, num_tokens]: minus infinity where a token would see a later one."""
    with torch.inference_mode(False):
        square = torch.full((num_tokens, num_tokens), float("-inf")).triu(1)
        return square.repeat(num_rows // num_tokens, 1)[None]


def _sdpa(*args: Any, **asked: Any) -> tuple[Tensor, None]:
    """transformers' own, with PyTorch's own products."""
    module, query, key, value, mask = args
    found = _with_own_products(
        lambda *inputs: sdpa_attention_forward(module, *inputs, mask, **asked)[0], query, key, value
    )
    return found, None


def _with_own_products(compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`compute`, forward and backward, without oneDNN, which makes PyTorch's kernel up to 3.3 times as slow."""
    if not matmul.using():
        return compute(*inputs)
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        return _Apart.apply(compute, *inputs)
    with matmul.onednn(False):
        return compute(*inputs)


class _Apart(torch.autograd.Function):
    """A function whose products, its gradient's too, are not oneDNN's."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.inputs = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
        with matmul.onednn(False), torch.enable_grad():
            ctx.out = compute(*ctx.inputs)
        return ctx.out.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        wanted = [x for x in ctx.inputs if x.requires_grad]
        with matmul.onednn(False):
            found = iter(torch.autograd.grad(ctx.out, wanted, gradient))
        return None, *(next(found) if x.requires_grad else None for x in ctx.inputs)


def _fastest(dtype: torch.dtype) -> tuple[str, str]:
    """Return the kernel that is by a margin faster than PyTorch's in this precision, else that; and what was found."""
    names = [name for name in KERNELS if dtype != torch.float32 or name != "sdpa in float32"]
    batch, heads, groups, seq, width = _PROBE
    draw = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(batch, seq, n, width, generator=draw).to(dtype).transpose(1, 2).requires_grad_()
        for n in (heads, groups, groups)
    ]

    def run(kernel: Kernel) -> None:
        found = kernel(inputs[0], inputs[1], inputs[2], width**-0.5)
        torch.autograd.grad(found, inputs, torch.ones_like(found))

    took = seconds({name: functools.partial(run, KERNELS[name]) for name in names}, rounds=3)
    gains = {name: took["sdpa"] / time for name, time in took.items() if name != "sdpa"}
    best = max(gains, key=gains.__getitem__)
    name = best if gains[best] >= _MARGIN else "sdpa"
    return name, f"{name}: {best} is {gains[best]:.2f} times as fast, at least {_MARGIN} is required"
