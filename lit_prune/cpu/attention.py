"""Causal self-attention on a CPU, a few tokens and heads at a time, so that their scores stay in the cache.

PyTorch's kernel splits the scores into small matmuls, which some BLAS libraries compute slowly: on AMD it took half of
a distillation step, and this kernel 0.55 of its time. On Intel, PyTorch's is faster in float32. In bfloat16 without
hardware support both are slower than in float32. So a probe chooses the fastest kernel for each of the two dtypes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lit_prune.cpu import matmul
from lit_prune.cpu.timing import seconds

Kernel = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""(queries [batch, heads, seq, width], keys and values [batch, groups, seq, width], scale) -> shape of the queries."""

MAX_TOKENS = 1024
"""Longest sequence at which the blocked kernel was measured to be faster than PyTorch's in both dtypes."""
_CACHE = 4 * 2**20
"""Bytes of scores that are computed at once."""
_TOKENS = 64
"""Tokens whose scores are computed at once: scores of later tokens are computed too, but only among these. With 64
instead of all 512 tokens, a forward and backward pass took 0.64 of the time."""
_MARGIN = 1.2
_ENTRIES_TIMED = 2 * 8 * 256 * 32
"""Entries of the queries of the timed attention, at most, unless one sequence has more: it takes milliseconds."""
_UNUSUAL = ("softcap", "position_bias", "cache", "s_aux", "output_attentions")
"""Optional arguments of attention that these kernels do not support."""

_kernels: dict[torch.dtype, Kernel] = {}


