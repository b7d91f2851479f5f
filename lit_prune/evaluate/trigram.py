"""An interpolated Kneser-Ney trigram over token ids, the reference for the loss of a teacher.

Counts are sorted integer arrays: eleven million tokens take a second. Kneser & Ney, "Improved backing-off
for m-gram language modeling" (1995); Chen & Goodman, "An empirical study of smoothing techniques for language
modeling" (1999), the interpolated form with one discount an order. No torch.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_LENGTH = 3


@dataclasses.dataclass(frozen=True)
class _Order:
    """Counts of the n-grams of one length and of their contexts, by sorted keys."""

    ngrams: Integers
    counts: Integers
    contexts: Integers
    totals: Integers
    """Total count of the tokens after a context."""
    types: Integers
    """Number of different tokens after a context."""
    discount: float

    def interpolate(self, ngrams: Integers, lower: Floats, vocab_size: int) -> Floats:
        """Return the probability [count] of each n-gram's last token from `lower` [count], that of one order down."""
        at, seen = _find(self.ngrams, ngrams)
        kept = np.where(seen, np.maximum(self.counts[at] - self.discount, 0), 0)
        at, seen = _find(self.contexts, ngrams // vocab_size)
        interpolated = (kept + self.discount * self.types[at] * lower) / self.totals[at]
        return np.where(seen, interpolated, lower)


@dataclasses.dataclass(frozen=True)
class KneserNeyTrigram:
    """Trigram probabilities, discounted and interpolated with continuation bigrams, unigrams and uniform 1/V.

    Each order has one absolute discount, n1 / (n1 + 2 n2), where n1 and n2 are the n-grams counted once and twice.
    """

    vocab_size: int
    orders: tuple[_Order, ...]

    @classmethod
    def fit(cls, tokens: npt.NDArray[np.integer], vocab_size: int) -> KneserNeyTrigram:
        """Count the n-grams of a stream of token ids [num_tokens].

        Raises:
            ValueError: if there are fewer than three tokens, an id outside the vocabulary, or over two million entries.
        """
        if vocab_size**_LENGTH > 2**63:
            raise ValueError(f"trigrams of {vocab_size} tokens do not fit into 64 bits")
        if len(tokens) < _LENGTH:
            raise ValueError(f"a trigram model needs at least {_LENGTH} tokens, not {len(tokens)}")
        if tokens.min() < 0 or tokens.max() >= vocab_size:
            raise ValueError(f"token ids are not all between 0 and {vocab_size - 1}")
        windows = np.lib.stride_tricks.sliding_window_view(tokens, _LENGTH)
        ngrams, counts = np.unique(_encode(windows, vocab_size), return_counts=True)
        orders = [_order(ngrams, counts, vocab_size)]
        for length in range(_LENGTH - 1, 0, -1):
            # The continuation count: a shorter n-gram counts once for each different token before it.
            ngrams, counts = np.unique(ngrams % vocab_size**length, return_counts=True)
            orders.insert(0, _order(ngrams, counts, vocab_size))
        return cls(vocab_size, tuple(orders))

    def probability(self, ngrams: npt.NDArray[np.integer]) -> Floats:
        """Return the probability [count] of the last column of ids [count, n] given the others, n from 1 to 3."""
        keys = _encode(ngrams, self.vocab_size)
        result = np.full(len(ngrams), 1 / self.vocab_size)
        for length, order in enumerate(self.orders[: ngrams.shape[1]], start=1):
            result = order.interpolate(keys % self.vocab_size**length, result, self.vocab_size)
        return result

    def nats(self, tokens: npt.NDArray[np.integer]) -> Floats:
        """Return the negative log-likelihood [num_tokens] of each token; the first two have less context."""
        first = [self.probability(tokens[None, :length]) for length in range(1, min(len(tokens), _LENGTH))]
        rest = self.probability(np.lib.stride_tricks.sliding_window_view(tokens, min(len(tokens), _LENGTH)))
        return -np.log(np.concatenate([*first, rest]))

    def nats_per_token(self, tokens: npt.NDArray[np.integer], seq_len: int) -> float:
        """Return the mean nats over all but the first token of each sequence, as `evaluate.perplexity` scores them.

        A transformer predicts the second token of a sequence from one token and its last from all others. The
        trigram always uses the two tokens before, across sequence starts, so that packing does not handicap it.
        """
        return float(self.nats(tokens)[np.arange(len(tokens)) % seq_len != 0].mean())


def _encode(ngrams: npt.NDArray[np.integer], vocab_size: int) -> Integers:
    """Return each row of ids [count, n] as one integer [count] with digits in base V, so that // V is its context."""
    keys = np.zeros(len(ngrams), np.int64)
    for column in ngrams.T:
        keys = keys * vocab_size + column
    return keys


def _order(ngrams: Integers, counts: Integers, vocab_size: int) -> _Order:
    contexts, starts, types = np.unique(ngrams // vocab_size, return_index=True, return_counts=True)
    return _Order(ngrams, counts, contexts, np.add.reduceat(counts, starts), types, _discount(counts))


def _discount(counts: Integers) -> float:
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    # Without n-grams counted once there is no estimate, and 0 would give unseen tokens probability 0.
    return once / (once + 2 * twice) if once else 0.5


def _find(known: Integers, keys: Integers) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """Return the index of each key among the sorted known ones, and whether it is known."""
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return at, known[at] == keys
