"""Text by domain: tokens of each in one piece, and sequences drawn by shares that may change during a run.

Source: dynamic batch loading of Sheared LLaMA, arXiv 2310.06694, section 2.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lit_prune.store.atomic import atomic_path


class DomainRuns:
    """The places of each domain in a split, in the order in which its tokens are written."""

    def __init__(self) -> None:
        self._places: dict[str, list[slice]] = {}
        self._num_tokens = 0

    def add(self, domain: str, num_tokens: int) -> None:
        """Note that the next tokens belong to a domain."""
        stop = self._num_tokens + num_tokens
        self._places.setdefault(domain, []).append(slice(self._num_tokens, stop))
        self._num_tokens = stop

    def sizes(self) -> dict[str, int]:
        """Return the number of tokens of each domain, in alphabetical order."""
        return {name: sum(p.stop - p.start for p in places) for name, places in sorted(self._places.items())}

    def group(self, path: Path, dtype: np.dtype) -> None:
        """Rewrite a file with an entry for each token: one domain after another, in alphabetical order."""
        entries = np.memmap(path, dtype, mode="r")
        with atomic_path(path) as scratch, scratch.open("wb") as file:
            for _, places in sorted(self._places.items()):
                for place in places:
                    file.write(entries[place].tobytes())


class DomainShares:
    """Shares of the domains in the steps of a run, and the sequences that are drawn by them.

    Step t draws the numbers of sequences by a multinomial distribution, which depends on (seed, t) and the shares at t,
    and takes the next ones of each domain, in a new permutation for each pass over it. So a run can resume from its
    step and the shares so far.
    """

    def __init__(self, members: Sequence[np.ndarray], start: Sequence[float], batch_size: int, seed: int) -> None:
        self.members, self.batch_size, self.seed = members, batch_size, seed
        self.history: list[tuple[int, list[float]]] = [(0, list(start))]
        """(first step, shares), ascending."""
        self._drawn = 0

    @property
    def newest(self) -> list[float]:
        """The shares from now on."""
        return self.history[-1][1]

    def change(self, step: int, shares: Sequence[float]) -> None:
        """Draw by other shares from a 0-based step on, which must not be drawn yet."""
        if step < self._drawn:
            raise RuntimeError(f"the sequences of step {step} are drawn already")
        self.history.append((step, list(shares)))

    def steps(self, start: int, stop: int) -> Iterator[tuple[int, ...]]:
        """Yield the sequences of each step from `start` on, drawn when they are needed."""
        used = np.zeros(len(self.members), np.int64)
        for step in range(stop):
            draw = np.random.default_rng([self.seed, step])
            shares = next(shares for first, shares in reversed(self.history) if first <= step)
            counts = draw.multinomial(self.batch_size, shares)
            if step >= start:
                found = [self._sequence(d, used[d] + i) for d, count in enumerate(counts) for i in range(count)]
                self._drawn = step + 1
                yield tuple(draw.permutation(found).tolist())
            used += counts

    def _sequence(self, domain: int, position: int) -> int:
        epoch, place = divmod(int(position), len(self.members[domain]))
        order = np.random.default_rng([self.seed, domain, epoch]).permutation(len(self.members[domain]))
        return int(self.members[domain][order[place]])


def updated_shares(shares: Sequence[float], losses: Sequence[float], references: Sequence[float]) -> list[float]:
    """Return shares in proportion to share * exp(max(loss - reference, 0)) (Sheared LLaMA, Algorithm 1)."""
    excess = np.maximum(np.subtract(losses, references), 0)
    raised = np.asarray(shares) * np.exp(excess - excess.max())
    return (raised / raised.sum()).tolist()
