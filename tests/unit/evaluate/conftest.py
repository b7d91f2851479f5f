"""Texts and tokenizers for losses of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scored_texts import written
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


@pytest.fixture
def source(tmp_path: Path, texts: list[str]) -> str:
    """Return the path of a file of the first twelve documents of `texts`."""
    return written(tmp_path, texts[:12])


@pytest.fixture
def byte_tokenizer() -> Any:
    """Return a tokenizer of a token a byte, and a begin token before every text."""
    # Without the byte 255, which no UTF-8 text holds, 256 entries are enough.
    letters = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {"ÿ"})
    vocab = {letter: i + 1 for i, letter in enumerate(letters)} | {"<s>": 0}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")
