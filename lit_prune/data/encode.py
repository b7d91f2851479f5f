"""Encode passages and conversations as token ids, with a mask of the scored ones."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

from lit_prune.config import ConfigError, Corpus
from lit_prune.data import passages as texts
from lit_prune.data.corpus import Passage, Split
from lit_prune.data.rows import Messages

_PASSAGES_AT_ONCE = 64
_GENERATION = re.compile(r"\{%-?\s*generation\b")

Span = tuple[int, int]
"""Index of the first character, and of the one after the last."""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Token ids of a passage."""

    split: Split
    ids: list[int]
    scored: list[bool]
    """For each id, whether the loss is computed on it."""
    domain: str | None = None
    """None without `corpus.domain`."""


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A tokenizer with the special tokens that it puts around a text."""

    tokenizer: Any
    corpus: Corpus
    eos: int
    bos: int | None
    """Token that begins every sequence if `corpus.bos` is set, else None."""
    before: list[int]
    """Special ids before a document."""
    after: list[int]
    """Special ids after a document; the end-of-text token if the tokenizer marks neither beginning nor end."""

    @classmethod
    def of(cls, tokenizer: Any, corpus: Corpus) -> Encoder:
        """Return the encoder of a corpus.

        Raises:
            ConfigError: if the tokenizer lacks a required special token.
        """
        eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
        if eos is None:
            raise ConfigError("teacher.model: its tokenizer has neither an end-of-text nor a begin-of-text token")
        bos = tokenizer.bos_token_id if corpus.bos else None
        if corpus.bos and bos is None:
            raise ConfigError("corpus.bos: must be null, got true; the tokenizer has no begin-of-text token")
        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
        around = tokenizer("a")["input_ids"]
        end = len(around) - (around[-1:] == [eos])
        start = next((i for i in range(len(around)) if bare and around[i : i + len(bare)] == bare), end)
        before, after = around[:start], around[start + len(bare) :]
        if after[-1:] != [eos] and before[:1] != [tokenizer.bos_token_id]:
            after = [*after, eos]
        return cls(tokenizer, corpus, eos, bos, before, after)

    def encoded(self, passages: Iterator[Passage]) -> Iterator[Encoded]:
        """Yield the ids of each passage, with the special tokens at the beginning and end of a document.

        Raises:
            ConfigError: if a conversation cannot be rendered with the tokenizer's chat template.
        """
        for batch in _batches(passages):
            plain = iter(self._plain([p.content for p in batch if isinstance(p.content, str)]))
            for passage in batch:
                if isinstance(passage.content, str):
                    before, after = self.before if passage.begins else [], self.after if passage.ends else []
                    ids = [*before, *next(plain), *after]
                    yield Encoded(passage.split, ids, [True] * len(ids), passage.domain)
                else:
                    yield Encoded(passage.split, *self._conversation(passage.content), passage.domain)

    def _plain(self, contents: list[str]) -> list[list[int]]:
        """Return the ids of plain texts; a special token spelled in a text is encoded as text."""
        if contents and self.corpus.loss_on != "all":
            raise ConfigError(f"corpus.loss_on: must be all for plain text, got {self.corpus.loss_on}")
        if not contents:
            return []
        return self.tokenizer(
            contents, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
        )["input_ids"]

    def _conversation(self, messages: Messages) -> tuple[list[int], list[bool]]:
        text, spans = self._rendered(messages)
        ids, starts = self._with_controls(text, _contents(text, messages))
        ours = self.corpus.loss_on == "all"
        scored = [ours or any(first <= start < end for first, end in spans) for start in starts]
        before = self.before if ids[: len(self.before)] != self.before else []
        ends = self.tokenizer.eos_token is not None and text.rstrip().endswith(self.tokenizer.eos_token)
        after = [] if ends else self.after
        return [*before, *ids, *after], [*[ours] * len(before), *scored, *[ours] * len(after)]

    def _rendered(self, messages: Messages) -> tuple[str, list[Span]]:
        """Return a conversation rendered by the chat template, and the assistant's spans for `loss_on=assistant`."""
        column = self.corpus.text_column
        if not getattr(self.tokenizer, "chat_template", None):
            raise ConfigError(
                f"corpus.text_column: {column!r} is a list of messages, and the tokenizer has no chat template"
            )
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template

        template = self.tokenizer.get_chat_template()
        marks_the_assistant = self.corpus.loss_on == "assistant" and bool(_GENERATION.search(template))

        def render(part: Messages, prompt: bool = False) -> tuple[str, list[Span]]:
            rendered, marked = render_jinja_template(
                [part], chat_template=template, add_generation_prompt=prompt,
                return_assistant_tokens_mask=marks_the_assistant, **self.tokenizer.special_tokens_map,
            )  # fmt: skip
            return rendered[0], marked[0] if marks_the_assistant else []

        try:
            text, spans = render(messages)
            if self.corpus.loss_on == "assistant" and not marks_the_assistant:
                for place, message in enumerate(messages):
                    if message["role"] == "assistant":
                        first, end = render(messages[:place], True)[0], render(messages[: place + 1])[0]
                        if not (text.startswith(end) and end.startswith(first)):
                            raise ConfigError(
                                "corpus.loss_on: must be all for this tokenizer, whose chat template changes earlier "
                                "turns and does not mark the assistant's (generation blocks)"
                            )
                        spans.append((len(first), len(end)))
        except (jinja2.TemplateError, TypeError, KeyError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            problem = " ".join(str(error).split())
            raise ConfigError(
                f"corpus.text_column: {column!r} does not fit the tokenizer's chat template ({problem})"
            ) from None
        return text, spans

    def _with_controls(self, text: str, contents: list[Span]) -> tuple[list[int], list[int]]:
        """Return the ids of a rendered conversation, and the index of the first character of each.

        Special tokens of the template are encoded as such; those spelled in a message are encoded as text.
        """
        special = {str(t): i for i, t in self.tokenizer.added_tokens_decoder.items() if t.special}
        found = [
            match.span()
            for match in re.finditer("|".join(map(re.escape, sorted(special, key=len, reverse=True))), text)
            if special
        ]
        inside = [any(first <= start < end for first, end in contents) for start, _ in found]
        if not any(inside):
            return self._offsets(text, 0)
        controls = [span for span, spelled in zip(found, inside, strict=True) if not spelled]
        ids: list[int] = []
        starts: list[int] = []
        for (_, first), (end, after) in itertools.pairwise([(0, 0), *controls, (len(text), len(text))]):
            part = self._offsets(text[first:end], first, split_special_tokens=True)
            ids, starts = ids + part[0], starts + part[1]
            if after > end:
                ids, starts = [*ids, special[text[end:after]]], [*starts, end]
        return ids, starts

    def _offsets(self, text: str, at: int, **how: bool) -> tuple[list[int], list[int]]:
        encoded = self.tokenizer(
            text,
            add_special_tokens=False,
            return_attention_mask=False,
            return_offsets_mapping=True,
            verbose=False,
            **how,
        )
        return encoded["input_ids"], [at + start for start, _ in encoded["offset_mapping"]]


def _contents(text: str, messages: Messages) -> list[Span]:
    """Return the spans of the messages in a rendered conversation; templates may strip whitespace."""
    spans, position = [], 0
    for message in messages:
        content = message.get("content")
        if isinstance(content, str) and content.strip():
            start = text.find(content.strip(), position)
            if start >= 0:
                position = start + len(content.strip())
                spans.append((start, position))
    return spans


def _batches(passages: Iterable[Passage]) -> Iterator[list[Passage]]:
    """Yield batches of passages to encode at once, bounded in number and in characters."""
    batch: list[Passage] = []
    size = 0
    for passage in passages:
        batch.append(passage)
        size += len(passage.content)
        if len(batch) == _PASSAGES_AT_ONCE or size >= texts.LONGEST:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
