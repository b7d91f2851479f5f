"""The blocks of a model compiled one by one, which takes seconds where the whole model would take minutes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lit_prune.models.model_family import blocks_of


@contextmanager
def compiled_blocks(model: Any) -> Iterator[None]:
    """Inside `with`, every block of a model is compiled; those of one shape share their code.

    What is compiled does not see hooks that are set on a block's parts later.
    """
    blocks = blocks_of(model)
    for block in blocks:
        block.compile()
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None  # what `compile` has set, and offers no way to take back
