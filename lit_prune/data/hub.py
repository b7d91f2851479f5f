"""Data sets of the Hugging Face hub: resolve their current commit. No torch."""

from __future__ import annotations

from lit_prune.config import ConfigError
from lit_prune.data.builtin import BUILT_IN
from lit_prune.data.files import first_line

# Version of reading hub rows, part of the fingerprint. Raise it when they give other texts.
_READING = "+2"


def fingerprint(source: str) -> str:
    """Return the current commit of a data set with the version of reading; a later upload is another corpus.

    Raises:
        ConfigError: if the data set cannot be reached.
    """
    from huggingface_hub import HfApi

    nowhere = (
        f"corpus.path: {source!r} is not {' or '.join(BUILT_IN)}, a file or folder here, or a data set that can be "
        "reached"
    )
    try:
        revision = HfApi().dataset_info(source, timeout=10).sha
    except Exception as error:  # the types depend on the hub client's HTTP library
        raise ConfigError(f"{nowhere} ({first_line(error)})") from None
    if not revision:
        raise ConfigError(nowhere)
    return revision + _READING


def revision_of(fingerprint: str | None) -> str | None:
    """Return the commit that a fingerprint names."""
    return None if fingerprint is None else fingerprint.partition("+")[0]


def is_wikitext(source: str) -> bool:
    """Return whether the rows of a data set are the lines of WikiText articles."""
    return source.rpartition("/")[2].lower().startswith("wikitext")
