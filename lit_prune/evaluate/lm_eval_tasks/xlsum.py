"""Functions of xlsum_english.yaml: choose the documents and score a summary against the article's."""

from __future__ import annotations

import functools
from typing import Any


def every_fifth(documents: Any) -> Any:
    """Return every fifth document of a data set, 20 % of it."""
    return documents.select(range(0, len(documents), 5))


def rouge(document: dict[str, Any], written: list[str]) -> dict[str, float]:
    """Return the stemmed ROUGE-1, ROUGE-2 and ROUGE-L F measures of the first written line and the true summary."""
    scores = _scorer().score(document["summary"], written[0].strip())
    return {name: score.fmeasure for name, score in scores.items()}


@functools.lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
