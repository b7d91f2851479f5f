"""Check that the texts of a cell, once they are tokens, hold what it reads."""

from __future__ import annotations

from pathlib import Path

from lit_prune.config import Cell, ConfigError, Prune, errors_of
from lit_prune.pipeline.validate import dynamic_loadings
from lit_prune.pruning.shapes import keeps_all, pruned_config


def check_tokens(cell: Cell, tokens: Path) -> None:
    """Check that the corpus holds the requested validation sequences, and the calibration sequences if they are read.

    Raises:
        ConfigError: if it does not.
    """
    from lit_prune.data.calibration import CalibrationData
    from lit_prune.distill.domain_loading import check_domains

    calibration = cell.calibration
    if _calibrates(cell):
        with errors_of({"calibration": "calibration.num_sequences"}):
            CalibrationData(tokens, num_sequences=calibration.num_sequences, seq_len=calibration.seq_len, seed=0)
    check_validation(cell, tokens)
    for field, how, seq_len in dynamic_loadings(cell):
        with errors_of({"references": field}):
            check_domains(how, tokens, seq_len)
    if cell.teacher.finetune is not None:
        CalibrationData(tokens, num_sequences=1, seq_len=cell.teacher.finetune.seq_len, seed=0, split="validation")


def _calibrates(cell: Cell) -> bool:
    """Return whether pruning reads calibration sequences: not for a student that is given, or the whole model."""
    if cell.prune.init_from is not None or cell.prune.init == "random":
        return False
    config = pruned_config(cell)
    return not (isinstance(cell.prune, Prune) and keeps_all(cell.prune.config_of(config), config))


def check_validation(cell: Cell, tokens: Path, where: str = "") -> None:
    """Check that a text holds the requested validation sequences.

    Raises:
        ConfigError: if it does not; `where` names a text that is not the corpus.
    """
    from lit_prune.evaluate.validation import validation_data

    try:
        validation_data(cell.evaluation, tokens)
    except ConfigError as error:
        place = f" ({where})" if where else ""
        raise ConfigError(f"evaluation.num_sequences: {error.problem}{place}") from None