class AttentionShape(NamedTuple):
    """The shape of the attention of a model on a batch."""

    batch: int
    heads: int
    groups: int
    """Key-value heads."""
    seq_len: int
    head_dim: int

    @property
    def timed(self) -> AttentionShape:
        """The same with as many sequences as are timed."""
        entries = self.heads * self.seq_len * self.head_dim
        return self._replace(batch=max(1, min(self.batch, _ENTRIES_TIMED // entries)))


QUICK = AttentionShape(2, 8, 4, 256, 32)
"""Of half a step of the profile `quick`."""


def switch(wanted: bool, shape: AttentionShape = QUICK) -> dict[str, str]:
    """Replace transformers' `sdpa` by the kernel that is fastest at a shape; return for each dtype which, and why.

    The registered name stays `sdpa`, since it is stored in the configs of saved models.
    """
    use({})
    if not wanted:
        return {"float32": "sdpa", "bfloat16": "sdpa"}
    found = {dtype: _fastest(dtype, shape.timed) for dtype in (torch.float32, torch.bfloat16)}
    use({dtype: KERNELS[name] for dtype, (name, _) in found.items() if name != "sdpa"})
    return {str(dtype).removeprefix("torch."): why for dtype, (_, why) in found.items()}


def use(kernels: dict[torch.dtype, Kernel]) -> None:
    """Use these kernels for plain causal attention in their dtypes, and `sdpa` for everything else."""
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
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Return the attention of transformers' `sdpa`, [batch, seq, heads, width]; plain causal may use another kernel."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    kernel = _kernels.get(dtype)
    if kernel is None or not _is_plain(module, query, key, value, attention_mask, kwargs):
        return _sdpa(module, query, key, value, attention_mask, **kwargs)
    scale = kwargs.get("scaling")
    with torch.autocast("cpu", enabled=False):
        found = kernel(query, key, value, query.shape[-1] ** -0.5 if scale is None else scale)
    return found.to(dtype).transpose(1, 2).contiguous(), None


def _is_plain(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]
) -> bool:
    """Return whether this is causal self-attention of whole sequences on a CPU, without mask or other options."""
    causal, window, (_, heads, num_tokens, _) = options.get("is_causal"), options.get("sliding_window"), query.shape
    return (
        mask is None
        and (getattr(module, "is_causal", True) if causal is None else causal)
        and 1 < num_tokens <= MAX_TOKENS
        and query.device.type == "cpu"
        and (query.shape[0], *query.shape[2:]) == (key.shape[0], *key.shape[2:])
        and key.shape == value.shape
        and heads % key.shape[1] == 0
        and (window is None or window >= num_tokens)
        and not options.get("dropout")
        and all(options.get(name) is None or options[name] is False for name in _UNUSUAL)
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
    )  # fmt: skip


def blocked(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Compute attention from explicit float32 scores, a few groups of heads at a time."""
    return _Blocked.apply(query.float(), key.float(), value.float(), scale)


def float32(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Compute attention with PyTorch's kernel in float32."""
    return native(query.float(), key.float(), value.float(), scale)


def native(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Compute attention with PyTorch's kernel in the dtype of the input."""
    return _with_own_products(
        functools.partial(F.scaled_dot_product_attention, is_causal=True, scale=scale, enable_gqa=True),
        query, key, value,
    )  # fmt: skip


KERNELS: dict[str, Kernel] = {"sdpa": native, "sdpa in float32": float32, "blocked": blocked}


class _Blocked(torch.autograd.Function):
    """Causal softmax(scale Q K^T) V in float32; the backward pass recomputes the scores.

    Scores are computed for a few tokens of all query heads of some KV groups, and the keys up to the last of these
    tokens. The query heads of a group are rows of one matrix, since they share keys and values.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        ctx.scale, ctx.shape = scale, key.shape
        keys, values = (key * scale).flatten(0, 1), value.flatten(0, 1)
        rows = _by_tokens(query, len(keys))
        ctx.save_for_backward(keys, values, *rows)
        out = [torch.empty_like(part) for part in rows]
        for i, groups, seen in _parts(rows, keys):
            weights = _probabilities(rows[i][groups], keys[groups, :seen], query.shape[1] // key.shape[1])
            torch.bmm(weights, values[groups, :seen], out=out[i][groups])
        return _joined(out, query.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        keys, values, *rows = ctx.saved_tensors
        gradients = _by_tokens(gradient, len(keys))
        of_rows = [torch.empty_like(part) for part in rows]
        of_keys, of_values = torch.zeros_like(keys), torch.zeros_like(values)
        with torch.autocast("cpu", enabled=False):
            for i, groups, seen in _parts(rows, keys):
                ours, theirs = rows[i][groups], gradients[i][groups]
                weights = _probabilities(ours, keys[groups, :seen], gradient.shape[1] // ctx.shape[1])
                of_values[groups, :seen].baddbmm_(weights.mT, theirs)
                scores = torch.bmm(theirs, values[groups, :seen].mT)
                scores = torch.ops.aten._softmax_backward_data(scores, weights, -1, torch.float32)
                torch.bmm(scores, keys[groups, :seen], out=of_rows[i][groups])
                of_keys[groups, :seen].baddbmm_(scores.mT, ours)
        of_keys.mul_(ctx.scale)
        return _joined(of_rows, gradient.shape), of_keys.view(ctx.shape), of_values.view(ctx.shape), None


def _by_tokens(heads: Tensor, num_groups: int) -> list[Tensor]:
    """Return [batch, heads, seq, width] as tensors [groups, heads of a group * tokens, width], of a few tokens each."""
    return [part.reshape(num_groups, -1, heads.shape[-1]) for part in heads.split(_TOKENS, dim=2)]


def _joined(parts: list[Tensor], shape: torch.Size) -> Tensor:
    """Return what `_by_tokens` split, of the given shape."""
    return torch.cat([part.view(*shape[:2], -1, shape[-1]) for part in parts], dim=2)


def _parts(rows: list[Tensor], keys: Tensor) -> Iterator[tuple[int, slice, int]]:
    """Yield (index of rows, groups, number of keys up to the last token) such that the scores fit in the cache."""
    for i, part in enumerate(rows):
        seen = min((i + 1) * _TOKENS, keys.shape[1])
        size = max(1, _CACHE // (4 * part.shape[1] * seen))
        for first in range(0, len(keys), size):
            yield i, slice(first, first + size), seen


def _probabilities(rows: Tensor, keys: Tensor, num_heads: int) -> Tensor:
    """Return the attention probabilities [groups, heads * tokens, seen], 0 at later tokens; the last seen are ours."""
    scores = torch.bmm(rows, keys.mT)
    num_tokens = rows.shape[1] // num_heads
    scores.unflatten(1, (num_heads, -1))[..., -num_tokens:].add_(_above_diagonal(num_tokens))
    return scores.softmax(-1)


@functools.lru_cache(maxsize=4)
def _above_diagonal(num_tokens: int) -> Tensor:
    """Return the causal mask [num_tokens, num_tokens]: minus infinity at later tokens, else 0."""
    with torch.inference_mode(False):
        return torch.full((num_tokens, num_tokens), float("-inf")).triu(1)


def _sdpa(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """Compute transformers' own `sdpa`, with PyTorch's default matmuls."""
    module, query, key, value, mask = args
    found = _with_own_products(
        lambda *inputs: sdpa_attention_forward(module, *inputs, mask, **kwargs)[0], query, key, value
    )
    return found, None


def _with_own_products(compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return `compute(*inputs)` without oneDNN in both passes: it makes PyTorch's kernel up to 3.3 times as slow."""
    if not matmul.using():
        return compute(*inputs)
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        return _Apart.apply(compute, *inputs)
    with matmul.onednn(False):
        return compute(*inputs)


class _Apart(torch.autograd.Function):
    """A function whose forward and backward matmuls do not use oneDNN."""

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


def _fastest(dtype: torch.dtype, shape: AttentionShape) -> tuple[str, str]:
    """Return the fastest kernel if it beats PyTorch's by a margin in this dtype, else `sdpa`; and the reason."""
    names = [name for name in KERNELS if dtype != torch.float32 or name != "sdpa in float32"]
    batch, heads, groups, seq, width = shape
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
    gain = f"{best} is {gains[best]:.2f} times as fast, at least {_MARGIN} is required"
    return name, f"{name}: {gain} ({heads} heads, {groups} groups, {seq} tokens, width {width})"
