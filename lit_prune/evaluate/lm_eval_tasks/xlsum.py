"""What xlsum_english.yaml calls: which documents, and how near a summary is to the one of the article."""

from __future__ import annotations

import functools
from typing import Any


def every_fifth(documents: Any) -> Any:
    """20 % of a data set, evenly over it."""
    return documents.select(range(0, len(documents), 5))


def rouge(document: dict[str, Any], written: list[str]) -> dict[str, float]:
    """F measures of ROUGE-1, ROUGE-2 and ROUGE-L between the first line written and the article's summary, stemmed."""
    scores = _scorer().score(document["summary"], written[0].strip())
    return {name: score.fmeasure for name, score in scores.items()}


@functools.lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
