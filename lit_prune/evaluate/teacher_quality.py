"""What a pretrained teacher has learned beyond counting: its held-out loss beside a trigram model's."""

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
    """Nats per token over every full sequence of the validation split, and the tokens scored."""
    whole = TokenSequences(tokens, "validation", seq_len).num_whole
    data = CalibrationData(tokens, num_sequences=whole, seq_len=seq_len, seed=0, split="validation")
    return language_model_loss(model, data.predict_dataloader())


def recipe_of(folder: Path) -> Pretraining:
    """Return the recipe on a teacher's card; the default recipe where it has no card."""
    card = folder / CARD
    if not card.is_file():
        return Pretraining()
    recipe = current(json.loads(card.read_text())["recipe"], Pretraining)
    # An address knows text by its fingerprint alone, and so did cards written from one.
    corpus = {"path": Pretraining().corpus.path, **recipe["corpus"]}
    return build(Pretraining, {**recipe, "corpus": corpus})


def worth(folder: Path, say: Callable[[str], None] = lambda what: None) -> dict[str, Any]:
    """Return what a teacher has learned beyond counting: its held-out loss beside a Kneser-Ney trigram model's.

    Its recipe's corpus, as it stands on this machine, is tokenised anew with its own tokenizer. The trigram
    is fitted to all train tokens, and both are scored on the same tokens of the validation split. Returns
    `teacher`, `trigram` and `gap` (nats/token), `scored` and `fitted` (tokens), `corpus`, and whether that is
    the `same_text` as on the card.

    Raises:
        ConfigError: no teacher there, or its corpus cannot be read.
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
    """Nats per token of a trigram model of the train split, over the tokens that `heldout_loss` scores."""
    dtype = json.loads((tokens / "tokens.json").read_text())["dtype"]
    ids, heldout = (np.fromfile(tokens / f"{split}.bin", dtype) for split in ("train", "validation"))
    whole = len(heldout) // seq_len * seq_len
    return KneserNeyTrigram.fit(ids, vocab_size).nats_per_token(heldout[:whole], seq_len)
