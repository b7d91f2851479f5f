"""Check the files of the models that cells name, before any of them is loaded. No torch until something is checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from lit_prune.config import Cell, ConfigError
from lit_prune.config.overrides import parents_of
from lit_prune.models import loading
from lit_prune.models.files import Place, named
from lit_prune.progress import Progress
from lit_prune.pruning.shapes import teacher_config


def prepare_models(cells: Iterable[Cell], progress: Progress) -> bool:
    """Fetch and convert the models of the cells that are not ready yet; return whether there were any.

    Raises:
        ConfigError: if one cannot be fetched or converted; the message names the field.
    """
    return loading.prepare(((model, field) for model, _, field in _models(cells)), progress)


def check_weights(cells: Iterable[Cell]) -> None:
    """Check that the files of every model that cells or their parents name hold what their configs describe.

    Raises:
        ConfigError: as `models.checkpoint.check_checkpoint`; the message names the field.
    """
    for model, fingerprint, field in _models(cells):
        loading.check_given(model, fingerprint, field)


def _models(cells: Iterable[Cell]) -> list[tuple[str, str | None, str]]:
    """Return the models that cells or their parents name, each with its fingerprint and the field that names it."""
    every = _with_parents(cells)
    teachers = [(one.teacher.model, one.teacher.fingerprint, "teacher.model") for one in every]
    students = [(one.prune.init_from, one.prune.fingerprint, "prune.init_from") for one in every]
    unique = dict.fromkeys(teachers + students)
    return [(model, fingerprint, field) for model, fingerprint, field in unique if model is not None]


def check_ids(cells: Iterable[Cell], tokenizer: Callable[[Cell], Any]) -> None:
    """Check that given teachers have an embedding for every token id that a text can yield.

    `tokenizer` returns that of a cell's teacher, or None if it does not exist yet.

    Raises:
        ConfigError: if one lacks an embedding; the message names its field and folder.
    """
    given = {cell.teacher: cell for cell in _with_parents(cells) if cell.teacher.model is not None}
    for teacher, cell in given.items():
        place = loading.locate(str(teacher.model), teacher.fingerprint, weights=False)
        if (theirs := tokenizer(cell)) is not None:
            loading.check_ids(theirs, teacher_config(cell).vocab_size, named(place))


def check_same_tokens(cells: Iterable[Cell], tokenizer: Callable[[Cell], Any]) -> None:
    """Check that given students share the teacher's token ids, in which texts are tokenised and logits compared.

    `tokenizer` returns that of a cell's teacher, or None if it does not exist yet. A student without one in its folder
    is assumed to use the teacher's if the vocabularies have the same size. Otherwise one may be padded, which only a
    tokenizer can show.

    Raises:
        ConfigError: if an id stands for two different tokens, a token has two different ids, or the student has no
            embedding for an id that a text can yield.
    """
    checked = set()
    for cell in _with_parents(cells):
        model, case = cell.prune.init_from, (cell.prune, cell.teacher, cell.distill.top_k)
        if model is None or case in checked or (theirs := tokenizer(cell)) is None:
            continue
        checked.add(case)
        place = loading.locate(model, cell.prune.fingerprint, weights=False, field="prune.init_from")
        if place.pending:
            continue
        _check_sizes(cell, place, theirs)
        if loading.has_tokenizer(place):
            _check_same(place, _by_id(loading.load_tokenizer(place)), _by_id(theirs))


def _check_sizes(cell: Cell, place: Place, tokenizer: Any) -> None:
    ours, theirs = loading.load_config(place).vocab_size, teacher_config(cell).vocab_size
    if ours == theirs:
        return
    if not loading.has_tokenizer(place):
        raise ConfigError(
            f"{named(place)}: its vocabulary has {ours} entries, the teacher's {theirs}; to tell if one is padded, "
            "the folder must hold its tokenizer"
        )
    loading.check_ids(tokenizer, min(ours, theirs), "prune.init_from: its vocabulary is too small")
    if ours < theirs and cell.distill.top_k is not None:
        raise ConfigError(
            f"distill.top_k: must be null, because the teacher's {theirs} entries are more than the student's {ours}"
        )


def _check_same(place: Place, ours: dict[int, str], theirs: dict[int, str]) -> None:
    other = sorted(i for i in ours.keys() & theirs.keys() if ours[i] != theirs[i])
    if other:
        first = other[0]
        raise ConfigError(
            f"{named(place)}: every id must stand for the token it has in the teacher's tokenizer, got {first} for "
            f"{ours[first]!r}, which the teacher has for {theirs[first]!r} ({len(other)} ids differ)"
        )
    ids = {token: i for i, token in ours.items()}
    moved = sorted(i for i, token in theirs.items() if ids.get(token, i) != i)
    if moved:
        token = theirs[moved[0]]
        raise ConfigError(
            f"{named(place)}: every token must have the id it has in the teacher's tokenizer, got {ids[token]} for "
            f"{token!r}, which is {moved[0]} there ({len(moved)} tokens differ)"
        )


def _by_id(tokenizer: Any) -> dict[int, str]:
    return {i: token for token, i in tokenizer.get_vocab().items()}


def _with_parents(cells: Iterable[Cell]) -> list[Cell]:
    return [one for cell in cells for one in (cell, *parents_of(cell))]
