"""The tokenizer in the metadata of a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_prune.config import ConfigError
from lit_prune.models.files import first_line, named
from lit_prune.models.gguf_header import GgufHeader

_CONTROL, _USER_DEFINED = 3, 4
"""Token types that are matched as a whole: control tokens and user-defined ones."""
_CONTRACTIONS_AND_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REGEX = {
    "llama-bpe": _CONTRACTIONS_AND_WORDS + r"\p{N}{1,3}" + _REST,
    "qwen2": _CONTRACTIONS_AND_WORDS + r"\p{N}" + _REST,
}
"""Pre-tokenizer regex of Llama 3 and Qwen 2; the others split as GPT-2."""
_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell")
"""Pre-tokenizers that split every digit first, and then as GPT-2."""
PRE_TOKENIZERS = ("gpt-2", *_DIGITS, *_REGEX)
"""Supported values of `tokenizer.ggml.pre`."""


def tokenizer_of(header: GgufHeader) -> Any:
    """Return the tokenizer of a file, with its special tokens and chat template.

    Raises:
        ConfigError: if its kind is not supported.
    """
    kind = header.metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        return _byte_level(header)
    if kind == "llama":
        return _sentencepiece(header)
    raise ConfigError(f"{named(header.location)}: tokenizer.ggml.model must be gpt2 or llama, got {kind!r}")


def _byte_level(header: GgufHeader) -> Any:
    """Return a byte-level BPE tokenizer."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    metadata = header.metadata
    split = metadata.get("tokenizer.ggml.pre")
    if split not in PRE_TOKENIZERS:
        allowed = ", ".join(PRE_TOKENIZERS)
        raise ConfigError(f"{named(header.location)}: tokenizer.ggml.pre must be one of {allowed}, got {split!r}")
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=split == "llama-bpe"))
    tokenizer.pre_tokenizer, tokenizer.decoder = _pre_tokenizer(split), decoders.ByteLevel()
    if split == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    for token, its_type in zip(tokens, metadata.get("tokenizer.ggml.token_type", ()), strict=False):
        if its_type in (_CONTROL, _USER_DEFINED):
            special = its_type == _CONTROL
            added = AddedToken(token, normalized=False, special=special)
            (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([added])
    _begin_with_bos(tokenizer, header)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, add_bos_token=header.expects_bos,
        model_max_length=header.config.get("max_position_embeddings"),
        chat_template=metadata.get("tokenizer.chat_template"), **_special_tokens(header),
    )  # fmt: skip


def _pre_tokenizer(split: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    if split in _REGEX:
        pieces = pre_tokenizers.Split(Regex(_REGEX[split]), behavior="isolated")
        return pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    like_gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split not in _DIGITS:
        return like_gpt2
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), like_gpt2])


def _begin_with_bos(tokenizer: Any, header: GgufHeader) -> None:
    from tokenizers import processors

    bos = _special_tokens(header).get("bos_token")
    if header.expects_bos and bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B:1", special_tokens=[(bos, header.token("bos"))]
        )


def _special_tokens(header: GgufHeader) -> dict[str, str]:
    """Return the special tokens by their role, such as bos_token."""
    tokens = header.metadata["tokenizer.ggml.tokens"]
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {role: header.token(key) for role, key in roles.items()}
    return {f"{role}_token": tokens[i] for role, i in ids.items() if i is not None}


def _sentencepiece(header: GgufHeader) -> Any:
    """Return a SentencePiece BPE tokenizer; transformers recovers its merges from the scores."""
    from transformers import AutoTokenizer

    path = Path(header.location)
    try:
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:  # parsers of several libraries raise several kinds
        raise ConfigError(f"{named(header.location)}: its tokenizer cannot be used ({first_line(error)})") from None
