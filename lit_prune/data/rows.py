"""Read the text column of JSON, CSV and Parquet files and of hub data sets, row by row. No torch."""

from __future__ import annotations

import codecs
import contextlib
import csv
import functools
import hashlib
import itertools
import json
import logging
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

from lit_prune.config import ConfigError, Corpus
from lit_prune.data.files import Digest, beginning, first_line, kind_of, opened, opened_text
from lit_prune.data.passages import is_title

Messages = list[dict[str, Any]]
"""A conversation: messages with a `role` and a `content`."""


class Row(NamedTuple):
    """A row of a corpus."""

    content: str | Messages | None
    """Its text or conversation; None if it has none."""
    group: str | None
    """None without `corpus.group`."""
    domain: str | None
    """None without `corpus.domain`."""


# Number of rows without the column after which it is reported as missing.
_PATIENCE = 1000
_CSV_FIELD_BYTES = 2**31 - 1

log = logging.getLogger(__name__)


@functools.cache
def warn_of_skipped(source: str, count: int) -> None:
    """Warn, once per process, how many rows of a source have no text."""
    if count:
        log.warning("corpus.path: %s: skipped %d rows without text", source, count)


def rows_of(path: Path, corpus: Corpus, digest: Digest) -> Generator[Row, None, None]:
    """Stream the rows of a local file and add its bytes to `digest`.

    Raises:
        ConfigError: if the file cannot be read, or the column is missing or does not hold text.
    """
    kind = kind_of(path)
    try:
        if kind == "parquet":
            with opened(path, digest) as file:
                yield from _picked(_parquet(file, corpus), corpus, str(path))
        else:
            with opened_text(path, digest, newline="") as text:
                yield from _picked(_csv(text) if kind == "csv" else _json(text), corpus, str(path))
    except ConfigError:
        raise
    except (ValueError, RecursionError, csv.Error) as error:  # ValueError includes JSON's and Arrow's errors
        if isinstance(error, UnicodeDecodeError):
            raise ConfigError(f"corpus.path: {path} is not UTF-8 text ({error.reason})") from None
        raise ConfigError(f"corpus.path: {path} cannot be read ({first_line(error)})") from None


def begins_with_title(path: Path, corpus: Corpus) -> bool:
    """Return whether the first row of a local file with text is the title of a WikiText article.

    A JSON array is not read: reading its first row would parse all of it, and WikiText is not published as one.

    Raises:
        ConfigError: as `rows_of`.
    """
    if kind_of(path) == "json" and beginning(path).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        return False
    with contextlib.closing(rows_of(path, corpus, hashlib.sha256())) as rows:
        first = next((row.content for row in itertools.islice(rows, _PATIENCE) if str(row.content or "").strip()), None)
    return isinstance(first, str) and is_title(first)


def hub_rows(corpus: Corpus, revision: str | None) -> Iterator[Row]:
    """Stream the rows of a hub data set.

    Raises:
        ConfigError: if the data set cannot be read, or the column is missing or does not hold text.
    """
    import datasets

    try:
        rows = datasets.load_dataset(corpus.path, name=corpus.name, revision=revision, split="train", streaming=True)
        yield from _picked(rows, corpus, corpus.path)
    except ConfigError:
        raise
    # RuntimeError and TypeError: from readers of `datasets`, for rows whose types differ from the first ones.
    except (datasets.exceptions.DatasetGenerationError, ValueError, OSError, RuntimeError, TypeError) as error:
        raise ConfigError(f"corpus.path: {corpus.path} cannot be read ({first_line(error)})") from error


def _json(stream: TextIO) -> Iterator[Any]:
    """Yield the rows of JSON lines, of a JSON array, or of one JSON value."""
    begun = False
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if begun:
                raise ValueError(f"line {number}: {error.msg}") from None
            row = _whole(line + stream.read())  # a value over several lines
        begun = True
        yield from row if isinstance(row, list) else [row]


def _whole(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}: {error.msg}") from None


def _csv(stream: TextIO) -> Iterator[Mapping[str, Any]]:
    csv.field_size_limit(_CSV_FIELD_BYTES)
    return csv.DictReader(stream, strict=True)


def _parquet(file: BinaryIO, corpus: Corpus) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a Parquet file, reading only the columns in use."""
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(file)
    names = parquet.schema_arrow.names
    wanted = _wanted(corpus)
    columns = list(dict.fromkeys(wanted.values()))
    for field, column in wanted.items():
        if column not in names and column.partition(".")[0] not in names:
            raise _no_column(field, column, corpus.path, names)
    for batch in parquet.iter_batches(batch_size=1024, columns=columns):
        yield from batch.to_pylist()


def _picked(rows: Iterable[Any], corpus: Corpus, where: str) -> Iterator[Row]:
    """Yield each row; it may be a string, which is then its text."""
    wanted = _wanted(corpus)
    names: dict[str, None] = {}
    missing = dict.fromkeys(wanted, True)
    number = 0
    for number, row in enumerate(rows, 1):
        row = {"text": row} if isinstance(row, str) else row
        if not isinstance(row, Mapping):
            raise ConfigError(f"corpus.path: {where}: row {number} must be an object, got {type(row).__name__}")
        values = {field: _value(row, column) for field, column in wanted.items()}
        for field, (found, _) in values.items():
            missing[field] = missing[field] and not found
        if any(missing.values()):
            names |= dict.fromkeys(_columns(row))
        if number == _PATIENCE and any(missing.values()):
            break
        group, domain = (values[field][1] if field in values else None for field in ("group", "domain"))
        if corpus.domain is not None and domain is None and not missing["domain"]:
            raise ConfigError(f"corpus.domain: {corpus.domain!r} must be set in every row, got none in row {number}")
        text = _text(values["text_column"][1], corpus.text_column, where, number)
        yield Row(text, *(None if value is None else str(value) for value in (group, domain)))
    for field, column in wanted.items():
        if number and missing[field]:
            raise _no_column(field, column, where, names)


def _wanted(corpus: Corpus) -> dict[str, str]:
    """Return the fields of a corpus that name columns to read."""
    names = {field: getattr(corpus, field) for field in ("text_column", "group", "domain")}
    return {field: column for field, column in names.items() if column is not None}


def _no_column(field: str, column: str, where: str, names: Iterable[str]) -> ConfigError:
    return ConfigError(f"corpus.{field}: {where} has no column {column!r}; there are: {', '.join(names)}")


def _columns(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the possible values of `corpus.text_column` in a row, including dotted names of nested objects."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from (f"{name}.{inner}" for inner in _columns(value))
        else:
            yield str(name)


def _value(row: Mapping[str, Any], column: str) -> tuple[bool, Any]:
    """Return whether a row has a column, and its value; dots select fields of nested objects."""
    if column in row:
        return True, row[column]
    value: Any = row
    for name in column.split("."):
        if value is None:
            return True, None
        if not isinstance(value, Mapping) or name not in value:
            return False, None
        value = value[name]
    return True, value


def _text(value: Any, column: str, where: str, number: int) -> str | Messages | None:
    """Return the value of the column: text, a conversation, or None.

    Raises:
        ConfigError: if it is something else.
    """
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:  # lone surrogates, valid in JSON, cannot be tokenized
            value = value.encode(errors="replace").decode()
        return value
    if isinstance(value, list) and value and all(isinstance(m, Mapping) and "role" in m for m in value):
        return [dict(message) for message in value]
    raise ConfigError(
        f"corpus.text_column: {column!r} must be text or a list of messages (role, content), got "
        f"{type(value).__name__} in row {number} of {where}"
    )
