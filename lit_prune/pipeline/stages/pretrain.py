"""A teacher trained from random weights: tokenizer, tokens, model, and what it is worth beside a trigram model."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lit_prune.config import ConfigError, Corpus, Distill, Execution, Pretraining
from lit_prune.config.overrides import build
from lit_prune.data.calibration import CalibrationData
from lit_prune.data.corpus import documents, pin
from lit_prune.data.tokens import TokenSequences, tokens_are_whole, write_tokens
from lit_prune.distill.train import Tell, train
from lit_prune.evaluate.perplexity import language_model_loss
from lit_prune.evaluate.trigram import KneserNeyTrigram
from lit_prune.models import loading
from lit_prune.models.files import CARD

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(corpus: Corpus, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `vocab_size` entries, trained on the train split.

    Raises:
        ConfigError: too few entries for all bytes and the end of text.
    """
    if vocab_size < 257:
        raise ConfigError(f"pretraining.vocab_size: {vocab_size} asked for; 256 bytes and the end of text take 257")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator((text for split, text in documents(corpus) if split == "train"), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)


def config_of(recipe: Pretraining, eos: int = 0) -> LlamaConfig:
    """The Hugging Face config of a recipe.

    Raises:
        ConfigError: a shape that Llama's config forbids.
    """
    try:
        return LlamaConfig(
            vocab_size=recipe.vocab_size, hidden_size=recipe.hidden, intermediate_size=recipe.neurons,
            num_hidden_layers=recipe.layers, num_attention_heads=recipe.heads, head_dim=recipe.head_dim,
            num_key_value_heads=recipe.kv_heads, max_position_embeddings=4 * recipe.block,
            tie_word_embeddings=False, bos_token_id=eos, eos_token_id=eos,
        )  # fmt: skip
    except Exception as error:  # the config's own validators raise several kinds
        problem = " ".join(str(error).split())
        raise ConfigError(f"pretraining: this is no shape of a Llama ({problem})") from None


def new_model(recipe: Pretraining, eos: int) -> LlamaForCausalLM:
    """A Llama with weights drawn from the recipe's seed; output projections are scaled down with depth."""
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(config_of(recipe, eos))
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.data.div_((2 * recipe.layers) ** 0.5)
    return model


def objective(recipe: Pretraining) -> Distill:
    """Pretraining as the training objective that it is: cross-entropy alone."""
    return Distill(
        w_clm=1.0, w_logits=0.0, block=recipe.block, batch=recipe.batch, steps=recipe.steps,
        optim=recipe.optim,
    )  # fmt: skip


def pretrain(recipe: Pretraining, folder: Path, execution: Execution, tell: Tell) -> dict[str, Any]:
    """Train a teacher into `folder`/model, in Hugging Face layout; resumed where it was interrupted.

    Returns validation loss (nats/token), tokens trained on, and the corpus's fingerprint.
    """
    tokens, target = folder / "tokens", folder / "model"
    tokenizer = prepare(recipe, folder)
    model = new_model(recipe, tokenizer.eos_token_id)
    train(model, None, objective(recipe), tokens, folder, seed=recipe.seed, execution=execution, tell=tell)
    model.half().save_pretrained(target)
    loss, num_tokens = heldout_loss(model.float(), tokens, recipe.block)
    return {
        "lm_loss": loss,
        "lm_loss_tokens": num_tokens,
        "tokens": recipe.steps * recipe.batch * recipe.block,
        "distinct_tokens": json.loads((tokens / "tokens.json").read_text())["num_tokens"]["train"],
        "parameters": model.num_parameters(),
        "corpus": recipe.corpus.fingerprint,
    }


def prepare(recipe: Pretraining, folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in `folder`/model and the tokens in `folder`/tokens, made where they are missing."""
    tokens, target = folder / "tokens", folder / "model"
    if not tokens_are_whole(tokens):
        tokenizer = train_tokenizer(recipe.corpus, recipe.vocab_size)
        config_of(recipe, tokenizer.eos_token_id).save_pretrained(target)
        tokenizer.save_pretrained(target)
        write_tokens(recipe.corpus, tokenizer, tokens, vocab_size=recipe.vocab_size)
    return loading.load_tokenizer(str(target))


def heldout_loss(model: Any, tokens: Path, block: int) -> tuple[float, int]:
    """Nats per token over every whole block of the validation split, and the tokens scored."""
    whole = TokenSequences(tokens, "validation", block).num_whole
    data = CalibrationData(tokens, samples=whole, block=block, seed=0, split="validation")
    return language_model_loss(model, data.predict_dataloader())


def recipe_of(folder: Path) -> Pretraining:
    """The recipe on a teacher's card; the default recipe where it has no card."""
    card = folder / CARD
    if not card.is_file():
        return Pretraining()
    recipe = json.loads(card.read_text())["recipe"]
    # An address knows text by its fingerprint alone, and so did cards written from one.
    corpus = {"source": Pretraining().corpus.source, **recipe["corpus"]}
    return build(Pretraining, {**recipe, "corpus": corpus})


def worth(folder: Path, say: Callable[[str], None] = lambda what: None) -> dict[str, Any]:
    """What a teacher has learned beyond counting: its held-out loss beside a Kneser-Ney trigram model's.

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
        say(f"tokenising {today.source}")
        fitted = write_tokens(today, tokenizer, tokens, vocab_size=model.config.vocab_size)["train"]
        say(f"fitting a trigram model to {fitted:,} tokens")
        trigram = trigram_loss(tokens, len(tokenizer), recipe.block)
        say("scoring the teacher")
        loss, scored = heldout_loss(model, tokens, recipe.block)
    return {
        "teacher": loss, "trigram": trigram, "gap": trigram - loss, "scored": scored, "fitted": fitted,
        "corpus": today.source, "same_text": today.fingerprint == recipe.corpus.fingerprint,
    }  # fmt: skip


def trigram_loss(tokens: Path, vocab_size: int, block: int) -> float:
    """Nats per token of a trigram model of the train split, over the tokens that `heldout_loss` scores."""
    dtype = json.loads((tokens / "tokens.json").read_text())["dtype"]
    ids, heldout = (np.fromfile(tokens / f"{split}.bin", dtype) for split in ("train", "validation"))
    whole = len(heldout) // block * block
    return KneserNeyTrigram.fit(ids, vocab_size).nats_per_token(heldout[:whole], block)
