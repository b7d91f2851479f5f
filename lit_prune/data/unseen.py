"""Texts that the profiles' teachers were not trained on, for the tables that ask what follows from that. No torch."""

from __future__ import annotations

from typing import Any

_READMES = {"corpus.source": "readmes", "corpus.heldout": 0.2}

_TEXTS: dict[str | None, dict[str, Any]] = {
    "python-3.1M": _READMES,
    None: _READMES | {"importance.samples": 128, "evaluation.blocks": 64},  # all that the text holds
    "HuggingFaceTB/SmolLM2-360M": {
        "corpus.source": "Salesforce/wikitext",
        "corpus.subset": "wikitext-103-raw-v1",
        "corpus.heldout": 0.05,
    },
}

WHICH = (
    "at quick and laptop the README files of packages instead of Python, at h200 WikiText-103. What Llama 3.1 was "
    "trained on is not known: paper keeps the profile's text."
)
"""The texts, for a caveat."""


def unseen_text(teacher: str | None) -> dict[str, Any]:
    """What to change in a cell for another text than its teacher's, which is None where one is trained; nothing where
    the teacher is another than the profiles'."""
    return dict(_TEXTS.get(teacher, {}))
