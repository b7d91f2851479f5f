"""Whether a model expects its texts to begin with a begin-of-text token. No torch, no transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lit_prune.config import ConfigError


def expects_bos(folder: Path) -> bool:
    """Return whether the tokenizer in a folder puts its begin-of-text token before a text.

    Reads the two files that decide it (`add_bos_token` of tokenizer_config.json, else the post-processor of
    tokenizer.json). Only a tokenizer without tokenizer.json is loaded with transformers.

    Raises:
        ConfigError: if the files cannot be read.
    """
    config = _config(folder / "tokenizer_config.json")
    if isinstance(config.get("add_bos_token"), bool):
        return config["add_bos_token"]
    if not (folder / "tokenizer.json").is_file():
        from lit_prune.models.loading import load_tokenizer

        tokenizer = load_tokenizer(str(folder))
        bos = tokenizer.bos_token_id
        return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
    from tokenizers import Tokenizer

    bos = config.get("bos_token")
    bos = bos.get("content") if isinstance(bos, dict) else bos
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises plain Exceptions
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"teacher.model: {folder / 'tokenizer.json'} cannot be read ({reason})") from None
    return isinstance(bos, str) and tokenizer.encode("a").tokens[:1] == [bos]


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ConfigError(f"teacher.model: {path} cannot be read ({error})") from None
    return config if isinstance(config, dict) else {}
