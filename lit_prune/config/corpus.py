"""The section of a text. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt, Lt

from lit_prune.config.fields import Count, later, renamed


@dataclass(frozen=True)
class Corpus:
    """Text, split by document into train, validation and calibration.

    A document is a file of plain text (or each part between two `separator`s), an article of WikiText, a row of JSON,
    CSV, Parquet or a hub data set (or the rows of a `group`), a README, or the docstrings of a module. A corpus that is
    a single document is cut into three contiguous parts."""

    path: str = renamed("python", was="source")
    """Text: "python" (the standard library of this Python and its documentation topics), "python+dependencies" (the
    same plus the source of six packages on which lit_prune depends), "readmes" (the descriptions of its dependencies),
    "docstrings" (31 MB of English: the docstrings of 13 packages of every installation), a file or folder (.txt .md
    .tokens .json .jsonl .ndjson .csv, each also with .gz or .zst, and .parquet), or the id of a data set on the Hugging
    Face hub, which is streamed."""
    text_column: str = renamed("text", was="column")
    """Column that holds the text, in JSON, CSV, Parquet and hub data; dots select nested objects (meta.text)."""
    separator: str | None = later(None, noop=None)
    """Text between two documents of a text file, such as three newlines; None makes each file a document."""
    group: str | None = later(None, noop=None)
    """Column whose value is the same in rows that belong to the same split, such as a book's title; None splits rows
    by their text."""
    domain: str | None = later(None, noop=None)
    """Column with the domain of a row, such as meta.redpajama_set_name, or "package" for the docstrings of packages.
    Sequences of tokens then never mix domains; None does not distinguish any."""
    name: str | None = renamed(None, was="subset")
    """Configuration name of a hub data set."""
    loss_on: Literal["all", "assistant"] = later("all", noop="all")
    """Tokens that are scored if the column holds conversations (messages with a role and a content): all, or only the
    assistant's turns. Conversations are formatted with the tokenizer's chat template."""
    bos: bool | None = later(None, noop=None)
    """Begin every sequence with the tokenizer's begin-of-text token, which takes one position; None does so if the
    tokenizer does so for texts. Whether the loss falls or rises depends on how the model was trained."""
    holdout_fraction: Annotated[float, Gt(0), Lt(0.5)] = renamed(0.1, was="heldout")
    """Share of the documents kept for validation; the same share again is kept for calibration."""
    max_tokens: Count | None = None
    """Tokens of the train split to use; None uses all."""
    fingerprint: str | None = None
    """sha256 of the text, or revision on the hub. Filled in by the program: it replaces `path` in the address."""
