"""Compare the held-out loss of a pretrained teacher with that of a trigram model."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lit_prune.config import ConfigError, Pretraining
from lit_prune.config.overrides import build
from lit_prune.config.renames import current
from lit_prune.data.calibration import CalibrationData
from lit_prune.data.corpus import pin
from lit_prune.data.tokens import TokenSequences, write_tokens
from lit_prune.evaluate.perplexity import language_model_loss
from lit_prune.evaluate.trigram import KneserNeyTrigram
from lit_prune.models import loading
from lit_prune.models.files import CARD


def heldout_loss(model: Any, tokens: Path, seq_len: int) -> tuple[float, int]:
    """Return nats per token over every full sequence of the validation split, and the number of scored tokens."""
    whole = TokenSequences(tokens, "validation", seq_len).num_whole
    data = CalibrationData(tokens, num_sequences=whole, seq_len=seq_len, seed=0, split="validation")
    return language_model_loss(model, data.predict_dataloader())


def recipe_of(folder: Path) -> Pretraining:
    """Return the recipe in a teacher's model card; the default recipe if it has no card."""
    card = folder / CARD
    if not card.is_file():
        return Pretraining()
    recipe = current(json.loads(card.read_text())["recipe"], Pretraining)
    # Addresses, and cards written from them, name a text by its fingerprint only.
    corpus = {"path": Pretraining().corpus.path, **recipe["corpus"]}
    return build(Pretraining, {**recipe, "corpus": corpus})


def worth(folder: Path, say: Callable[[str], None] = lambda what: None) -> dict[str, Any]:
    """Return the held-out loss of a teacher and of a Kneser-Ney trigram model on the same tokens.

    The corpus of the teacher's recipe, as found on this machine, is tokenised again with the teacher's tokenizer.
    The trigram is fitted to all train tokens; both are scored on the validation split. Returns `teacher`,
    `trigram` and `gap` (nats/token), `scored` and `fitted` (tokens), `corpus`, and `same_text`: whether the
    corpus has the fingerprint on the card.

    Raises:
        ConfigError: if the folder holds no teacher, or its corpus cannot be read.
    """
    if not (folder / "config.json").is_file():
        raise ConfigError(f"--check: {folder} holds no teacher")
    recipe = recipe_of(folder)
    today = pin(dataclasses.replace(recipe.corpus, fingerprint=None))
    tokenizer, model = loading.load_tokenizer(str(folder)), loading.load_model(str(folder))
    with tempfile.TemporaryDirectory() as scratch:
        tokens = Path(scratch)
        say(f"tokenising {today.path}")
        fitted = write_tokens(today, tokenizer, tokens, vocab_size=model.config.vocab_size)["train"]
        say(f"fitting a trigram model to {fitted:,} tokens")
        trigram = trigram_loss(tokens, len(tokenizer), recipe.seq_len)
        say("scoring the teacher")
        loss, scored = heldout_loss(model, tokens, recipe.seq_len)
    return {
        "teacher": loss, "trigram": trigram, "gap": trigram - loss, "scored": scored, "fitted": fitted,
        "corpus": today.path, "same_text": today.fingerprint == recipe.corpus.fingerprint,
    }  # fmt: skip


def trigram_loss(tokens: Path, vocab_size: int, seq_len: int) -> float:
    """Return the nats per token of a trigram model of the train split on the tokens that `heldout_loss` scores."""
    dtype = json.loads((tokens / "tokens.json").read_text())["dtype"]
    ids, heldout = (np.fromfile(tokens / f"{split}.bin", dtype) for split in ("train", "validation"))
    whole = len(heldout) // seq_len * seq_len
    return KneserNeyTrigram.fit(ids, vocab_size).nats_per_token(heldout[:whole], seq_len)
