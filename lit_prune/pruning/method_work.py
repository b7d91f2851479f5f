"""FLOPs of what a pruning method computes itself, from configs alone: its time is proportional to them."""

from __future__ import annotations

import math
from typing import Any

from lit_prune.config import Calibration
from lit_prune.models.flops import forward_flops
from lit_prune.models.model_family import anatomy_of, head_dim_of
from lit_prune.models.shape import shape_of

EIGEN, SINGULAR = 9, 20
"""FLOPs of an eigendecomposition of a symmetric n x n matrix / n^3, and of a singular value decomposition of an m x n
matrix / (m n min(m, n)), with vectors (Golub and Van Loan, Matrix Computations, sections 8.3 and 8.6)."""


class Work:
    """The FLOPs of common parts of methods, for a model with a config and the calibration sequences of a cell."""

    def __init__(self, config: Any, data: Calibration) -> None:
        self.config, self.data, self.shape = config, data, shape_of(config)
        self.layers, self.hidden = self.shape.num_hidden_layers, self.shape.hidden_size
        self.neurons = self.shape.intermediate_size
        self.values = self.shape.num_attention_heads * head_dim_of(config)
        """Inputs of the output projection of attention."""
        self._forward = data.seq_len * forward_flops(config, data.seq_len)
        self._head = data.seq_len * 2 * config.vocab_size * config.hidden_size
        anatomy = anatomy_of(config)
        others = self.shape.num_key_value_heads * head_dim_of(config)
        self.linears = [(self.values, self.hidden), (others, self.hidden), (others, self.hidden)]
        """[out, in] of the linears of a layer."""
        self.linears += [(self.hidden, self.values), (self.hidden, self.neurons)]
        self.linears += [(self.neurons, self.hidden)] * (1 + anatomy.gated)

    def training(self, max_steps: int, batch_size: int, passes: float) -> float:
        """Return the FLOPs of training steps, each of which costs as much as so many forward passes."""
        return passes * max_steps * batch_size * self._forward

    def passes(self, count: float = 1, sequences: int | None = None) -> float:
        """Return the FLOPs of forward passes over calibration sequences, by default all of them."""
        return count * self._number(sequences) * self._forward

    def layerwise(self) -> float:
        """Return the FLOPs of running every layer twice over all sequences: to read it, and after it is changed."""
        return 2 * self._number(None) * (self._forward - self._head)

    def grams(self, width: int) -> float:
        """Return the FLOPs of a sum of x x^T over all tokens, for x of a width, in every layer."""
        return self.layers * self._number(None) * self.data.seq_len * 2 * width**2

    def replaced(self, variants: int, sequences: int) -> float:
        """Return the FLOPs of a whole pass, and of one with each variant of each layer that begins at that layer."""
        body = (self._forward - self._head) * (self.layers + 1) / 2
        return self._number(sequences) * (self._forward + variants * (body + self.layers * self._head))

    def eigenvectors(self, width: int) -> float:
        """Return the FLOPs of the eigenvectors of a symmetric matrix of a width in every layer."""
        return float(self.layers * EIGEN * width**3)

    def eigenvalues(self) -> float:
        """Return the FLOPs of the eigenvalues of W W^T of every linear."""
        each = (2 * math.prod(shape) * min(shape) + 4 / 3 * min(shape) ** 3 for shape in self.linears)
        return self.layers * sum(each)

    def decompositions(self) -> float:
        """Return the FLOPs of the singular value decompositions of all linears."""
        return self.layers * sum(SINGULAR * math.prod(shape) * min(shape) for shape in self.linears)

    def _number(self, sequences: int | None) -> int:
        return self.data.num_sequences if sequences is None else min(sequences, self.data.num_sequences)
