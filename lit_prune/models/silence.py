"""Silence the libraries that models come from."""

from __future__ import annotations

import logging
import warnings


def quiet() -> None:
    """Silence the libraries except for errors; the caller reports progress and results.

    A Lightning that is imported later sets its own level.
    """
    from transformers.utils import logging as of_transformers

    of_transformers.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric", "lightning", "transformers", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*_pytree.*")
