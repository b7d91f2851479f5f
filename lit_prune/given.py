"""Check the files of the models that cells name, before any of them is loaded. No torch until something is checked."""

from __future__ import annotations

from collections.abc import Iterable

from lit_prune.config import Cell
from lit_prune.models import teacher as teachers
from lit_prune.settings import sources_of


def check_weights(cells: Iterable[Cell]) -> None:
    """Check that the files of every model that cells or their sources name hold what their configs describe.

    Raises:
        ConfigError: as `models.checkpoint.check_checkpoint`; the message names the field.
    """
    every = [one for cell in cells for one in (cell, *sources_of(cell))]
    given = [("teacher.model", one.teacher) for one in every] + [("student.model", one.student) for one in every]
    named = [(model.model, model.fingerprint, field) for field, model in given if model.model is not None]
    for model, fingerprint, field in dict.fromkeys(named):
        teachers.check_given(model, fingerprint, field)
