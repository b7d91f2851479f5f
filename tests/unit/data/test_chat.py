"""Conversations use the tokenizer's chat template, and are scored as the corpus says."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from refusals import refuses
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from lit_prune.config import Corpus
from lit_prune.data.corpus import SPLITS, documents, pin
from lit_prune.data.retraining import Part, StepParts
from lit_prune.data.tokens import IGNORED, TokenSequences, write_tokens

START, STOP = "<|im_start|>", "<|im_end|>"
PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)
# Earlier turns are written in another way than the last one.
FORGETFUL = "{% for m in messages %}{% if loop.last %}<|im_start|>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"


def chats(number: int = 60) -> list[list[dict[str, str]]]:
    return [
        [
            {"role": "user", "content": f"question {i}"},
            {"role": "assistant", "content": f"answer {i}"},
            {"role": "user", "content": f" and {STOP} then "},
            {"role": "assistant", "content": f"the end {i}"},
        ]
        for i in range(number)
    ]


@pytest.fixture
def source(tmp_path: Path) -> str:
    rows = "".join(json.dumps({"messages": chat, "id": i}) + "\n" for i, chat in enumerate(chats()))
    (tmp_path / "chat.jsonl").write_text(rows)
    return str(tmp_path / "chat.jsonl")


def tokenizer_with(template: str | None, tiny_tokenizer: Any) -> Any:
    """`tiny_tokenizer` with ChatML's controls, 256 and 257."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str()),
        eos_token=tiny_tokenizer.eos_token,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [START, STOP]})
    tokenizer.chat_template = template
    return tokenizer


def rendered(chat: list[dict[str, str]]) -> str:
    return "".join(f"{START}{m['role']}\n{m['content'].strip()}{STOP}\n" for m in chat)


def written(tokenizer: Any, folder: Path, split: str) -> list[dict[str, Any]]:
    return list(TokenSequences(folder, split, 64))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_conversation_is_a_document_in_the_templates_words(
    tmp_path: Path, source: str, tiny_tokenizer, kind: str
) -> None:
    if kind == "parquet":
        source = str(tmp_path / "chat.parquet")
        pd.DataFrame({"messages": chats()}).to_parquet(source)
    tokenizer = tokenizer_with(PLAIN, tiny_tokenizer)
    write_tokens(pin(Corpus(path=source, text_column="messages")), tokenizer, tmp_path / "tokens", vocab_size=258)
    text, num_stops = "", 0
    for split in SPLITS:
        for block in written(tokenizer, tmp_path / "tokens", split):
            ids = block["input_ids"][block["labels"] != IGNORED].tolist()
            text += tokenizer.decode(ids)
            num_stops += ids.count(257)
    found = [f"{START}user\nquestion{rest}" for rest in text.split(f"{START}user\nquestion")[1:]]
    assert sorted(found) == sorted(rendered(chat) + tokenizer.eos_token for chat in chats())
    assert num_stops == 4 * 60  # and not the 60 that a user spelled


@pytest.mark.parametrize(("template", "turn_end"), [(PLAIN, f"{STOP}\n"), (MARKED, STOP)])
def test_the_loss_is_on_the_assistants_turns(
    tmp_path: Path, source: str, tiny_tokenizer, template: str, turn_end: str
) -> None:
    tokenizer = tokenizer_with(template, tiny_tokenizer)
    corpus = Corpus(path=source, text_column="messages", loss_on="assistant")
    write_tokens(pin(corpus), tokenizer, tmp_path / "tokens")
    scored = ""
    for split in SPLITS:
        for block in written(tokenizer, tmp_path / "tokens", split):
            labels = block["labels"]
            assert (labels[labels != IGNORED] == block["input_ids"][labels != IGNORED]).all()
            scored += tokenizer.decode(labels[labels != IGNORED])
    wanted = [f"answer {i}{turn_end}the end {i}{turn_end}" for i in range(60)]
    assert sorted(f"answer {rest}" for rest in scored.split("answer ")[1:]) == sorted(wanted)


def test_only_sequences_with_scored_tokens_are_kept_and_counted(tmp_path: Path, tiny_tokenizer) -> None:
    """By hand: a long question fills blocks that nothing is scored in."""
    chat = [{"role": "user", "content": "why " * 300}, {"role": "assistant", "content": "no"}]
    rows = [{"messages": [*chat, {"role": "user", "content": str(i)}]} for i in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = Corpus(path=str(tmp_path / "a.jsonl"), text_column="messages", loss_on="assistant")
    counts = write_tokens(corpus, tokenizer_with(PLAIN, tiny_tokenizer), tmp_path / "tokens")
    blocks = TokenSequences(tmp_path / "tokens", "train", 32)
    by_labels = [int((block["labels"][1:] != IGNORED).sum()) for block in blocks]
    assert [blocks.num_scored(i) for i in range(len(blocks))] == by_labels
    assert all(by_labels)
    assert 0 < blocks.num_whole <= len(blocks) < counts["train"] // 32
    part = StepParts(blocks)[Part((0,), (0, 1, 2))]
    assert part["mean_scored"] == pytest.approx(sum(by_labels[:3]) / 3)


def test_a_text_counts_its_scored_tokens(numbered) -> None:
    blocks = TokenSequences(numbered(train=11), "train", 4)
    assert [blocks.num_scored(i) for i in range(3)] == [3, 3, 2]


@pytest.mark.parametrize(
    ("template", "fields", "field", "values"),
    [
        (None, {}, "corpus.text_column", ("'messages'", "chat template")),
        (FORGETFUL, {"loss_on": "assistant"}, "corpus.loss_on", ("all",)),
        ("{{ raise_exception('roles must alternate') }}", {}, "corpus.text_column", ("roles must alternate",)),
    ],
)
def test_what_cannot_be_written_is_refused(
    tmp_path: Path, source: str, tiny_tokenizer, template: str | None, fields: dict[str, Any], field: str, values: Any
) -> None:
    corpus = Corpus(path=source, text_column="messages", **fields)
    with refuses(field, *values):
        write_tokens(corpus, tokenizer_with(template, tiny_tokenizer), tmp_path / "tokens")


def test_plain_text_has_no_turns(tmp_path: Path, source: str, tiny_tokenizer) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' * 50)
    with refuses("corpus.loss_on", "all"):
        write_tokens(Corpus(path=str(tmp_path / "a.jsonl"), loss_on="assistant"), tiny_tokenizer, tmp_path / "tokens")
    with refuses("corpus.text_column", "'messages'"):
        list(documents(Corpus(path=source, text_column="messages")))
