"""Settings of methods that may draw the text of their training by domain, as far as its loss exceeds a reference."""

from __future__ import annotations

from dataclasses import dataclass

from lit_prune.config import ConfigError, DynamicLoading, PruneMethod
from lit_prune.config.fields import Count, later


@dataclass(frozen=True)
class LoadsDomains(PruneMethod):
    """Dynamic batch loading (Sheared LLaMA, 2310.06694, section 2.2) over the domains of `corpus.domain`.

    The share w of a domain in a batch begins with its share of the text. Every m steps it becomes proportional to
    w exp(max(l - r, 0)), with the loss l of the domain on validation sequences and a reference r.

    Deviation: the paper predicts r for a model of the target size; here r is given, or the loss of the unpruned model.
    The authors' code does without the maximum, and mixes in a share of 1e-4 of equal shares. A dry run does not count
    the time of measuring l.
    """

    domain_interval: Count | None = later(None, noop=None)
    """m, the steps between changes of the shares of domains; None draws all sequences alike."""
    domain_losses: tuple[float, ...] = later((), noop=())
    """Reference losses in nats, in the order of the names of domains; empty takes those of the unpruned model."""
    domain_sequences: Count = later(32, noop=32)
    """Validation sequences of each domain, at most, that measure its loss (500 in the paper)."""

    @property
    def loading(self) -> DynamicLoading | None:
        """The settings as a training takes them; None if it draws all sequences alike."""
        if self.domain_interval is None:
            return None
        return DynamicLoading(self.domain_interval, self.domain_losses, self.domain_sequences)

    def check_settings(self) -> None:
        """Raise a ConfigError for settings without effect."""
        super().check_settings()
        if self.domain_interval is None and self.domain_losses:
            raise ConfigError("prune.domain_interval: must be set with prune.domain_losses, got null")
