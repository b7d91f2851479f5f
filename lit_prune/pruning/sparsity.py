"""Choose the weights to zero by their scores: of a row, a matrix or the whole model, or N of every M in a row."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lit_prune.config import ConfigError
from lit_prune.importance.aggregate import double
from lit_prune.models.linears import linears_of, oriented, rows_of
from lit_prune.models.shape import meta_model
from lit_prune.pruning.layerwise import layerwise

Scores = dict[str, Tensor]
"""Name of a weight matrix -> score of each weight, [out, in]; higher means keep."""


class Pattern(NamedTuple):
    """N:M sparsity: of every `group` consecutive inputs of an output, at most `kept` weights are not zero."""

    kept: int
    group: int

    @property
    def sparsity(self) -> float:
        """The share of zeros."""
        return 1 - self.kept / self.group


def parse_pattern(text: str) -> Pattern:
    """Return the pattern written as "2:4".

    Raises:
        ConfigError: if it is none.
    """
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or not 0 < int(found[1]) < int(found[2]):
        raise ConfigError(f"prune.pattern: must be N:M with 0 < N < M, such as 2:4, got {text!r}")
    return Pattern(int(found[1]), int(found[2]))


def check_pattern(text: str | None, sparsity: float, config: Any) -> None:
    """Check that a pattern, if any, has a sparsity and divides the rows of the matrices of a model with this config.

    Raises:
        ConfigError: if it is none, has another sparsity or does not divide them.
    """
    if text is None:
        return
    pattern = parse_pattern(text)
    if abs(pattern.sparsity - sparsity) > 1e-6:
        raise ConfigError(f"prune.sparsity: must be {pattern.sparsity:g} with prune.pattern={text}, got {sparsity}")
    for name, module in linears_of(meta_model(config)):
        if (width := rows_of(module).shape[1]) % pattern.group:
            raise ConfigError(f"prune.pattern: its M must divide the {width} inputs of {name}, got {text}")


def keep_highest(scores: Tensor, zeros: Tensor | int) -> Tensor:
    """Return a mask that keeps the highest scores of each row, all but `zeros` of them; ties go to the lower index.

    `scores` are [rows, columns], `zeros` one number or one per row.
    """
    order = scores.sort(dim=1, descending=True, stable=True).indices
    limit = torch.as_tensor(scores.shape[1] - zeros, device=scores.device).expand(len(scores))
    kept = torch.arange(scores.shape[1], device=scores.device) < limit[:, None]
    return torch.zeros_like(kept).scatter_(1, order, kept)


def keep_in_rows(scores: Tensor, zeros: int) -> Tensor:
    """Return a mask of [rows, columns] with `zeros` zeros in all, equally many in each row up to one."""
    each, more = divmod(zeros, len(scores))
    return keep_highest(scores, each + (torch.arange(len(scores), device=scores.device) < more).long())


def keep_in_matrix(scores: Tensor, zeros: int) -> Tensor:
    """Return a mask of [rows, columns] with `zeros` zeros, wherever the scores are lowest."""
    return keep_highest(scores.reshape(1, -1), zeros).view(scores.shape)


def keep_in_groups(scores: Tensor, pattern: Pattern) -> Tensor:
    """Return a mask of [rows, columns] that keeps the N highest scores of every M consecutive ones of a row."""
    groups = scores.reshape(-1, pattern.group)
    return keep_highest(groups, pattern.group - pattern.kept).view(scores.shape)


def keep_in_model(scores: Scores, zeros: int) -> Scores:
    """Return masks with `zeros` zeros in all matrices together, wherever the scores are lowest. Sorts all at once."""
    flat = keep_highest(torch.cat([s.flatten() for s in scores.values()])[None], zeros)[0]
    parts = flat.split([s.numel() for s in scores.values()])
    return {name: part.view(s.shape) for (name, s), part in zip(scores.items(), parts, strict=True)}


Choose = Callable[[str, Tensor], Tensor]
"""(name of a weight, its scores [out, in]) -> mask [out, in]."""


def chooser(sparsity: float | Mapping[str, float], pattern: str | None, comparison: Literal["row", "matrix"]) -> Choose:
    """Return a function that masks a matrix by a pattern, or else to a sparsity: the same for all, or by its name."""
    if pattern is not None:
        groups = parse_pattern(pattern)
        return lambda name, scores: keep_in_groups(scores, groups)

    def choose(name: str, scores: Tensor) -> Tensor:
        share = sparsity[name] if isinstance(sparsity, Mapping) else sparsity
        keep = keep_in_rows if comparison == "row" else keep_in_matrix
        return keep(scores, round(share * scores.numel()))

    return choose


def layer_sparsities(model: Any, values: Sequence[float], epsilon: float, sparsity: float) -> dict[str, float]:
    """Return the sparsity of each matrix by its name, more in layers with higher `values`, one value per layer.

    Values are mapped linearly to [1 - epsilon, 1 + epsilon] and multiplied by the factor with which the sparsity of all
    matrices together is the requested one; no sparsity exceeds 1.
    """
    names = [[(name, module) for name, module in linears_of(model, i)] for i in range(len(values))]
    sizes = [sum(rows_of(module).numel() for _, module in layer) for layer in names]
    low, high = min(values), max(values)
    shares = [1.0 if high == low else 1 - epsilon + 2 * epsilon * (value - low) / (high - low) for value in values]
    found = _scaled(shares, sizes, sparsity * sum(sizes))
    return {name: share for layer, share in zip(names, found, strict=True) for name, _ in layer}


def _scaled(shares: Sequence[float], sizes: Sequence[int], total: float) -> list[float]:
    """Return c * shares, at most 1 each, with the c for which sum(share * size) is `total`."""
    full: set[int] = set()
    while True:
        left = total - sum(sizes[i] for i in full)
        factor = left / sum(
            share * size for i, (share, size) in enumerate(zip(shares, sizes, strict=True)) if i not in full
        )
        over = {i for i, share in enumerate(shares) if share * factor > 1} - full
        if not over:
            return [1.0 if i in full else share * factor for i, share in enumerate(shares)]
        full |= over


def magnitudes(model: Any) -> Scores:
    """Return |W| of every matrix."""
    return {name: rows_of(module).abs() for name, module in linears_of(model)}


def stored(model: Any, masks: Scores) -> Scores:
    """Return masks [out, in] in the shapes of their weights."""
    return {name: oriented(module, masks[name]) for name, module in linears_of(model)}


def wanda_masks(
    model: Any, batches: Iterable[dict[str, Tensor]], choose: Choose, on_progress: Callable[[int], None]
) -> Scores:
    """Zero weights of `model` by |W_ij| * ||X_j||_2 (Wanda, arXiv 2306.11695, equation 1); return the masks [out, in].

    X_j is input j of the linear over all tokens. The inputs of a layer are those that the pruned layers before it give.
    """
    masks: Scores = {}
    for step in layerwise(model, batches, on_progress):
        linears = dict(linears_of(model, step.index))
        with input_norms(linears) as norms:
            step.run()
        for name, module in linears.items():
            masks[name] = choose(name, rows_of(module).abs() * norms[name])
            rows_of(module).masked_fill_(~masks[name], 0)
    return masks


@contextmanager
def input_norms(linears: Mapping[str, nn.Module]) -> Iterator[Scores]:
    """Yield a dict that has, after `with`, the L2 norm of each input of each linear over all tokens it read: [in]."""
    squares: dict[str, Tensor] = {}
    norms: Scores = {}

    def reading(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def read(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found = double(inputs[0].detach()).flatten(0, -2).square().sum(0)
            squares[name] = squares[name] + found if name in squares else found

        return read

    handles = [module.register_forward_pre_hook(reading(name)) for name, module in linears.items()]
    try:
        yield norms
    finally:
        for handle in handles:
            handle.remove()
    for name, module in linears.items():
        norms[name] = squares[name].sqrt().to(module.weight)  # type: ignore[arg-type]
